"""Load, run and export trained models."""
