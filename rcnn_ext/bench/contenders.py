"""Names of the contenders. This module imports nothing, so that ``--help`` is fast."""

from __future__ import annotations

OURS = "rcnn_ext"
# Ours with the kernels of an instruction set below the best.
AVX2 = "rcnn_ext-avx2"
BASELINE = "rcnn_ext-baseline"
# Gradients by atomic additions, on CUDA.
ATOMIC = "atomic"
TORCHVISION = "torchvision"
REFERENCE = "reference"
CONTENDERS = (OURS, AVX2, BASELINE, ATOMIC, TORCHVISION, REFERENCE)

# Detectors only, see ``runtimes``.
OURS_BFLOAT16 = "rcnn_ext-bfloat16"
ONNXRUNTIME = "onnxruntime"
OPENVINO = "openvino"
OPENVINO_BFLOAT16 = "openvino-bfloat16"
