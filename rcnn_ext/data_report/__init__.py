"""A data set in one HTML page for people: numbers, charts, duplicates, pictures and suggestions."""

from rcnn_ext.data_report.build import ReportedSplit, render_report, suggest_for
from rcnn_ext.data_report.fingerprints import Fingerprints
from rcnn_ext.data_report.measures import SplitMeasures, measure
from rcnn_ext.data_report.suggestions import Suggestions, suggest
from rcnn_ext.data_report.suspicious import Suspicion, find_suspicious

__all__ = [
    "Fingerprints",
    "ReportedSplit",
    "SplitMeasures",
    "Suggestions",
    "Suspicion",
    "find_suspicious",
    "measure",
    "render_report",
    "suggest",
    "suggest_for",
]
