"""The work of RoIAlign's CUDA cases, ours and torchvision's, for the model of the device."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any

import cuda_geometry as geometry
import numpy as np
import torch
from cuda_code import Code
from cuda_device import BARRIER, Kernel, Work
from cuda_geometry import Axis

from rcnn_ext.bench import inputs as draw
from rcnn_ext.bench.cases import PyramidCase, RoiCase

TYPE_NAMES = {torch.float32: "float", torch.bfloat16: "BFloat16", torch.float16: "Half"}
SECTOR = 32  # bytes that the second-level cache hands out at once
WARP = 32
SAMPLES = 2
# Counted by hand in the machine code for sm_90: NCHW, per pass of a warp over 8 bins, and to write
# the bins of 4 channels.
NCHW_PASS_AROUND = 60
NCHW_WRITE_AROUND = 160
# NHWC, per vector of channels of a bin (index arithmetic, of which divisions take most, and the
# store), and per row of it; a tap that is left over when four are taken at a time.
NHWC_BIN_AROUND = 110
NHWC_ROW_AROUND = 14
NHWC_LAST_TAP = 14
# Per block and RoI: its geometry and the taps of its bins.
ROI_AROUND = 8 * 400
# The gather, per warp: a RoI, a row of bins of it; and per block the weights of 16 RoIs and the
# search through 256.
GATHER_ROI_AROUND = 17
GATHER_ROW_AROUND = 50
GATHER_WEIGHTS_AROUND = 8 * 700
GATHER_SEARCH_AROUND = 8 * 150
# torchvision's kernels, per thread outside of the loop over samples.
TORCHVISION_AROUND = 150
# Sectors per lane of a warp's atomic additions: bins of neighboring lanes are pixels apart.
ATOMIC_SECTORS_PER_LANE = 22 / 32


@dataclasses.dataclass(frozen=True)
class Level:
    """The RoIs of one level.

    Attributes:
        y: What their bins read along y.
        x: What their bins read along x.
        height: Of the map.
        width: Of the map.
    """

    y: Axis
    x: Axis
    height: int
    width: int

    @property
    def rois(self) -> int:
        """How many there are."""
        return len(self.y.reads)


def levels_of(case: RoiCase | PyramidCase) -> list[Level]:
    """Draw the RoIs of a case as the benchmark does, and find what they read."""
    if isinstance(case, RoiCase):
        size = case.map_size
        sides, scale = case.sides, case.spatial_scale
    else:
        size, sides, scale = case.finest, (8.0, 800.0), 0.25
    random = draw.generator(0)
    boxes = draw.random_rois(case.rois, random, size, scale, sides).double().numpy()
    if isinstance(case, RoiCase):
        return [_level(boxes, scale, *size, case.output_size)]
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    wanted = np.floor(4 + np.log2(np.sqrt(np.maximum(area, 1e-12)) / 224 + 1e-6))
    chosen = np.clip(wanted, 2, 5).astype(int) - 2
    return [
        _level(boxes[chosen == n], scale / 2**n, size[0] >> n, size[1] >> n, case.output_size)
        for n in range(4)
    ]


def _level(boxes: Any, scale: float, height: int, width: int, bins: int) -> Level:
    axes = [
        geometry.make_axis(boxes[:, i], boxes[:, i + 2], scale, bins, SAMPLES, extent)
        for i, extent in ((1, height), (0, width))
    ]
    return Level(*axes, height, width)


def _pixels(levels: list[Level]) -> int:
    return sum(level.height * level.width for level in levels)


def _maps_bytes(case: RoiCase | PyramidCase, levels: list[Level], item: int) -> float:
    return float(_pixels(levels) * case.channels * item)


def _pooled_elements(case: RoiCase | PyramidCase) -> int:
    return case.rois * case.channels * case.output_size**2


def compulsory_bytes(case: RoiCase | PyramidCase, dtype: torch.dtype) -> float:
    """Return the bytes of the maps and of the pooled maps: one is read, the other written."""
    maps = _maps_bytes(case, levels_of(case), dtype.itemsize)
    return maps + _pooled_elements(case) * dtype.itemsize


# --- forward ----------------------------------------------------------------------------------


def _forward_kernel(
    case: RoiCase | PyramidCase, levels: list[Level], code: Code, dtype: torch.dtype
) -> Kernel:
    name, item = TYPE_NAMES[dtype], dtype.itemsize
    capacity = 1 if isinstance(case, RoiCase) else 32  # of levels, of the kernel's template
    vector = 16 // item if case.channels_last else 0
    if case.channels % max(vector, 1):
        vector = 1
    loop = code.loop(f"roi_align_kernel<{name}, {vector}, {capacity}>", "global_loads", "shared")
    instructions = read = 0.0
    for level in levels:
        if level.rois == 0:
            continue
        rows, taps_y, taps_x = level.y.pixels, level.y.taps, level.x.taps
        if case.channels_last:
            warps = case.channels / vector / WARP  # per bin
            per_row = taps_x // 4 * loop.instructions + taps_x % 4 * NHWC_LAST_TAP
            per_bin = NHWC_BIN_AROUND + taps_y[:, :, None] * (NHWC_ROW_AROUND + per_row[:, None, :])
            instructions += warps * per_bin.sum()
            # The rows of pixels that two rows of bins read are read twice: what four blocks read in
            # between is more than the first-level cache of a multiprocessor holds.
            read += (taps_y.sum(axis=1) * level.x.pixels).sum() * case.channels * item
        else:
            groups = -(-case.channels // 4)
            # A warp takes 8 bins at once and goes on until the last of them is through; a lane
            # takes every fourth column and two rows per iteration.
            trips = -(-taps_y // 2)[:, :, None] * -(-taps_x // 4)[:, None, :]
            trips = trips.reshape(level.rois, -1)
            passes = -(-trips.shape[1] // 8)
            padded = np.zeros((level.rois, passes * 8), dtype=trips.dtype)
            padded[:, : trips.shape[1]] = trips
            slowest = padded.reshape(level.rois, passes, 8).max(axis=2)
            per_group = slowest * loop.instructions + NCHW_PASS_AROUND
            instructions += groups * (per_group.sum() + level.rois * NCHW_WRITE_AROUND)
            sectors = level.x.sectors(SECTOR // item)
            read += (rows * sectors).sum() * SECTOR * case.channels
    instructions += case.rois * ROI_AROUND
    moved = _maps_bytes(case, levels, item) + _pooled_elements(case) * item
    splits = max(1, 1024 // case.rois)
    return Kernel(
        "roi_align",
        case.rois * splits,
        float(instructions),
        waits=True,
        hbm=moved,
        l2=float(read),
        inner=loop.instructions,
    )


def _rois_calls(dtype: torch.dtype) -> collections.Counter[str]:
    """Return the conversion of the RoIs of half maps to float32."""
    return collections.Counter({"aten::_to_copy": 1} if dtype.itemsize < 4 else {})


# --- backward ---------------------------------------------------------------------------------


def _gather_kernels(
    case: RoiCase | PyramidCase, levels: list[Level], code: Code, dtype: torch.dtype
) -> list[Kernel]:
    name, item = TYPE_NAMES[dtype], dtype.itemsize
    capacity = 1 if isinstance(case, RoiCase) else 32
    lanes_are_channels = case.channels_last and case.channels % 4 == 0
    flag = str(lanes_are_channels).lower()
    loop = code.loop(
        f"roi_gather_kernel<RoiAlignGradient<{name}>, {capacity}, {flag}>", "global_loads"
    )
    tile_width = 8 if lanes_are_channels else 32
    channel_blocks = -(-case.channels // (128 if lanes_are_channels else 32))
    instructions = read = 0.0
    tasks = 0
    for level in levels:
        height, width = geometry.TILE_HEIGHT, tile_width
        tiles = -(-level.height // height) * -(-level.width // width)
        tasks += tiles * channel_blocks
        if level.rois == 0:
            continue
        reached_y, reached_x = level.y.tiles_reached(height), level.x.tiles_reached(width)
        hits = reached_y.sum(axis=1) * reached_x.sum(axis=1)  # [K]
        rows = level.y.bins_in_tiles(height).sum(axis=1)  # rows of bins, over all tiles
        columns = level.x.bins_in_tiles(width).sum(axis=1)
        if lanes_are_channels:
            # A warp has one column of the tile: its bins, and a visit per row and column.
            trips = rows * level.x.reads.sum(axis=(1, 2))
            visits = rows * reached_x.sum(axis=1) * 8
        else:
            # A warp has all 32 columns, and goes on until the one with most bins is through.
            trips = rows * level.x.most_bins_of_pixel(width).sum(axis=1) * 8
            visits = rows * reached_x.sum(axis=1) * 8
        work = (
            hits.sum() * 8 * GATHER_ROI_AROUND
            + visits.sum() * GATHER_ROW_AROUND
            + trips.sum() * loop.instructions
            + hits.sum() / 16 * GATHER_WEIGHTS_AROUND
        )
        instructions += channel_blocks * work
        # A tile reads the bins that reach it, of all its channels; NCHW in sectors of 8 columns.
        read += (rows * columns).sum() * case.channels * item * (1 if case.channels_last else 8 / 7)
    searched = -(-case.rois // 256)
    instructions += tasks * searched * GATHER_SEARCH_AROUND
    moved = _maps_bytes(case, levels, item) + _pooled_elements(case) * item
    gather = Kernel(
        "roi_gather",
        tasks,
        float(instructions),
        waits=True,
        hbm=moved,
        l2=float(read),
        chain=searched * 5 * BARRIER,
        inner=loop.instructions,
    )
    return [Kernel("find_footprints", searched, case.rois / WARP * 170), gather]


# --- calls ------------------------------------------------------------------------------------


def roi_align(case: RoiCase, code: Code, dtype: torch.dtype) -> Work:
    """Model one launch forward; footprints and a gather backward."""
    return _call(case, code, dtype)


def pyramid(case: PyramidCase, code: Code, dtype: torch.dtype) -> Work:
    """Model all levels in the launches of one."""
    work = _call(case, code, dtype)
    if case.backward:
        return dataclasses.replace(work, calls=work.calls + collections.Counter({"aten::empty": 3}))
    # The module turns the boxes into RoIs: an index column and a concatenation.
    return dataclasses.replace(work, eager=3)


def _call(case: RoiCase | PyramidCase, code: Code, dtype: torch.dtype) -> Work:
    levels = levels_of(case)
    calls = _rois_calls(dtype) + collections.Counter({"aten::empty": 1})
    if case.backward:
        calls["aten::empty"] += 1
        return Work(_gather_kernels(case, levels, code, dtype), calls)
    return Work([_forward_kernel(case, levels, code, dtype)], calls)


def _torchvision_kernel(case: RoiCase | PyramidCase, levels: list[Level], code: Code) -> Kernel:
    """Model one thread per output; torchvision computes in float32 whatever the maps are."""
    threads = _pooled_elements(case)
    if case.backward:
        loop = code.torchvision_loop("roi_align_backward_kernel_impl<float>", "atomics")
        per_trip = max(1, loop.kinds["atomics"] // 4)
    else:
        loop = code.torchvision_loop("roi_align_forward_kernel_impl<float>", "global_loads")
        per_trip = max(1, loop.kinds["global_loads"] // 4)
    trips = SAMPLES * -(-SAMPLES // per_trip)
    instructions = threads / WARP * (trips * loop.instructions + TORCHVISION_AROUND)
    reads = sum(
        (level.y.pixels * level.x.sectors(SECTOR // 4)).sum() * SECTOR * case.channels
        for level in levels
        if level.rois
    )
    atomics = 0.0
    if case.backward:
        # Four corners of each sample.
        atomics = threads * SAMPLES**2 * 4 * ATOMIC_SECTORS_PER_LANE
        reads = 4.0 * threads
    return Kernel(
        "roi_align",
        threads / 512,
        instructions,
        warps=16,
        waits=True,
        hbm=_maps_bytes(case, levels, 4) + 4 * threads,
        l2=reads,
        atomics=atomics,
        inner=loop.instructions,
    )


def roi_align_torchvision(case: RoiCase, code: Code, dtype: torch.dtype) -> Work:
    """Model one launch, after zeros for the result, and copies where layout or dtype is another."""
    levels = levels_of(case)
    maps, pooled = _maps_bytes(case, levels, 4), 4.0 * _pooled_elements(case)
    source, result = (pooled, maps) if case.backward else (maps, pooled)
    calls = collections.Counter({"aten::empty": 1, "aten::zero_": 1})
    copied = result  # zeros
    if case.channels_last:
        # The source becomes contiguous; a transposing copy reaches two thirds of the bandwidth.
        calls["aten::clone"] += 1
        copied += 2 * source * 1.5
    if dtype.itemsize < 4:
        # As autocast does: to float32 and back.
        calls["aten::_to_copy"] += 3
        copied += 1.5 * (source + result)
    return Work([_torchvision_kernel(case, levels, code)], calls, torch_bytes=copied)


def pyramid_torchvision(case: PyramidCase, code: Code, dtype: torch.dtype) -> Work:
    """Model a mapper, and per level eq, where, index, roi_align and index_put."""
    levels = levels_of(case)
    maps, pooled = _maps_bytes(case, levels, 4), 4.0 * _pooled_elements(case)
    kernel = _torchvision_kernel(case, levels, code)
    # The pooled maps are cleared, written, read and written again in their places.
    copied = 5 * pooled
    if dtype.itemsize < 4:
        copied += 1.5 * (maps + pooled)
    launches, syncs = code.torchvision_calls[case.name]
    eager = launches - len(levels)  # without the calls of roi_align
    return Work([kernel], eager=eager, syncs=syncs, torch_bytes=copied, serial=True)
