from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from rcnn_ext import ops
from tests.helpers.backends import Backend
from tests.helpers.peer import torchvision
from tests.helpers.samples import FLOATING, assert_near, make_boxes

IMAGE_SHAPES = [(256, 320), (200, 256)]
STRIDES = {"0": 4, "1": 8, "2": 16, "3": 32}


def _pyramid(backend: Backend, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    maps = {
        name: torch.randn(2, 6, 256 // stride, 320 // stride).to(backend.device, dtype)
        for name, stride in STRIDES.items()
    }
    maps["pool"] = torch.randn(2, 6, 4, 5).to(backend.device, dtype)
    return maps


def _boxes(backend: Backend, count: int = 12) -> list[Tensor]:
    """Boxes of all sizes for two images."""
    generator = torch.Generator().manual_seed(0)
    result = []
    for image in range(2):
        boxes = make_boxes(count, size=64, seed=image)
        sizes = 2 ** (torch.rand(count, 1, generator=generator) * 3 - 1)
        result.append((boxes * sizes).to(backend.device))
    return result


def test_equals_torchvision(backend: Backend) -> None:
    maps, boxes = _pyramid(backend), _boxes(backend)
    for arguments in (
        {"output_size": 7, "sampling_ratio": 2},
        {"output_size": (3, 5), "sampling_ratio": 0},
        {"output_size": [2, 2], "sampling_ratio": -1, "canonical_scale": 64, "canonical_level": 3},
    ):
        mine = ops.MultiScaleRoIAlign(list(STRIDES), **arguments)
        theirs = torchvision.ops.MultiScaleRoIAlign(list(STRIDES), **arguments)
        on_cpu = {name: feature.cpu() for name, feature in maps.items()}
        expected = theirs(on_cpu, [b.cpu() for b in boxes], IMAGE_SHAPES)
        result = mine(maps, boxes, IMAGE_SHAPES)
        torch.testing.assert_close(result.cpu(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("side", [1, 56, 111.9, 112, 223.9, 224, 447.9, 448, 896, 4000])
def test_each_box_comes_from_the_level_of_its_size(backend: Backend, side: float) -> None:
    # Each map holds its level everywhere, and around it, so a bin says where it came from.
    maps = {
        name: torch.full((1, 1, 8192 // stride, 8192 // stride), math.log2(stride))
        for name, stride in STRIDES.items()
    }
    maps = {name: feature.to(backend.device) for name, feature in maps.items()}
    pooler = ops.MultiScaleRoIAlign(list(STRIDES), 1, 1)
    box = torch.tensor([[100.0, 100, 100 + side, 100 + side]], device=backend.device)
    level = pooler(maps, [box], [(8192, 8192)]).item()
    assert level == min(max(math.floor(4 + math.log2(side / 224) + 1e-6), 2), 5)


def test_one_map(backend: Backend) -> None:
    maps, boxes = _pyramid(backend), _boxes(backend)
    pooler = ops.MultiScaleRoIAlign(["2"], 3, 2)
    expected = ops.roi_align(maps["2"], boxes, 3, 1 / 16, 2)
    assert torch.equal(pooler(maps, boxes, IMAGE_SHAPES), expected)
    # Names that aren't there don't count.
    pooler = ops.MultiScaleRoIAlign(["2", "elsewhere"], 3, 2)
    assert torch.equal(pooler(maps, boxes, IMAGE_SHAPES), expected)


def test_strides_are_measured_anew(backend: Backend) -> None:
    # torchvision's keeps those of the first call.
    pooler = ops.MultiScaleRoIAlign(["0"], 2, 2)
    box = [torch.tensor([[0.0, 0, 32, 32]], device=backend.device)]
    features = {"0": torch.randn(1, 2, 16, 16).to(backend.device)}
    for image, scale in ((64, 1 / 4), (128, 1 / 8), (16, 1.0), (8, 2.0)):
        expected = ops.roi_align(features["0"], box, 2, scale, 2)
        assert torch.equal(pooler(features, box, [(image, image)]), expected)


def test_strides_of_a_flat_padded_image(backend: Backend) -> None:
    # A height of 40 padded to 64 has maps of height 16 at stride 4: 0.4 of 40, nearer to 1/2.
    pooler = ops.MultiScaleRoIAlign(["0"], 2, 2)
    for shape, image in (((16, 160), (40, 640)), ((160, 16), (640, 40))):
        features = {"0": torch.randn(1, 2, *shape).to(backend.device)}
        box = [torch.tensor([[0.0, 0, 32, 32]], device=backend.device)]
        expected = ops.roi_align(features["0"], box, 2, 1 / 4, 2)
        assert torch.equal(pooler(features, box, [image]), expected)


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_dtypes_and_gradients(backend: Backend, dtype: torch.dtype) -> None:
    maps, boxes = _pyramid(backend, dtype), _boxes(backend)
    boxes[0][0] = torch.tensor([0.0, 0, 320, 256])  # one for the coarsest map
    for feature in maps.values():
        feature.requires_grad_()
    pooler = ops.MultiScaleRoIAlign(list(STRIDES), 3, 2, canonical_scale=64)
    result = pooler(maps, boxes, IMAGE_SHAPES)
    assert result.dtype == dtype
    result.sum().backward()
    wide = {name: feature.detach().double() for name, feature in maps.items()}
    assert_near(result, pooler(wide, boxes, IMAGE_SHAPES))
    for name in STRIDES:
        assert maps[name].grad is not None
        assert maps[name].grad.any()
    assert maps["pool"].grad is None


def test_empty(backend: Backend) -> None:
    maps = _pyramid(backend)
    pooler = ops.MultiScaleRoIAlign(list(STRIDES), 3, 2)
    none = torch.empty(0, 4, device=backend.device)
    assert pooler(maps, [none, none], IMAGE_SHAPES).shape == (0, 6, 3, 3)
    boxes = _boxes(backend)
    alone = pooler(maps, [none, boxes[1]], IMAGE_SHAPES)
    assert torch.equal(alone, pooler(maps, boxes, IMAGE_SHAPES)[len(boxes[0]) :])


def test_odd_boxes(backend: Backend) -> None:
    maps = {name: torch.ones_like(feature) for name, feature in _pyramid(backend).items()}
    boxes = torch.tensor(
        [
            [math.nan, 0, 10, 10],
            [0, 0, math.inf, 10],
            [-math.inf, 0, 10, 10],
            [20, 20, 20, 20],
            [0, 0, 1e30, 1e30],
            [10, 10, 60, 60],
        ]
    ).to(backend.device)
    result = ops.MultiScaleRoIAlign(list(STRIDES), 2, 2)(maps, [boxes], IMAGE_SHAPES)
    assert result.isfinite().all()
    assert not result[:3].any()
    assert result[[3, 5]].eq(1).all()


def test_is_a_module_without_state() -> None:
    pooler = ops.MultiScaleRoIAlign(["a", "b"], 7, 2)
    assert not list(pooler.state_dict())
    assert pooler.output_size == (7, 7)
    assert repr(pooler) == (
        "MultiScaleRoIAlign(featmap_names=['a', 'b'], output_size=(7, 7), sampling_ratio=2)"
    )


def test_scales_and_map_levels_are_torchvisions(backend: Backend) -> None:
    maps, boxes = _pyramid(backend), _boxes(backend)
    names = list(STRIDES)
    mine = ops.MultiScaleRoIAlign(names, 3, 2, canonical_scale=64, canonical_level=3)
    theirs = torchvision.ops.MultiScaleRoIAlign(names, 3, 2, canonical_scale=64, canonical_level=3)
    assert mine.scales is None
    assert mine.map_levels is None
    for pooler in (mine, theirs):
        on_cpu = {name: feature.cpu() for name, feature in maps.items()}
        pooler(on_cpu, [b.cpu() for b in boxes], IMAGE_SHAPES)
    assert mine.scales == theirs.scales == [1 / 4, 1 / 8, 1 / 16, 1 / 32]
    assert mine.map_levels is not None
    on_cpu_boxes = [b.cpu() for b in boxes]
    assert torch.equal(mine.map_levels(on_cpu_boxes), theirs.map_levels(on_cpu_boxes))


def test_scales_and_map_levels_can_be_given(backend: Backend) -> None:
    maps, boxes = _pyramid(backend), _boxes(backend)
    pooler = ops.MultiScaleRoIAlign(list(STRIDES), 3, 2)
    expected = pooler(maps, boxes, IMAGE_SHAPES)
    measured = pooler.scales
    pooler.scales = measured
    # Sizes of images that are nothing to the scales given.
    assert torch.equal(pooler(maps, boxes, [(9999, 9999)]), expected)
    pooler.scales = None
    assert pooler.scales is None
    assert not torch.equal(pooler(maps, boxes, [(9999, 9999)]), expected)

    rois = [torch.cat([torch.full_like(b[:, :1], i), b], 1) for i, b in enumerate(boxes)]
    for level, (name, stride) in enumerate(STRIDES.items()):
        pooler.map_levels = lambda boxes, level=level: torch.full(
            (sum(map(len, boxes)),), level, device=backend.device
        )
        result = pooler(maps, boxes, IMAGE_SHAPES)
        assert torch.equal(result, ops.roi_align(maps[name], torch.cat(rois), 3, 1 / stride, 2))
    pooler.map_levels = None
    assert torch.equal(pooler(maps, boxes, IMAGE_SHAPES), expected)


class _PoolsByImage(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pooler = ops.MultiScaleRoIAlign(["0", "1"], 3, 2)

    def forward(self, image: Tensor, fine: Tensor, coarse: Tensor, boxes: Tensor) -> Tensor:
        return self.pooler({"0": fine, "1": coarse}, [boxes], [tuple(image.shape[-2:])])


def _padded_pyramid(height: int, width: int) -> tuple[Tensor, ...]:
    rows, columns = -(-height // 32) * 32, -(-width // 32) * 32
    boxes = torch.tensor([[0.0, 0, 20, 20], [5, 5, 30, 40], [0, 0, 400, 300]])
    maps = [torch.rand(1, 4, rows // stride, columns // stride) for stride in (4, 8)]
    return torch.empty(1, 3, height, width), *maps, boxes


@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_module_takes_pictures_of_every_shape(native: Backend, strict: bool) -> None:
    auto = torch.export.Dim.AUTO
    sides = {2: auto, 3: auto}
    exported = torch.export.export(
        _PoolsByImage(),
        _padded_pyramid(64, 96),  # wide
        dynamic_shapes=(sides, sides, sides, {0: auto}),
        strict=strict,
    ).module()
    for shape in [(64, 96), (96, 64), (64, 64), (100, 180), (333, 217)]:
        inputs = _padded_pyramid(*shape)
        assert torch.equal(exported(*inputs), _PoolsByImage()(*inputs))


def test_one_graph_takes_pictures_of_every_shape(native: Backend) -> None:
    counter = CompileCounter()
    compiled = torch.compile(_PoolsByImage(), backend=counter, fullgraph=True, dynamic=True)
    for shape in [(64, 96), (96, 64), (64, 64), (100, 180), (333, 217)]:
        inputs = _padded_pyramid(*shape)
        assert torch.equal(compiled(*inputs), _PoolsByImage()(*inputs))
    assert counter.frame_count == 1


def test_errors(backend: Backend) -> None:
    maps, boxes = _pyramid(backend), _boxes(backend)
    with pytest.raises(ValueError, match=r"MultiScaleRoIAlign: .* one of \['a', 'b'\], got \['0'"):
        ops.MultiScaleRoIAlign(["a", "b"], 7, 2)(maps, boxes, IMAGE_SHAPES)
    with pytest.raises(ValueError, match="MultiScaleRoIAlign: expected at least one image shape"):
        ops.MultiScaleRoIAlign(["0"], 7, 2)(maps, boxes, [])
    with pytest.raises(RuntimeError, match=r"MultiScaleRoIAlign: expected boxes\[1\] of shape"):
        ops.MultiScaleRoIAlign(["0"], 7, 2)(maps, [boxes[0], boxes[1][:, :3]], IMAGE_SHAPES)
    with pytest.raises(ValueError, match="MultiScaleRoIAlign: expected output_size of one or two"):
        ops.MultiScaleRoIAlign(["0"], (7, 7, 7), 2)


def test_aligned_is_that_of_roi_align(backend: Backend) -> None:
    maps = _pyramid(backend)
    # Sides of 60 to 100 belong to the second level of three, sides of 10 to the first.
    boxes = [torch.tensor([[10.0, 20, 90, 100], [3, 4, 13, 14]]).to(backend.device)] * 2
    pooler = ops.MultiScaleRoIAlign(["0", "1"], 3, 2, canonical_scale=64, canonical_level=3)
    aligned = ops.MultiScaleRoIAlign(
        ["0", "1"], 3, 2, canonical_scale=64, canonical_level=3, aligned=True
    )
    result = aligned(maps, boxes, IMAGE_SHAPES)
    for row, (image, box, level) in enumerate(
        (image, box, level) for image in range(2) for box, level in ((0, "1"), (1, "0"))
    ):
        one = maps[level][image : image + 1]
        expected = ops.roi_align(
            one, [boxes[image][box : box + 1]], 3, 1 / STRIDES[level], 2, aligned=True
        )
        torch.testing.assert_close(result[row], expected[0])
    assert not torch.allclose(result, pooler(maps, boxes, IMAGE_SHAPES))


def test_levels_are_those_of_torchvision(backend: Backend) -> None:
    # Areas around every boundary, by some units in the last place, and anywhere.
    sides = 224.0 * 2.0 ** torch.arange(-4.0, 3.0)
    steps = torch.tensor([-300.0, -40, -9, -8, -4, -2, -1, 0, 1, 2, 8, 40])
    near = (sides[:, None] * (1 + steps * 2.0**-23)).flatten()
    anywhere = 2 ** (torch.rand(400) * 12)
    widths = torch.cat([near, anywhere])
    boxes = torch.stack([torch.zeros(()).expand_as(widths)] * 2 + [widths, widths], dim=1)
    expected = torchvision.ops.poolers.initLevelMapper(2, 5)([boxes])
    # The one sample of a box lies in its middle, on the map of every level.
    maps = [torch.full((1, 1, 70, 70), float(level), device=backend.device) for level in range(4)]
    rois = torch.cat([torch.zeros(len(boxes), 1), boxes], dim=1).to(backend.device)
    pooled = ops.multiscale_roi_align(maps, rois, 1, [1 / 4, 1 / 8, 1 / 16, 1 / 32], 1)
    assert pooled.flatten().round().tolist() == expected.tolist()


def test_operator_equals_roi_align_of_each_level(backend: Backend) -> None:
    maps = [feature.requires_grad_() for feature in list(_pyramid(backend).values())[:3]]
    boxes = _boxes(backend)
    scales = [1 / 4, 1 / 8, 1 / 16]
    options = {"canonical_scale": 30.0, "canonical_level": 3}
    result = ops.multiscale_roi_align(maps, boxes, (3, 5), scales, 2, True, **options)
    grad = torch.randn(result.shape).to(backend.device)
    grads = torch.autograd.grad(result, maps, grad)
    rois = torch.cat(
        [torch.cat([torch.full_like(b[:, :1], i), b], dim=1) for i, b in enumerate(boxes)]
    )
    side = ((rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2])).sqrt()
    level = (3 + (side / 30).log2() + 1e-6).floor().clamp(2, 4) - 2
    assert level.unique().numel() == 3
    for number, (feature, scale) in enumerate(zip(maps, scales, strict=True)):
        members = level == number
        expected = ops.roi_align(feature, rois[members], (3, 5), scale, 2, True)
        assert torch.equal(result[members], expected)
        (expected_grad,) = torch.autograd.grad(expected, feature, grad[members])
        assert torch.equal(grads[number], expected_grad)


def test_operator_gradcheck(backend: Backend) -> None:
    maps = [
        torch.randn(1, 1, side, side, dtype=torch.float64, device=backend.device).requires_grad_()
        for side in (4, 2)
    ]
    rois = torch.tensor([[0.0, 0, 0, 2, 3], [0, 1, 1, 4, 4]], device=backend.device).double()

    def function(*x: Tensor) -> Tensor:
        return ops.multiscale_roi_align(
            x, rois, (2, 1), [1.0, 0.5], 2, canonical_scale=3, canonical_level=1
        )

    assert torch.autograd.gradcheck(function, maps)
    assert torch.autograd.gradgradcheck(function, maps)


def test_levels_in_any_layout(backend: Backend) -> None:
    maps = list(_pyramid(backend).values())[:2]
    boxes, scales = _boxes(backend), [1 / 4, 1 / 8]
    expected = ops.multiscale_roi_align(maps, boxes, 3, scales, 2)
    last = [feature.contiguous(memory_format=torch.channels_last) for feature in maps]
    for mixed in (last, [last[0], maps[1]], [maps[0], last[1]]):
        result = ops.multiscale_roi_align(mixed, boxes, 3, scales, 2)
        assert_near(result, expected)
        assert result.stride() == ((54, 1, 18, 6) if mixed[0] is last[0] else (54, 9, 3, 1))


def test_operator_errors(backend: Backend) -> None:
    maps = list(_pyramid(backend).values())[:2]
    rois = torch.zeros(1, 5, device=backend.device)

    def refuses(message: str, *arguments: object, **options: object) -> None:
        with pytest.raises(RuntimeError, match=message):
            ops.multiscale_roi_align(*arguments, **options)  # type: ignore[arg-type]

    two = [1 / 4, 1 / 8]
    refuses("expected a spatial_scale for each of the 2 levels, got 1", maps, rois, 2, [0.25])
    refuses("expected 1 to 32 levels, got 0", [], rois, 2, [])
    refuses("expected 1 to 32 levels, got 33", maps[:1] * 33, rois, 2, [0.25] * 33)
    refuses("positive, finite spatial_scale, got 0", maps, rois, 2, [0.25, 0])
    coarse_first = [1 / 32, 1 / 8]
    refuses("finest level first, got .* from 0.03125 to 0.125", maps, rois, 2, coarse_first)
    refuses("canonical_scale, got -1", maps, rois, 2, two, canonical_scale=-1.0)
    refuses("a positive output size, got 0 x -2", maps, rois, (0, -2), two)
    refuses("one dtype, batch size and depth", [maps[0], maps[1][:, :3]], rois, 2, two)
    refuses("one dtype, .* float32 .* and float64", [maps[0], maps[1].double()], rois, 2, two)
    refuses(r"input of shape \[N, C, H, W\], got \[6", [maps[0], maps[1][0]], rois, 2, two)
    refuses("sampling_ratio of at most 4096, got 1000000000", maps, rois, 2, two, 10**9)
    assert ops.multiscale_roi_align(maps, rois, (0, 2), two).shape == (1, 6, 0, 2)
    refuses("expected 1 to 32 levels, got 0", [], rois, 0, [])
    rois[0, 0] = 2
    if backend.checks_batch_index:
        with pytest.raises(IndexError, match=r"multiscale_roi_align: rois\[0, 0\] is 2, not a"):
            ops.multiscale_roi_align(maps, rois, 2, two)
    else:
        assert not ops.multiscale_roi_align(maps, rois, 2, two).any()
