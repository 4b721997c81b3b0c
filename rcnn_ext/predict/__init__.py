"""Trained models: checkpoints, detection on pictures, and export."""
