"""The emulated CUDA kernels as a backend, and the cases that run on them."""
