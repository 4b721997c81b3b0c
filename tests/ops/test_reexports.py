"""``from rcnn_ext import ops`` in place of ``from torchvision import ops``."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import Any

import pytest

import rcnn_ext.ops as ops
from tests.helpers.peer import torchvision

SHARED = [
    "MultiScaleRoIAlign",
    "RoIAlign",
    "RoIPool",
    "batched_nms",
    "box_iou",
    "complete_box_iou",
    "distance_box_iou",
    "generalized_box_iou",
    "nms",
    "roi_align",
    "roi_pool",
]
OWN = [
    *SHARED,
    "Detections",
    "MergedBoxes",
    "Proposals",
    "batched_match_boxes",
    "batched_nms_padded",
    "batched_soft_nms",
    "box_ios",
    "generate_proposals",
    "has_native_kernel",
    "match_boxes",
    "multiscale_roi_align",
    "nms_padded",
    "non_max_merging",
    "postprocess_detections",
    "soft_nms",
    "use_backend",
]


def test_names() -> None:
    assert ops.__all__ == sorted({*OWN, *torchvision.ops.__all__})
    assert dir(ops) == ops.__all__
    namespace: dict[str, Any] = {}
    exec("from rcnn_ext.ops import *", namespace)
    assert set(ops.__all__) <= set(namespace)
    assert namespace["nms"] is ops.nms


def test_editors_see_the_same_names() -> None:
    static: list[str] = []
    imported: set[str] = set()
    for node in ast.walk(ast.parse(Path(str(ops.__file__)).read_text())):
        match node:
            case (
                ast.Assign(targets=[ast.Name("__all__")], value=names)
                | ast.AugAssign(target=ast.Name("__all__"), value=names)
            ):
                static += ast.literal_eval(names)
            case ast.ImportFrom(module="torchvision.ops", names=aliases):
                imported |= {alias.name for alias in aliases}
    assert sorted(static) == ops.__all__
    assert {*torchvision.ops.__all__} - {*SHARED} <= imported


@pytest.mark.parametrize("name", torchvision.ops.__all__)
def test_everything_of_torchvision_is_there(name: str) -> None:
    mine, theirs = getattr(ops, name), getattr(torchvision.ops, name)
    if name in SHARED:
        assert mine.__module__.startswith("rcnn_ext.ops.")
    else:
        assert mine is theirs


# Parameters beyond torchvision's, by keyword only.
ADDED = {"MultiScaleRoIAlign": {"aligned"}}


def _parameters(function: Any) -> list[tuple[str, Any, Any]]:
    return [(p.name, p.default, p.kind) for p in inspect.signature(function).parameters.values()]


@pytest.mark.parametrize("name", SHARED)
def test_signatures_are_torchvisions(name: str) -> None:
    mine, theirs = getattr(ops, name), getattr(torchvision.ops, name)
    parameters = _parameters(mine)
    added = [p for p in parameters if p[0] in ADDED.get(name, ())]
    assert all(kind is inspect.Parameter.KEYWORD_ONLY for _, _, kind in added)
    assert [p for p in parameters if p not in added] == _parameters(theirs)
    if inspect.isclass(mine):
        assert _parameters(mine.forward) == _parameters(theirs.forward)
        assert callable(mine)


def test_modules_of_torchvision_are_there() -> None:
    from rcnn_ext.ops import boxes, misc

    assert boxes is torchvision.ops.boxes
    assert misc is torchvision.ops.misc


def test_a_name_that_neither_has() -> None:
    with pytest.raises(AttributeError, match="module 'rcnn_ext.ops' has no attribute 'hard_nms'"):
        ops.hard_nms  # noqa: B018
    with pytest.raises(AttributeError, match="no attribute '_private'"):
        ops._private  # noqa: B018
    with pytest.raises(ImportError, match="hard_nms"):
        exec("from rcnn_ext.ops import hard_nms")
    assert not hasattr(ops, "boxes_of_another_kind")
