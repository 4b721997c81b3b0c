"""The operators as FlopCounterMode counts them, against counts by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from rcnn_ext import ops
from rcnn_ext.ops._flops import FORMULAS
from tests.helpers.backends import Backend
from tests.helpers.run_python import run_python
from tests.helpers.samples import make_boxes


def _count(function: Callable[[], object]) -> dict[str, int]:
    with FlopCounterMode(display=False) as counter:
        function()
    counts = counter.get_flop_counts().get("Global", {})
    return {str(operator).rpartition(".")[2]: count for operator, count in counts.items()}


MAPS = torch.rand(2, 3, 16, 16)
# Of 8 x 4 and of 4 x 12 feature pixels at a scale of 1/2, (width, height).
ROIS = torch.tensor([[0.0, 0, 0, 16, 8], [1, 4, 0, 12, 24]])


def test_roi_align(backend: Backend) -> None:
    maps, rois = MAPS.to(backend.device).requires_grad_(), ROIS.to(backend.device)
    # Four products with sums for each sample: 2 RoIs, 3 channels, 2 x 4 bins of 3 x 3 samples.
    by_hand = 2 * 3 * (2 * 4) * (3 * 3) * 8
    assert _count(lambda: ops.roi_align(maps, rois, (2, 4), 0.5, 3).sum().backward()) == {
        "roi_align": by_hand,
        "roi_align_backward": by_hand,
    }
    # One sample per feature pixel: bins of (4/2, 8/4) and of (12/2, 4/4) (height, width).
    by_hand = 3 * (2 * 4) * (2 * 2 + 6 * 1) * 8
    assert _count(lambda: ops.roi_align(maps, rois, (2, 4), 0.5).sum().backward()) == {
        "roi_align": by_hand,
        "roi_align_backward": by_hand,
    }


def test_samples_of_rois_without_extent() -> None:
    broken = torch.tensor([[0, 8.0, 8, 4, 4], [0, 0, 0, torch.nan, 4], [0, 0, 0, torch.inf, 4]])
    assert _count(lambda: ops.roi_align(MAPS, broken, 1, 1.0, -1, True)) == {"roi_align": 0}
    # Without `aligned` a RoI is one pixel wide and high at least.
    assert _count(lambda: ops.roi_align(MAPS, broken[:1], 1)) == {"roi_align": 3 * 8}


def test_multiscale_roi_align(backend: Backend) -> None:
    maps = [MAPS.to(backend.device), MAPS[:, :, ::2, ::2].to(backend.device).requires_grad_()]
    rois = torch.tensor([[0.0, 0, 0, 16, 16], [0, 0, 0, 64, 32]], device=backend.device)

    def pool(ratio: int) -> Callable[[], object]:
        return lambda: ops.multiscale_roi_align(maps, rois, 2, [1 / 4, 1 / 8], ratio).sum()

    by_hand = 2 * 3 * (2 * 2) * (2 * 2) * 8
    assert _count(lambda: pool(2)().backward()) == {  # type: ignore[attr-defined]
        "multiscale_roi_align": by_hand,
        "multiscale_roi_align_backward": by_hand,
    }
    # Both are small, and so are pooled from the level of stride 4: 4 x 4 and 8 x 16 pixels.
    by_hand = 3 * (2 * 2) * (2 * 2 + 4 * 8) * 8
    assert _count(pool(-1)) == {"multiscale_roi_align": by_hand}
    rois = rois * torch.tensor([1.0, 4, 4, 4, 4], device=backend.device)
    # 64 x 64 stays there, 256 x 128 belongs to the level of stride 8: 16 x 16 and 16 x 32 pixels.
    by_hand = 3 * (2 * 2) * (8 * 8 + 8 * 16) * 8
    assert _count(pool(-1)) == {"multiscale_roi_align": by_hand}


def test_roi_pool(backend: Backend) -> None:
    maps = MAPS.to(backend.device).requires_grad_()
    # 4 x 4 whole pixels in bins of 2 x 2.
    rois = torch.tensor([[0.0, 2, 2, 5, 5]], device=backend.device)
    assert _count(lambda: ops.roi_pool(maps, rois, 2).sum().backward()) == {
        "roi_pool": 3 * 4 * 4,
        "roi_pool_backward": 3 * 2 * 2,
    }


@pytest.mark.parametrize(
    ("name", "per_pair", "per_box"),
    [
        ("box_iou", 12, 3),
        ("generalized_box_iou", 24, 3),
        ("distance_box_iou", 39, 3),
        ("complete_box_iou", 48, 5),
        ("box_ios", 11, 3),
    ],
)
def test_box_iou_family(backend: Backend, name: str, per_pair: int, per_box: int) -> None:
    boxes = make_boxes(7).to(backend.device).requires_grad_()
    other = make_boxes(5, seed=1).to(backend.device)
    by_hand = 7 * 5 * per_pair + (7 + 5) * per_box
    assert _count(lambda: getattr(ops, name)(boxes, other).sum().backward()) == {
        "box_iou": by_hand,
        "box_iou_backward": 3 * by_hand,
    }


def test_match_boxes(backend: Backend) -> None:
    gts = [make_boxes(count).to(backend.device) for count in (2, 3)]
    boxes = make_boxes(9).to(backend.device)
    by_hand = (2 * 9 * 12 + 11 * 3) + (3 * 9 * 12 + 12 * 3)
    assert _count(lambda: ops.batched_match_boxes(gts, boxes, 0.5, 0.5)) == {"match_boxes": by_hand}
    by_hand = (2 * 4 * 12 + 6 * 3) + (3 * 5 * 12 + 8 * 3)
    assert _count(lambda: ops.batched_match_boxes(gts, [boxes[:4], boxes[4:]], 0.5, 0.5)) == {
        "match_boxes": by_hand
    }


def test_winograd_counts_as_the_direct_convolution() -> None:
    x, weight = torch.rand(2, 16, 6, 9), torch.rand(32, 16, 3, 3)
    bias = torch.rand(32)
    direct = _count(lambda: torch.nn.functional.conv2d(x, weight, bias, padding=1))
    assert direct == {"convolution": 2 * 32 * (16 * 9) * (6 * 9) * 2}
    packed = ops.conv_winograd.pack(weight)
    assert _count(lambda: ops.conv_winograd.conv(x, packed, bias)) == {
        "conv3x3_winograd": direct["convolution"]
    }
    out = torch.empty(2, 32, 6, 9).to(memory_format=torch.channels_last)
    assert _count(lambda: ops.conv_winograd.conv(x, packed, bias, out=out)) == {
        "conv3x3_winograd_out": direct["convolution"]
    }


def test_total_of_a_network() -> None:
    class Head(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 4, 3, padding=1)
            self.align = ops.RoIAlign(2, 0.5, 2)
            self.score = torch.nn.Linear(4 * 2 * 2, 5)

        def forward(self, x: Tensor, rois: Tensor) -> Tensor:
            return self.score(self.align(self.conv(x), rois).flatten(1))

    head = Head()
    with FlopCounterMode(display=False) as counter:
        head(MAPS, ROIS)
    convolution, pooling = 2 * (2 * 4 * 16 * 16) * (3 * 9), 8 * (2 * 4 * 2 * 2) * (2 * 2)
    assert counter.get_total_flops() == convolution + pooling + 2 * 2 * (4 * 2 * 2) * 5
    assert sum(counter.get_flop_counts()["Head.align"].values()) == pooling


def test_counts_without_values() -> None:
    with FakeTensorMode():
        maps, rois = torch.empty(2, 3, 16, 16), torch.empty(4, 5)
        assert _count(lambda: ops.roi_align(maps, rois, 2, sampling_ratio=2)) == {
            "roi_align": 4 * 3 * 4 * 4 * 8
        }
        # Where the number of samples depends on the RoIs: one for each bin.
        assert _count(lambda: ops.roi_align(maps, rois, 2)) == {"roi_align": 4 * 3 * 4 * 8}
        assert _count(lambda: ops.multiscale_roi_align([maps], rois, 2, [1.0])) == {
            "multiscale_roi_align": 4 * 3 * 4 * 8
        }
        assert _count(lambda: ops.roi_pool(maps, rois, 2)) == {"roi_pool": 4 * 3 * 4}


def test_suppression_counts_nothing() -> None:
    boxes, scores = make_boxes(5), torch.rand(5)
    assert _count(lambda: ops.nms(boxes, scores, 0.5)) == {}


def test_every_backward_is_counted() -> None:
    backwards = {name for name in ops._library.schemas if name.endswith("_backward")}
    assert backwards <= {*FORMULAS}
    assert {name.removesuffix("_backward") for name in backwards} <= {*FORMULAS}


_COUNT = """
with FlopCounterMode(display=False) as counter:
    rcnn_ext.ops.roi_align(torch.rand(1, 3, 8, 8), torch.tensor([[0.0, 0, 0, 8, 8]]), 2, 1.0, 2)
