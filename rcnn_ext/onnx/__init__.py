"""The operators of this package in ONNX: for exporting models of your own that use them.

The graphs consist of operators of the standard domain, opset 18, so that any runtime takes them.
Needs the extra ``onnx``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rcnn_ext.errors import UserError

OPSET = 18

__all__ = ["OPSET", "translations"]


def translations() -> dict[Any, Callable[..., Any]]:
    """Return how ``torch.onnx.export`` translates the operators of this package.

    Every size stays dynamic that is dynamic in the exported program. Indices, labels, counts and
    the order of results are those of this package, equal scores included, in a runtime whose TopK
    and NonMaxSuppression take the lower index first among equals, as ONNX Runtime's do. OpenVINO's
    TopK doesn't always, and its NonMaxSuppression drops boxes whose IoU equals the threshold too.
    Coordinates, scores and features agree within the rounding of float32.

    Differences that ONNX does not leave out:

    - float64 is computed in float32, but for the IoU family. Half types are computed in float32.
    - ``nms``, ``batched_nms`` and their padded forms: a NaN among the scores counts as infinity,
      more than 2^24 boxes lose the order of scores, and ``batched_nms`` takes memory for the number
      of classes times that of boxes.
    - ``generate_proposals`` and ``postprocess_detections``: sigmoid and softmax of two libraries
      differ in the last bit, so that scores which are equal in one may differ in the other, and
      boxes that close to a threshold may be on its other side.
    - ``roi_align`` and ``multiscale_roi_align``: a pixel that is not finite spoils the bins where
      its weight is 0 too, and batch indices outside the batch are not checked.
    - ``roi_pool``: the indices of the maxima, which only the gradient needs, are left out.

    Not translated: ``match_boxes``, ``soft_nms``, ``non_max_merging`` and the gradients; nor
    ``conv3x3_winograd`` and ``conv3x3_winograd_out``, in whose place prepared models are exported
    with plain convolutions.

    Returns:
        A table for the argument ``custom_translation_table``.

    Raises:
        UserError: The extra ``onnx`` is not installed.

    Example:
        >>> program = torch.onnx.export(
        ...     model, (boxes, scores), custom_translation_table=rcnn_ext.onnx.translations()
        ... )
    """
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"ONNX needs {error.name}, which is not installed: pip install 'rcnn-ext[onnx]'"
        ) from error
    import torch

    import rcnn_ext.ops  # noqa: F401  # defines the operators
    from rcnn_ext.onnx import box_iou, detections, nms, rois

    operators = torch.ops.rcnn_ext
    return {
        operators.nms.default: nms.nms,
        operators.batched_nms.default: nms.batched_nms,
        operators.nms_padded.default: nms.nms_padded,
        operators.batched_nms_padded.default: nms.batched_nms_padded,
        operators.box_iou.default: box_iou.box_iou,
        operators.roi_align.default: rois.roi_align,
        operators.roi_pool.default: rois.roi_pool,
        operators.multiscale_roi_align.default: rois.multiscale_roi_align,
        operators.generate_proposals.default: detections.generate_proposals,
        operators.postprocess_detections.default: detections.postprocess_detections,
    }
