"""Bad input raises an exception that names operator and argument, on every backend."""

from __future__ import annotations

import pytest
import torch

from rcnn_ext import ops
from rcnn_ext.ops import use_backend
from tests.helpers.backends import Backend
from tests.helpers.bad_box_calls import BOX_ERRORS
from tests.helpers.bad_roi_calls import ROI_ERRORS, align, pool

RUNTIME_ERRORS = {**BOX_ERRORS, **ROI_ERRORS}


@pytest.mark.parametrize("case", RUNTIME_ERRORS)
def test_runtime_error(backend: Backend, case: str) -> None:
    call, message = RUNTIME_ERRORS[case]
    with pytest.raises(RuntimeError, match=message):
        call(backend.device)


@pytest.mark.parametrize("case", RUNTIME_ERRORS)
def test_reference_and_kernel_raise_equal_messages(native: Backend, case: str) -> None:
    call, _ = RUNTIME_ERRORS[case]
    with pytest.raises(RuntimeError) as from_kernel:
        call(native.device)
    with use_backend("reference"), pytest.raises(RuntimeError) as from_reference:
        call(native.device)
    assert str(from_kernel.value) == str(from_reference.value)


def test_output_size_of_three_numbers(backend: Backend) -> None:
    for call, name in ((align, "roi_align"), (pool, "roi_pool")):
        for size in ((2, 2, 2), ()):
            with pytest.raises(ValueError, match=f"{name}: expected output_size of one or two"):
                call(size=size)(backend.device)


@pytest.mark.cuda
def test_tensors_on_two_devices(cuda: torch.device) -> None:
    features, rois = torch.rand(1, 1, 4, 4), torch.zeros(1, 5)
    boxes, scores = torch.rand(3, 4), torch.rand(3)
    for call in (
        lambda: ops.roi_align(features.to(cuda), rois, 2),
        lambda: ops.roi_align(features, rois.to(cuda), 2),
        lambda: ops.roi_pool(features.to(cuda), rois, 2),
        lambda: ops.roi_pool(features, rois.to(cuda), 2),
        lambda: ops.nms(boxes.to(cuda), scores, 0.5),
        lambda: ops.nms(boxes, scores.to(cuda), 0.5),
        lambda: ops.batched_nms(boxes.to(cuda), scores.to(cuda), scores, 0.5),
        lambda: ops.box_iou(boxes.to(cuda), boxes),
        lambda: ops.box_iou(boxes, boxes.to(cuda)),
        lambda: ops.match_boxes(boxes.to(cuda), boxes, 0.5, 0.2),
        lambda: ops.match_boxes(boxes, boxes.to(cuda), 0.5, 0.2),
    ):
        with pytest.raises(RuntimeError, match=r": expected .* and .* on one device, got c.*and c"):
            call()
