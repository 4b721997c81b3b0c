"""The CPU kernels of the RoI operators: every instruction set and number of threads, same bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from rcnn_ext import _extension, ops
from tests.helpers.samples import FLOATING, channels_last, make_rois

OPERATORS: dict[str, Callable[..., Tensor]] = {
    "roi_align": lambda x, rois, size: ops.roi_align(x, rois, size, 0.25, 2, True),
    "roi_align_adaptive": lambda x, rois, size: ops.roi_align(x, rois, size, 0.25),
    "multiscale_roi_align": lambda x, rois, size: ops.multiscale_roi_align(
        [x, x[..., ::2, ::2]], rois, size, [0.25, 0.125], 2, canonical_scale=100.0
    ),
    "roi_pool": lambda x, rois, size: ops.roi_pool(x, rois, size, 0.25),
}


@pytest.fixture(autouse=True)
def keep_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def _bits(tensor: Tensor) -> Tensor:
    kinds = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.contiguous().view(kinds[tensor.dtype.itemsize])


def _run(
    operator: Callable[..., Tensor], x: Tensor, rois: Tensor, size: object, isa: str, threads: int
) -> tuple[Tensor, Tensor]:
    torch.set_num_threads(threads)
    x = x.detach().requires_grad_()
    with _extension.use_instruction_set(isa):
        result = operator(x, rois, size)
        grad = torch.randn(result.shape, generator=torch.Generator().manual_seed(7)).to(x.dtype)
        (input_grad,) = torch.autograd.grad(result, x, grad)
    return result.detach(), input_grad


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
@pytest.mark.parametrize(
    ("channels", "height", "width", "size"),
    [(37, 50, 75, 7), (5, 30, 90, (3, 9)), (3, 9, 5, (8, 17)), (1, 120, 130, (14, 16))],
    ids=str,
)
def test_same_bits(
    operator: Callable[..., Tensor],
    dtype: torch.dtype,
    layout: str,
    channels: int,
    height: int,
    width: int,
    size: object,
) -> None:
    x = torch.randn(2, channels, height, width).to(dtype)
    if layout == "channels_last" and channels > 1:
        x = channels_last(x)
    # From within a pixel to all of the map and beyond it; far more than one thread's chunk.
    rois = make_rois(150, 2, size=4 * max(height, width))
    rois[::3, 3:] = rois[::3, 1:3] + torch.rand(50, 2) * 40
    expected = _run(operator, x, rois, size, "baseline", 1)
    for isa in _extension.instruction_sets():
        for threads in (1, 2, 3):
            actual = _run(operator, x, rois, size, isa, threads)
            for a, b in zip(actual, expected, strict=True):
                assert torch.equal(_bits(a), _bits(b)), f"{isa}, {threads} threads"


# Few channels are taken plane by plane, more in the lanes of registers.
@pytest.mark.parametrize("channels", [4, 20])
@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
def test_special_values_are_the_same_everywhere(
    operator: Callable[..., Tensor], channels: int
) -> None:
    x = torch.randn(1, channels, 40, 60)
    special = torch.tensor([torch.nan, torch.inf, -torch.inf, -0.0])
    places = x.view(-1)[: 4 * 40 * 60 : 97]
    places.copy_(special.repeat(25)[: places.numel()])
    rois = make_rois(60, 1, size=200)
    for features in (x, channels_last(x)):
        with _extension.use_instruction_set("baseline"):
            expected = operator(features, rois, 7)
        assert expected.isnan().any()
        assert expected.isfinite().any()
        for isa in _extension.instruction_sets():
            with _extension.use_instruction_set(isa):
                actual = operator(features, rois, 7)
            assert torch.equal(actual.isnan(), expected.isnan()), isa
            assert torch.equal(_bits(actual.nan_to_num(7)), _bits(expected.nan_to_num(7))), isa


# With rows that end on a cache line, and rows that do not.
@pytest.mark.parametrize("channels", [48, 50])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
def test_a_large_result_is_that_of_its_parts(
    operator: Callable[..., Tensor], dtype: torch.dtype, channels: int
) -> None:
    x = torch.randn(2, channels, 30, 40).to(dtype)
    count = 1 + (1 << 23) // (channels * 49 * dtype.itemsize)  # beyond 8 MiB
    rois = make_rois(count, 2, size=200)
    for isa in _extension.instruction_sets():
        for threads in (1, 2):
            torch.set_num_threads(threads)
            with _extension.use_instruction_set(isa):
                whole = operator(x, rois, 7)
                parts = torch.cat([operator(x, part, 7) for part in rois.split(count // 2)])
            assert torch.equal(_bits(whole), _bits(parts)), f"{isa}, {threads} threads"


# With many RoIs the map is transposed to channels-last; with few RoIs or few channels it is not.
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_maps_with_few_rois_and_with_many(dtype: torch.dtype) -> None:
    fine = torch.randn(2, 21, 120, 160).to(dtype)
    coarse = torch.randn(2, 21, 60, 80).to(dtype)
    rois = make_rois(200, 2, size=600)
    rois[:, 3:] = rois[:, 1:3] + 150 + torch.rand(200, 2) * 200
    rois[:7, 3:] = rois[:7, 1:3] + 10 + torch.rand(7, 2) * 50
    few = torch.arange(7)

    def pool(channels: slice) -> Tensor:
        maps = [fine[:, channels], coarse[:, channels]]
        scales = [0.25, 0.125]
        return ops.multiscale_roi_align(
            maps, rois, 7, scales, 2, canonical_scale=100.0, canonical_level=3
        )

    for isa in _extension.instruction_sets():
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            with _extension.use_instruction_set(isa):
                whole = pool(slice(None))
                parts = torch.cat([pool(slice(c, c + 7)) for c in (0, 7, 14)], 1)
                alone = ops.roi_align(fine, rois[few], 7, 0.25, 2)
            assert torch.equal(_bits(whole), _bits(parts)), f"{isa}, {threads} threads"
            assert torch.equal(_bits(whole[few]), _bits(alone)), f"{isa}, {threads} threads"


# Subnormal float16 numbers are normal in float32.
@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
def test_subnormal_halves_where_subnormal_numbers_are_flushed(
    operator: Callable[..., Tensor],
) -> None:
    x = torch.arange(-1500, 1500, dtype=torch.int16).view(1, 1, 50, 60)
    x = (x.abs() | (x.sign() << 15)).view(torch.float16).repeat(1, 20, 1, 1)
    rois = make_rois(40, 1, size=200)
    boxes = (torch.arange(1, 1401) * 2.0**-24).half()[:, None] * torch.tensor([0, 0, 1, 1]).half()
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor keeps them")
    try:
        results = []
        for isa in _extension.instruction_sets():
            result, grad = _run(operator, x, rois, 7, isa, threads=1)
            with _extension.use_instruction_set(isa):
                _, best = ops.match_boxes(boxes[5::100], boxes, 0.5, 0.3)
            results.append((isa, result, grad, best))
    finally:
        torch.set_flush_denormal(False)
    assert results[0][1].count_nonzero() > 0
    for isa, *tensors in results[1:]:
        for tensor, expected in zip(tensors, results[0][1:], strict=True):
            assert torch.equal(_bits(tensor), _bits(expected)), isa


# With so many RoIs the backward takes several channels at once; 6 is not a multiple of that.
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_gradient_of_many_rois(dtype: torch.dtype) -> None:
    x = torch.randn(1, 6, 20, 24).to(dtype)
    rois = make_rois(4100, 1, size=100)
    operator = OPERATORS["roi_align"]
    runs = [
        _run(operator, x, rois, 2, isa, threads)[1]
        for isa in _extension.instruction_sets()
        for threads in (1, 2)
    ]
    for grad in runs[1:]:
        assert torch.equal(_bits(grad), _bits(runs[0]))
    exact = x.double().requires_grad_()
    with ops.use_backend("reference"):
        result = operator(exact, rois.double(), 2)
    grad = torch.randn(4100, 6, 2, 2, generator=torch.Generator().manual_seed(7)).to(dtype)
    (expected,) = torch.autograd.grad(result, exact, grad.double())
    rounding = torch.finfo(dtype).eps
    torch.testing.assert_close(runs[0].double(), expected, rtol=4 * rounding, atol=1e-4)
