"""Calls of the RoI operators, around the sizes at which a kernel begins a new tile or round."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rcnn_ext import ops
from tests.helpers.emulation.case import Case, boxes


def rois(count: int, images: int, size: float = 100.0) -> Tensor:
    """RoIs ``[count, 5]``; every seventh belongs to no image, some lie outside of the map."""
    index = torch.randint(0, images, (count, 1)).float()
    index[3::7] = images
    index[5::14] = -1
    made = torch.cat([index, boxes(count, size)], dim=1)
    made[2::9, 1:] -= size / 2
    return made


def features(
    *shape: int, channels_last: bool = False, dtype: torch.dtype = torch.float32
) -> Tensor:
    """A map ``[N, C, H, W]`` that wants its gradient."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    made = torch.randn(shape).to(dtype)
    return made.contiguous(memory_format=layout).requires_grad_()


def _roi_cases() -> list[Case]:
    made = []

    def add(name: str, call: Callable, make: Callable[[bool], tuple[Tensor, ...]], **options):
        for layout in ("contiguous", "channels_last"):
            last = layout == "channels_last"
            exact = call is pool and options.get("tolerance", 0) == 0
            made.append(
                Case(f"{name}-{layout}", lambda last=last: make(last), call, exact=exact, **options)
            )

    def align(x: Tensor, r: Tensor) -> Tensor:
        return ops.roi_align(x, r, (3, 2), 0.25, 2, aligned=True)

    def align_adaptive(x: Tensor, r: Tensor) -> Tensor:
        return ops.roi_align(x, r, (2, 3), 0.25, -1, aligned=False)

    def align_many_bins(x: Tensor, r: Tensor) -> Tensor:
        return ops.roi_align(x, r, (17, 18), 0.25, 1, aligned=True)

    def align_tall(x: Tensor, r: Tensor) -> Tensor:
        # More bins along an axis than a table has room for taps.
        return ops.roi_align(x, r, (513, 1), 0.25, 1, aligned=True)

    def align_broad(x: Tensor, r: Tensor) -> Tensor:
        return ops.roi_align(x, r, (1, 513), 0.25, 1, aligned=True)

    def pool(x: Tensor, r: Tensor) -> Tensor:
        return ops.roi_pool(x, r, (3, 2), 0.25)

    def pool_many_bins(x: Tensor, r: Tensor) -> Tensor:
        return ops.roi_pool(x, r, (17, 18), 0.25)

    def pool_tall(x: Tensor, r: Tensor) -> Tensor:
        # More bins along the axes than have a table.
        return ops.roi_pool(x, r, (1024, 1), 0.25)

    def small(last: bool, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
        # The map ends inside a tile, and the channels inside a block of 8.
        return features(2, 11, 11, 37, channels_last=last, dtype=dtype), rois(23, 2, 140)

    def few(last: bool) -> tuple[Tensor, ...]:
        return features(2, 3, 9, 10, channels_last=last), rois(3, 2, 40)

    def many_rois(last: bool) -> tuple[Tensor, ...]:
        return features(2, 2, 9, 33, channels_last=last), rois(300, 2, 130)

    def apart(last: bool) -> tuple[Tensor, ...]:
        # Tiles that none of the first 256 RoIs reaches, and tiles that no other reaches.
        made = rois(300, 1, 60)
        made[:256, 1::2] += 200
        return features(1, 2, 9, 70, channels_last=last), made

    def tiles(last: bool) -> tuple[Tensor, ...]:
        # Several tiles, whether 8 or 32 wide, and bins with samples on both sides of each border.
        return features(1, 8, 9, 80, channels_last=last), rois(60, 1, 300)

    def odd(last: bool) -> tuple[Tensor, ...]:
        # Beyond any integer, of no place at all, and turned around.
        made = rois(20, 2, 140)
        for row, (x1, y1, x2, y2) in enumerate(
            (
                (1e12, 2.0, 1e12, 40.0),
                (3.0, -1e12, 30.0, -1e12),
                (-1e12, -1e12, 1e12, 1e12),
                (float("nan"), 2.0, 20.0, 40.0),
                (2.0, 5.0, float("inf"), 40.0),
                (80.0, 30.0, 10.0, 2.0),
                (9.0, 9.0, 9.0, 9.0),
            )
        ):
            made[row] = torch.tensor([row % 2, x1, y1, x2, y2])
        return features(2, 3, 11, 37, channels_last=last), made

    def full_round(last: bool) -> tuple[Tensor, ...]:
        # As many RoIs as a block looks at together.
        return features(1, 2, 9, 9, channels_last=last), rois(256, 1, 40)

    def many_channels(last: bool) -> tuple[Tensor, ...]:
        return features(1, 260, 3, 5, channels_last=last), rois(3, 1, 20)

    def vectors(last: bool, dtype: torch.dtype) -> tuple[Tensor, ...]:
        # Channels fill loads of 16 bytes, and more than a warp of them.
        return features(2, 272, 5, 6, channels_last=last, dtype=dtype), rois(4, 2, 30)

    def unaligned(last: bool) -> tuple[Tensor, ...]:
        # The channels would fill loads of 16 bytes, but the map begins one element too late.
        x = features(2, 8, 9, 10, channels_last=last).detach()
        memory = torch.empty(x.numel() + 1)[1:]
        x = memory.as_strided(x.shape, x.stride()).copy_(x)
        return x.requires_grad_(), rois(9, 2, 40)

    def wide(last: bool) -> tuple[Tensor, ...]:
        # More taps than a table has room for; the second RoI has few.
        made = torch.tensor([[1, -3.0, 0.2, 2600, 8.3], [0, 5, 1, 70, 9]])
        return features(2, 3, 3, 650, channels_last=last), made

    def align_wide(x: Tensor, r: Tensor) -> Tensor:
        return ops.roi_align(x, r, (2, 1), 0.25, -1, aligned=True)

    def pyramid(x: Tensor, r: Tensor) -> Tensor:
        # Levels of three sizes, of the one map so that all of them show in its gradient.
        maps = [x, x[..., :7, :20], x[..., 2:5, 1:9]]
        return ops.multiscale_roi_align(
            maps, r, (3, 2), [1 / 4, 1 / 8, 1 / 16], 2, True, canonical_scale=50.0
        )

    for name, call in (("roi_align", align), ("roi_pool", pool), ("multiscale_roi_align", pyramid)):
        add(name, call, small)
        add(f"{name}-many-rois", call, many_rois)
        add(f"{name}-apart", call, apart)
        add(f"{name}-many-channels", call, many_channels)
        add(f"{name}-odd", call, odd)
        for dtype, tolerance in ((torch.float16, 4e-3), (torch.bfloat16, 3e-2)):
            add(f"{name}-{dtype}", call, lambda last, d=dtype: small(last, d), tolerance=tolerance)
        add(f"{name}-float64", call, lambda last: small(last, torch.float64))
        add(f"{name}-unaligned", call, unaligned)
        for dtype, tolerance in ((torch.float32, 2e-5), (torch.float16, 4e-3)):
            exact: dict = {"tolerance": tolerance} if call is not pool or dtype.itemsize < 4 else {}
            add(f"{name}-vectors-{dtype}", call, lambda last, d=dtype: vectors(last, d), **exact)
    add("roi_align-adaptive", align_adaptive, small)
    add("roi_align-full-round", align, full_round)
    add("roi_align-tiles", align, tiles)
    add("roi_align-wide", align_wide, wide, tolerance=1e-4)
    add("roi_align-many-bins", align_many_bins, few)
    add("roi_align-tall", align_tall, few)
    add("roi_align-broad", align_broad, few)
    add("roi_pool-tall", pool_tall, few, tolerance=2e-5)
    add("roi_pool-many-bins", pool_many_bins, few, tolerance=2e-5)
    return made


ROI_CASES = _roi_cases()
