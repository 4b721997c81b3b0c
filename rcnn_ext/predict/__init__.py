"""Load, run and export trained models."""

from rcnn_ext import torchvision_compat  # noqa: F401 - before torchvision
