"""One module a family of operators: what is called, on what, and what the right result is."""

from rcnn_ext.bench.cases.base import Case, Targets
from rcnn_ext.bench.cases.boxes import IouCase
from rcnn_ext.bench.cases.matching import MatchCase
from rcnn_ext.bench.cases.merging import MergingCase
from rcnn_ext.bench.cases.pooling import PyramidCase, RoiCase
from rcnn_ext.bench.cases.proposals import DetectionCase, ProposalCase
from rcnn_ext.bench.cases.suppression import NmsCase, SoftNmsCase

__all__ = [
    "Case",
    "DetectionCase",
    "IouCase",
    "MatchCase",
    "MergingCase",
    "NmsCase",
    "ProposalCase",
    "PyramidCase",
    "RoiCase",
    "SoftNmsCase",
    "Targets",
]
