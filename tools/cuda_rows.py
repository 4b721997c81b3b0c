"""The rows of the model: the benchmark's CUDA cases with a target, ours and torchvision's.

Launches and PyTorch's operators of our calls are checked against the emulated kernels
(tests/tools/test_cuda_rows.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import cuda_boxes
import cuda_heads
import cuda_rois
import torch
from cuda_code import Code
from cuda_device import HBM, KERNEL_START, READ_BACK, SMALL_SORT_ROW, Work

from rcnn_ext.bench.cases import (
    Case,
    DetectionCase,
    IouCase,
    MatchCase,
    NmsCase,
    ProposalCase,
    PyramidCase,
    RoiCase,
)


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        case: The case.
        dtype: Of the inputs.
        ours: The call of this package.
        torchvision: The call of torchvision.
        floor: Seconds that no implementation can undercut.
    """

    case: Case
    dtype: torch.dtype
    ours: Work
    torchvision: Work
    floor: float

    @property
    def ratio(self) -> float:
        """How many times faster than torchvision."""
        return self.torchvision.seconds / self.ours.seconds


def floor_of(compulsory: float, syncs: int = 0, sorted_count: int = 0) -> float:
    """Return a launch, the bytes that have to move, and where needed a sort and a wait."""
    sorting = 0.0
    if sorted_count > SMALL_SORT_ROW:
        sorting = 4 * KERNEL_START + cuda_boxes.sort_bytes(sorted_count) / HBM
    return KERNEL_START + compulsory / HBM + syncs * READ_BACK + sorting


def _floor(case: Case, dtype: torch.dtype) -> float:
    if isinstance(case, IouCase):
        return floor_of(4 * case.rows * case.columns)
    if isinstance(case, MatchCase):
        # No matrix has to exist, so this is the boxes and the results.
        return floor_of((16 + 12) * case.boxes)
    if isinstance(case, NmsCase):
        return floor_of((16 + 4 + 8) * case.count, 1, case.count)
    if isinstance(case, (RoiCase, PyramidCase)):
        return floor_of(cuda_rois.compulsory_bytes(case, dtype))
    return floor_of(cuda_heads.compulsory_bytes(case))


def make_row(case: Case, dtype: torch.dtype, code: Code) -> Row:
    """Model a case.

    Raises:
        KeyError: There is no model of such a case.
    """
    ours, theirs = _models()[type(case)]
    return Row(case, dtype, ours(case, code, dtype), theirs(case, code, dtype), _floor(case, dtype))


def our_work(case: Case, code: Code, **options: Any) -> Work:
    """Model our call of a case in float32."""
    return _models()[type(case)][0](case, code, torch.float32, **options)


_Model = Callable[..., Work]


def _models() -> dict[type[Case], tuple[_Model, _Model]]:
    def boxes(model: _Model) -> _Model:
        return lambda case, code, dtype, **options: model(case, code, **options)

    return {
        IouCase: (boxes(cuda_boxes.box_iou), boxes(cuda_boxes.box_iou_torchvision)),
        MatchCase: (
            boxes(cuda_boxes.match_boxes),
            boxes(cuda_boxes.match_boxes_torchvision),
        ),
        NmsCase: (boxes(cuda_boxes.nms), boxes(cuda_boxes.nms_torchvision)),
        ProposalCase: (
            boxes(cuda_heads.generate_proposals),
            boxes(cuda_heads.generate_proposals_torchvision),
        ),
        DetectionCase: (
            boxes(cuda_heads.postprocess_detections),
            boxes(cuda_heads.postprocess_detections_torchvision),
        ),
        RoiCase: (cuda_rois.roi_align, cuda_rois.roi_align_torchvision),
        PyramidCase: (cuda_rois.pyramid, cuda_rois.pyramid_torchvision),
    }
