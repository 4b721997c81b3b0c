"""The modeled work is what the kernels do, as the emulator counts it, and the page shows it."""

from __future__ import annotations

import collections
import dataclasses
import json

import cuda_code
import cuda_counting
import cuda_geometry
import cuda_model
import cuda_rows
import numpy as np
import pytest
import torch
import torchvision

from rcnn_ext import ops
from rcnn_ext.bench import suite
from rcnn_ext.bench.cases import (
    DetectionCase,
    IouCase,
    MatchCase,
    NmsCase,
    ProposalCase,
    PyramidCase,
    RoiCase,
)
from rcnn_ext.errors import UserError
from tests.helpers.emulation.backend import emulated
from tests.helpers.emulation.build import why_not

CODE = cuda_code.load()
# 1 to 4 words of 64 boxes: the emulator takes fewer than a device does, by its seed.
EMULATED_CHUNKS = (64, 128, 192, 256)
CASES = [
    IouCase("box_iou", rows=17, columns=12),
    MatchCase("match_boxes", boxes=300, gts=5, grid=False),
    NmsCase("nms", count=60),
    NmsCase("nms", count=300),
    NmsCase("batched_nms", count=60, classes=5),
    NmsCase("batched_nms", count=300, classes=5),
    ProposalCase("generate_proposals", images=2, scale=16),
    DetectionCase("postprocess_detections", images=2, rois=50, classes=6),
    *(
        RoiCase(
            "roi_align",
            rois=9,
            channels=4,
            map_size=(13, 17),
            backward=backward,
            channels_last=channels_last,
        )
        for backward in (False, True)
        for channels_last in (False, True)
    ),
    *(
        PyramidCase("multi_scale_roi_align", rois=9, channels=4, finest=(32, 40), backward=backward)
        for backward in (False, True)
    ),
]


def without_sizes(calls: collections.Counter[str]) -> collections.Counter[str]:
    """Sorts by the one name that the dispatcher has for them."""
    named: collections.Counter[str] = collections.Counter()
    for name, count in calls.items():
        named[name.removesuffix(" (radix)")] += count
    return +named


@pytest.fixture(scope="module")
def table():
    return cuda_model.make_table()


@pytest.fixture(scope="module")
def rows():
    return {(row.case.name, row.dtype): row for row in cuda_model.make_rows()}


@pytest.mark.skipif(why_not() is not None, reason=f"no emulator: {why_not()}")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_launches_calls_and_waits_are_those_of_the_emulated_kernels(case):
    with emulated(3, schedules=1) as kernels:
        case.bind(ops, cuda_counting.make_inputs(case))()
    if isinstance(case, NmsCase):
        modeled = [cuda_rows.our_work(case, CODE, chunk=chunk) for chunk in EMULATED_CHUNKS]
        modeled = [work for work in modeled if work.launches == kernels.launches]
        assert modeled, kernels.launches
        # All chunk sizes of so many launches call the same, but for those of one chunk.
        assert kernels.calls in [without_sizes(work.calls) for work in modeled]
        work = modeled[0]
    else:
        work = cuda_rows.our_work(case, CODE)
        assert work.launches == kernels.launches
        assert without_sizes(work.calls) == kernels.calls
    assert work.syncs == kernels.calls["aten::item"] + kernels.calls["aten::masked_select"]


def test_every_case_with_a_target_is_modeled_in_each_dtype(rows):
    wanted = {
        (case.name, dtype)
        for case in suite.suite(quick=False)
        if case.targets.cuda is not None
        for dtype in case.dtypes
    }
    assert rows.keys() == wanted


@pytest.mark.skipif(
    torchvision.__version__.partition("+")[0] != CODE.torchvision_version.partition("+")[0],
    reason=f"torchvision {CODE.torchvision_version} was recorded",
)
def test_torchvisions_operators_are_as_many_as_it_calls():
    for case in CASES:
        if isinstance(case, (IouCase, MatchCase)):
            work = cuda_rows.make_row(case, torch.float32, CODE).torchvision
            assert (work.eager, work.syncs) == cuda_counting.count_torchvision(case)
    recorded = CODE.torchvision_calls
    assert recorded == {
        case.name: cuda_counting.count_torchvision(case) for case in cuda_counting.cases_to_count()
    }


def test_the_module_makes_as_many_operators_around_a_pyramid_as_modeled():
    case = next(case for case in CASES if isinstance(case, PyramidCase) and not case.backward)
    call = case.bind(ops, cuda_counting.make_inputs(case))
    with torch.no_grad(), cuda_counting.Counting() as counting:
        call()
    assert counting.launches == 1 + cuda_rows.our_work(case, CODE).eager  # and the operator itself


