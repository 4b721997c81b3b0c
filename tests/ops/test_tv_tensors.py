"""Boxes that know their format, and other subclasses of tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2.functional import convert_bounding_box_format

from rcnn_ext import ops
from tests.helpers.backends import Backend
from tests.helpers.peer import torchvision
from tests.helpers.samples import make_boxes, make_scores

COUNT = 12
SCORES = make_scores(COUNT)
IDXS = torch.arange(COUNT) % 2
MAPS = {"0": torch.rand(1, 2, 16, 16), "1": torch.rand(1, 2, 8, 8)}
OTHER = make_boxes(5, seed=1)

# Those of torchvision, called with a module of either package.
SHARED: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "nms": lambda m, boxes: m.nms(boxes, SCORES, 0.3),
    "batched_nms": lambda m, boxes: m.batched_nms(boxes, SCORES, IDXS, 0.3),
    "box_iou": lambda m, boxes: m.box_iou(boxes, OTHER),
    "box_iou, second": lambda m, boxes: m.box_iou(OTHER, boxes),
    "generalized_box_iou": lambda m, boxes: m.generalized_box_iou(boxes, boxes),
    "distance_box_iou": lambda m, boxes: m.distance_box_iou(boxes, OTHER),
    "complete_box_iou": lambda m, boxes: m.complete_box_iou(OTHER, boxes),
    "roi_align": lambda m, boxes: m.roi_align(MAPS["0"], [boxes], 2, 0.25),
    "roi_pool": lambda m, boxes: m.roi_pool(MAPS["0"], [boxes], 2, 0.25),
    "MultiScaleRoIAlign": lambda m, boxes: m.MultiScaleRoIAlign(["0", "1"], 2, 2)(
        MAPS, [boxes], [(64, 64)]
    ),
}
OWN: dict[str, Callable[[Tensor], Any]] = {
    "nms_padded": lambda boxes: ops.nms_padded(boxes, SCORES, 0.3, 5),
    "batched_nms_padded": lambda boxes: ops.batched_nms_padded(boxes, SCORES, IDXS, 0.3, 5),
    "soft_nms": lambda boxes: ops.soft_nms(boxes, SCORES),
    "batched_soft_nms": lambda boxes: ops.batched_soft_nms(boxes, SCORES, IDXS),
    "box_ios": lambda boxes: ops.box_ios(boxes, boxes),
    "match_boxes": lambda boxes: ops.match_boxes(OTHER, boxes, 0.5, 0.3),
    "match_boxes, second": lambda boxes: ops.match_boxes(boxes, OTHER, 0.5, 0.3),
    "batched_match_boxes": lambda boxes: ops.batched_match_boxes([OTHER], boxes, 0.5, 0.3),
    "batched_match_boxes, lists": lambda b: ops.batched_match_boxes([b], [OTHER], 0.5, 0.3),
    "non_max_merging": lambda boxes: ops.non_max_merging(boxes, SCORES)[:2],
    "multiscale_roi_align": lambda boxes: ops.multiscale_roi_align(
        list(MAPS.values()), [boxes], 2, [1 / 4, 1 / 8]
    ),
}
CALLS: dict[str, Callable[[Tensor], Any]] = {
    **{name: lambda boxes, call=call: call(ops, boxes) for name, call in SHARED.items()},
    **OWN,
}


def _bounding_boxes(fmt: str) -> tv_tensors.BoundingBoxes:
    boxes = make_boxes(COUNT)
    given = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(64, 64))
    result: tv_tensors.BoundingBoxes = convert_bounding_box_format(given, new_format=fmt)
    return result


@pytest.mark.parametrize("fmt", ["XYXY", "XYWH", "CXCYWH"])
@pytest.mark.parametrize("name", CALLS)
def test_the_format_is_respected(native: Backend, name: str, fmt: str) -> None:
    result = CALLS[name](_bounding_boxes(fmt))
    expected = CALLS[name](make_boxes(COUNT))
    for one, other in zip(
        *(r if isinstance(r, tuple) else (r,) for r in (result, expected)), strict=True
    ):
        assert type(one) is Tensor
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", CALLS)
def test_rotated_boxes_are_refused_by_name(native: Backend, name: str) -> None:
    values = torch.cat([make_boxes(COUNT), torch.zeros(COUNT, 1)], dim=1)
    rotated = tv_tensors.BoundingBoxes(values, format="CXCYWHR", canvas_size=(64, 64))
    operator = name.partition(",")[0]
    message = rf"{operator}: expected bounding boxes of format XYXY, .* got CXCYWHR"
    with pytest.raises(RuntimeError, match=message):
        CALLS[name](rotated)


def test_a_format_is_not_applied_twice() -> None:
    boxes = make_boxes(COUNT)
    for fmt in ("xywh", "cxcywh"):
        result = ops.box_iou(_bounding_boxes(fmt.upper()), _bounding_boxes("XYXY"), fmt=fmt)
        torch.testing.assert_close(result, ops.box_iou(boxes, boxes), rtol=1e-4, atol=1e-4)


class _Subclass(Tensor):
    pass


@pytest.mark.parametrize("name", SHARED)
@pytest.mark.parametrize("kind", ["BoundingBoxes", "Parameter", "other"])
def test_types_of_results_are_torchvisions(native: Backend, name: str, kind: str) -> None:
    if name == "MultiScaleRoIAlign" and kind == "other":
        pytest.skip("torchvision writes into a plain tensor there")
    boxes = {
        "BoundingBoxes": lambda: _bounding_boxes("XYXY"),
        "Parameter": lambda: torch.nn.Parameter(make_boxes(COUNT)),
        "other": lambda: make_boxes(COUNT).as_subclass(_Subclass),
    }[kind]()
    result, expected = (SHARED[name](module, boxes) for module in (ops, torchvision.ops))
    assert type(result) is type(expected)


def test_types_of_results_of_image_tensors() -> None:
    features, rois = torch.rand(1, 3, 8, 8), [make_boxes(3, size=8)]
    for name in ("roi_align", "roi_pool"):
        for image in (tv_tensors.Image(features), features.as_subclass(_Subclass)):
            results = (getattr(m, name)(image, rois, 2) for m in (ops, torchvision.ops))
            assert len({type(result) for result in results}) == 1


def test_results_are_wrapped_where_torchvision_is_asked_to() -> None:
    boxes = _bounding_boxes("XYXY")
    with tv_tensors.set_return_type("TVTensor"):
        for module in (ops, torchvision.ops):
            assert type(module.box_iou(boxes, boxes)) is tv_tensors.BoundingBoxes
