"""torchvision where its binary does not load: import this before torchvision.

``import rcnn_ext.torchvision_compat`` helps where ``import torchvision`` fails with "operator
torchvision::nms does not exist": torchvision from PyPI beside a CPU-only torch, or beside a torch
that it was not built for. It defines torchvision's operators: ``nms``, ``roi_align`` and
``roi_pool``, forward and backward, with autocast and fake kernels, are those of this package, so
that torchvision imports and its detectors run. ``ps_roi_align``, ``ps_roi_pool``,
``deform_conv2d``, ``box_iou_rotated`` and the quantized operators raise ``NotImplementedError`` by
name.

Where torchvision's binary loads, this refuses to define anything, and importing it does nothing.
:func:`reason` tells the two apart, and ``rcnn-ext doctor`` shows it. Everything of this package
that needs torchvision imports this by itself.
"""

from rcnn_ext.ops._torchvision_binary import install, reason

__all__ = ["install", "reason"]

install()