def test_a_reading_of_the_kernels_came_to_the_same_conclusions(rows):
    """What was worked out by hand before: the bound, and times within 40%."""
    by_hand = {
        ("box_iou/200000x100", torch.float32): (30e-6, "issue"),
        ("match_boxes/267000x100/anchors", torch.float32): (70e-6, "issue"),
        ("nms/500", torch.float32): (60e-6, "host"),
        ("nms/1000", torch.float32): (60e-6, "host"),
        ("nms/5000", torch.float32): (100e-6, "latency"),
        ("roi_align/1000", torch.float32): (180e-6, None),
        ("roi_align/1000/nhwc", torch.float32): (145e-6, "L2"),
        ("roi_align/1000/bwd", torch.float32): (475e-6, "issue"),
        ("roi_align/1000/nhwc/bwd", torch.float32): (150e-6, "issue"),
        ("multi_scale_roi_align/1000", torch.float32): (135e-6, None),
        ("generate_proposals/1x800", torch.float32): (475e-6, "issue"),
    }
    for key, (seconds, bound) in by_hand.items():
        assert rows[key].ours.seconds == pytest.approx(seconds, rel=0.4), key
        assert bound in (None, rows[key].ours.bound), key


def test_no_call_is_modeled_below_its_floor(rows):
    for key, row in rows.items():
        assert row.ours.seconds > row.floor, key


def test_the_page_has_the_table_that_the_model_makes(table):
    page = cuda_model.PAGE.read_text()
    begin, end = (page.index(mark) for mark in (cuda_model.BEGIN, cuda_model.END))
    assert table == page[begin + len(cuda_model.BEGIN) : end].strip(), (
        "run python tools/cuda_model.py --write"
    )


# --- measured ---------------------------------------------------------------------------------


def measured_row(case: str, seconds: float | None) -> dict:
    timing = {} if seconds is None else {"median_s": seconds}
    return {
        "case": case,
        "dtype": "float32",
        "contenders": {"rcnn_ext": timing},
        "ratio_torchvision": None if seconds is None else 4.25,
    }


def test_measured_rows_stand_beside_the_modeled(tmp_path, monkeypatch, rows):
    monkeypatch.setattr(cuda_model, "make_rows", lambda: list(rows.values()))
    gate = {"stages": [{"name": "doctor", "results": []}, {"name": "compare", "results": [
        measured_row("nms/500", 61.4e-6), measured_row("nms/1000", None)]},
        {"name": "models", "results": [{"case": "nms/500", "threads": 1}]}]}  # fmt: skip
    path = tmp_path / "gpu.json"
    path.write_text(json.dumps(gate))
    lines = cuda_model.make_table(cuda_model.read_measured(path)).splitlines()
    assert lines[0].endswith("| Measured | Measured ratio |")
    (line,) = (line for line in lines if "`nms/500`" in line)
    assert line.endswith("| 61 us | 4.2 |")
    (line,) = (line for line in lines if "`nms/1000`" in line)
    assert line.endswith("| - | - |")


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "is not JSON"), ('{"stages": []}', "has no measured rows"), (None, "cannot be read")],
)
def test_what_is_no_measurement_is_refused(tmp_path, text, message):
    path = tmp_path / "gpu.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=f"gpu.json: {message}"):
        cuda_model.read_measured(path)


def test_the_page_is_written_between_its_marks(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{cuda_model.BEGIN}\nold\n{cuda_model.END}\nafter\n")
    cuda_model.write_page("| new |", page)
    marks = cuda_model.BEGIN, cuda_model.END
    assert page.read_text() == f"before\n{marks[0]}\n\n| new |\n\n{marks[1]}\nafter\n"
    page.write_text("no marks")
    with pytest.raises(UserError, match="expected the lines"):
        cuda_model.write_page("| new |", page)


# --- geometry ---------------------------------------------------------------------------------


def test_bins_read_the_pixels_around_their_samples():
    # One RoI from 0 to 8 in pixels, two bins with samples at 1 and 3, 5 and 7: whole pixels.
    (whole,) = cuda_geometry.make_axis(np.array([0.0]), np.array([8.0]), 1.0, 2, 2, 20).reads
    assert [np.flatnonzero(bin_).tolist() for bin_ in whole] == [[1, 3], [5, 7]]
    # Half a pixel on, each sample reads two.
    (half,) = cuda_geometry.make_axis(np.array([0.5]), np.array([8.5]), 1.0, 2, 2, 20).reads
    assert [np.flatnonzero(bin_).tolist() for bin_ in half] == [[1, 2, 3, 4], [5, 6, 7, 8]]


def test_samples_outside_of_the_map_read_nothing():
    axis = cuda_geometry.make_axis(np.array([-8.0]), np.array([4.0]), 1.0, 3, 1, 10)
    assert axis.taps.tolist() == [[0, 0, 1]]  # samples at -6, -2 and 2


def test_counts_of_pixels_sectors_and_tiles():
    axis = cuda_geometry.make_axis(np.array([0.5]), np.array([8.5]), 1.0, 2, 2, 20)
    assert axis.pixels.tolist() == [8]
    assert axis.sectors(8).tolist() == [2]
    # Pixels 1 to 8, widened by two on each side.
    assert axis.tiles_reached(4).tolist() == [[True, True, True, False, False]]
    assert axis.bins_in_tiles(4).tolist() == [[1, 2, 1, 0, 0]]
    assert axis.most_bins_of_pixel(4).tolist() == [[1, 1, 1, 0, 0]]


def test_a_larger_case_costs_more():
    small = NmsCase("nms", count=1000)
    works = [
        cuda_rows.our_work(dataclasses.replace(small, count=count), CODE)
        for count in (1000, 5000, 20_000)
    ]
    times = [work.seconds for work in works]
    assert times == sorted(times)
    assert [work.launches for work in works] == [3, 3, 9]
