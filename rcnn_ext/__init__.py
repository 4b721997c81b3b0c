"""R-CNN operators with native CPU and CUDA kernels, and the models built on them."""

__version__ = "0.1.0"
