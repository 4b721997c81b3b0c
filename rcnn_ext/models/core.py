"""The core of a detector: one function of tensors, from a padded batch to padded detections.

No size in it depends on the values of a tensor, so ``torch.compile`` makes one graph of it,
``torch.export`` one program for any batch, height and width, and a CUDA graph can capture it.
What differs from image to image, the resizing before and the cut to the number of detections
after, stays outside.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rcnn_ext.models.feature_maps import measure_feature_maps

if TYPE_CHECKING:
    from rcnn_ext.models.detector import Detector

# Boxes [N, D, 4], scores [N, D], labels [N, D] int64 and counts [N] int64.
PaddedDetections = tuple[Tensor, Tensor, Tensor, Tensor]


class DetectionCore(nn.Module):
    """Detect objects in a batch that is resized, normalized and padded already.

    Made by :meth:`rcnn_ext.models.Detector.core`. Its weights are the detector's, not copies: what
    is done to one is done to both.

    Args:
        detector: The detector, in evaluation mode.

    Raises:
        RuntimeError: The detector is in training mode.

    Example:
        >>> core = torch.compile(model.eval().core(), fullgraph=True, dynamic=True)
        >>> boxes, scores, labels, counts = core(images, image_sizes)
    """

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        _check_evaluation(detector)
        self.detector = detector
        self.training = False
        self._strides = measure_strides(detector) if detector.needs_strides() else None

    def forward(
        self,
        images: Tensor,
        image_sizes: Tensor,
        proposals: Tensor | None = None,
        proposal_counts: Tensor | None = None,
    ) -> PaddedDetections:
        """Detect objects.

        Args:
            images: [N, 3, H, W], normalized; H and W are multiples of the size divisor of the
                detector (32 unless chosen), and pixels beyond an image's size are 0.
            image_sizes: [N, 2] float32 (height, width) of each image without padding.
            proposals: [N, P, 4] (x1, y1, x2, y2), pixels of ``images``, for Fast R-CNN.
            proposal_counts: [N] int64, how many of the P proposals of an image are real; None means
                all.

        Returns:
            Boxes [N, D, 4] (x1, y1, x2, y2) in pixels of ``images``, scores [N, D], labels [N, D]
            int64 from 1, by descending score, and counts [N] int64: the first ``counts[i]`` of the
            D entries of image i are its detections, the others are 0. A localizer has D = 1.

        Raises:
            RuntimeError: The detector is in training mode.
            ValueError: Proposals are missing for Fast R-CNN, or given to another detector.
        """
        _check_evaluation(self.detector)
        return self.detector.detect_padded(
            images, image_sizes, proposals, proposal_counts, strides=self._strides
        )


class DeployedDetector(nn.Module):
    """A detector with all of its preprocessing but the resizing: what is exported.

    The size that an image is brought to is left to the caller, since a formula with a minimum of
    quotients and a rounding cannot be part of a program for any size.

    Args:
        detector: The detector, in evaluation mode. Its weights are shared.

    Raises:
        RuntimeError: The detector is in training mode.

    Example:
        >>> deployed = DeployedDetector(model.eval())
        >>> boxes, scores, labels, counts = deployed(
        ...     torch.rand(2, 3, 600, 800), torch.tensor([[600.0, 800.0], [600.0, 640.0]])
        ... )
    """

    mean: Tensor
    std: Tensor

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.core = DetectionCore(detector)
        self.training = False
        transform = detector.transform
        self.size_divisible = int(transform.size_divisible)
        device = next(detector.parameters()).device
        for name in ("mean", "std"):
            values = torch.tensor(getattr(transform, f"image_{name}"), device=device)
            self.register_buffer(name, values[:, None, None], persistent=False)  # [3, 1, 1]

    def forward(
        self,
        images: Tensor,
        image_sizes: Tensor | None = None,
        proposals: Tensor | None = None,
        proposal_counts: Tensor | None = None,
    ) -> PaddedDetections:
        """Normalize, pad and detect.

        Args:
            images: [N, 3, H, W] in [0, 1], of any H and W; an image smaller than these lies in the
                upper left corner, and what is beyond its size does not matter.
            image_sizes: [N, 2] float32 (height, width) of each image; None means H and W for all.
            proposals: [N, P, 4], pixels of ``images``, for Fast R-CNN.
            proposal_counts: [N] int64, how many proposals of an image are real; None means all.

        Returns:
            As :meth:`DetectionCore.forward`; boxes are clipped to their image.
        """
        height, width = images.shape[-2:]
        normalized = (images - self.mean) / self.std
        if image_sizes is None:
            sides = [images.new_full(images.shape[:1], side) for side in (height, width)]
            image_sizes = torch.stack(sides, dim=1)
        else:
            rows = torch.arange(height, device=images.device)
            columns = torch.arange(width, device=images.device)
            inside = (rows[:, None] < image_sizes[:, 0, None, None]) & (
                columns < image_sizes[:, 1, None, None]
            )  # [N, H, W]
            # Not a product: what lies beyond an image may be NaN.
            normalized = torch.where(inside[:, None], normalized, 0.0)
        padding = (0, -width % self.size_divisible, 0, -height % self.size_divisible)
        return self.core(F.pad(normalized, padding), image_sizes, proposals, proposal_counts)


def measure_strides(detector: Detector) -> dict[str, float]:
    """Return the stride in pixels of each feature map of a detector's backbone, by name."""
    maps = measure_feature_maps(detector.backbone)
    return {name: feature_map.stride for name, feature_map in maps.items()}


def _check_evaluation(detector: nn.Module) -> None:
    if detector.training:
        raise RuntimeError("the core of a detector detects: call detector.eval() first")
