"""Metrics of detectors and localizers, and the report of an evaluation."""