assert counter.get_total_flops() == 3 * 4 * 4 * 8, counter.get_total_flops()
"""


def test_either_may_be_imported_first() -> None:
    run_python(
        "import torch\nfrom torch.utils.flop_counter import FlopCounterMode\n"
        "import rcnn_ext.ops\n" + _COUNT
    )
    run_python(
        "import importlib, importlib.util, inspect, sys, torch, rcnn_ext.ops\n"
        "assert 'torch.utils.flop_counter' not in sys.modules\n"
        "assert importlib.util.find_spec('torch.utils.flop_counter') is not None\n"
        "assert 'torch.utils.flop_counter' not in sys.modules\n"
        "from torch.utils.flop_counter import FlopCounterMode\n"
        + _COUNT
        + "assert 'class FlopCounterMode' in inspect.getsource(FlopCounterMode)\n"
        "importlib.reload(sys.modules['torch.utils.flop_counter'])\n"
        "from torch.utils.flop_counter import FlopCounterMode\n" + _COUNT
    )


def test_a_counter_that_changed_does_not_break_its_import() -> None:
    run_python(
        "import sys, types, warnings, torch, rcnn_ext.ops\n"
        "from rcnn_ext.ops import _flops\n"
        "_flops.FORMULAS['no_such_operator'] = len\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        "    import torch.utils.flop_counter as counter\n"
        "assert counter.FlopCounterMode and 'not counted' in str(caught[-1].message)\n"
    )
