"""``from rcnn_ext import ops`` in place of ``from torchvision import ops``."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
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
MEASURES = ("complete", "distance", "generalized")
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
    from rcnn_ext.ops import focal_loss, misc

    assert misc is torchvision.ops.misc
    assert focal_loss is torchvision.ops.focal_loss
    assert importlib.import_module("rcnn_ext.ops.misc") is torchvision.ops.misc
    assert importlib.import_module("rcnn_ext.ops.giou_loss") is torchvision.ops.giou_loss
    assert misc.__spec__.name == "torchvision.ops.misc"
    with pytest.raises(ModuleNotFoundError, match=r"rcnn_ext\.ops\.hard_nms"):
        importlib.import_module("rcnn_ext.ops.hard_nms")


def test_modules_with_operators_of_this_package() -> None:
    from rcnn_ext.ops import boxes, poolers
    from rcnn_ext.ops.boxes import box_area, nms
    from rcnn_ext.ops.poolers import MultiScaleRoIAlign

    assert nms is boxes.nms is ops.nms
    for name in ("batched_nms", "box_iou", *(f"{k}_box_iou" for k in MEASURES)):
        assert getattr(boxes, name) is getattr(ops, name)
    assert MultiScaleRoIAlign is poolers.MultiScaleRoIAlign is ops.MultiScaleRoIAlign
    # The rest is torchvision's, private names included.
    assert box_area is torchvision.ops.box_area
    assert boxes._box_inter_union is torchvision.ops.boxes._box_inter_union
    assert poolers.LevelMapper is torchvision.ops.poolers.LevelMapper
    for module in (boxes, poolers):
        with pytest.raises(AttributeError, match="hard_nms"):
            module.hard_nms  # noqa: B018
        with pytest.raises(AttributeError, match="__hard_nms__"):
            module.__hard_nms__  # noqa: B018


def test_importing_a_module_hides_no_function() -> None:
    script = """
import rcnn_ext.ops.misc, rcnn_ext.ops.nms, rcnn_ext.ops.ps_roi_align, rcnn_ext.ops.stochastic_depth
from rcnn_ext.ops.ps_roi_pool import PSRoIPool
from rcnn_ext import ops
import torchvision
for name in ("ps_roi_align", "ps_roi_pool", "stochastic_depth"):
    assert getattr(ops, name) is getattr(torchvision.ops, name), name
assert ops.misc is torchvision.ops.misc
assert ops.nms.__module__ == "rcnn_ext.ops.nms" and PSRoIPool is torchvision.ops.PSRoIPool
"""
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize("first", ["", "import torchvision"])
def test_in_the_place_of_torchvisions_module(first: str) -> None:
    script = f"""
import sys
{first}
import rcnn_ext.ops
sys.modules["torchvision.ops"] = rcnn_ext.ops
import torchvision
from torchvision.ops import box_area, boxes, misc, nms
from torchvision.ops.boxes import batched_nms
from torchvision.ops.misc import FrozenBatchNorm2d
assert nms is rcnn_ext.ops.nms
assert misc.FrozenBatchNorm2d is FrozenBatchNorm2d is rcnn_ext.ops.FrozenBatchNorm2d
assert box_area.__module__ == "torchvision.ops.boxes"
assert sys.modules["torchvision.ops"] is rcnn_ext.ops
assert len(rcnn_ext.ops.__all__) > 40 and not hasattr(rcnn_ext.ops, "hard_nms")
import torch
from torchvision.models.detection import fasterrcnn_resnet50_fpn
assert rcnn_ext.ops.box_iou(torch.tensor([[5.0, 5, 4, 4, 0]]), torch.tensor([[5.0, 5, 4, 4, 0]]),
                            fmt="cxcywhr").shape == (1, 1)
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_name_that_neither_has() -> None:
    with pytest.raises(AttributeError, match="module 'rcnn_ext.ops' has no attribute 'hard_nms'"):
        ops.hard_nms  # noqa: B018
    with pytest.raises(AttributeError, match="no attribute '_private'"):
        ops._private  # noqa: B018
    with pytest.raises(ImportError, match="hard_nms"):
        exec("from rcnn_ext.ops import hard_nms")
    assert not hasattr(ops, "boxes_of_another_kind")
