"""ProposalFilter: each step on a case worked by hand, and what holds for all."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rcnn_ext.selective_search import ProposalFilter, Regions

KEEP_ALL = ProposalFilter(unique=False)


def regions(*boxes: tuple[int, int, int, int], sizes: tuple[int, ...] | None = None) -> Regions:
    count = len(boxes)
    array = np.array(boxes, np.int32).reshape(count, 4)
    return Regions(array, np.array(sizes if sizes else [1] * count, np.int64))


def chosen(found: Regions, proposal_filter: ProposalFilter) -> list[tuple[int, ...]]:
    return [tuple(box) for box in proposal_filter(found, 40, 50).boxes.tolist()]


def test_keep_all_keeps_all() -> None:
    boxes = [(0, 0, 9, 9), (0, 0, 9, 9), (5, 5, 5, 5)]
    assert chosen(regions(*boxes), KEEP_ALL) == boxes


def test_unique_keeps_the_first() -> None:
    found = regions((9, 9, 20, 20), (0, 0, 5, 5), (9, 9, 20, 20), sizes=(3, 2, 7))
    kept = ProposalFilter()(found, 40, 50)
    assert kept.boxes.tolist() == [[9, 9, 20, 20], [0, 0, 5, 5]]
    assert kept.sizes.tolist() == [3, 2]


def test_min_side_is_inclusive() -> None:
    found = regions((0, 0, 10, 20), (0, 0, 9, 20), (0, 0, 20, 9))
    assert chosen(found, ProposalFilter(min_side=10)) == [(0, 0, 10, 20)]


def test_aspect_ratio_holds_both_ways_and_drops_lines() -> None:
    found = regions((0, 0, 30, 10), (0, 0, 10, 30), (0, 0, 31, 10), (0, 0, 10, 31), (4, 0, 4, 0))
    expected = [(0, 0, 30, 10), (0, 0, 10, 30)]
    assert chosen(found, ProposalFilter(max_aspect_ratio=3)) == expected


def test_by_size_takes_region_sizes_and_keeps_the_order_of_equals() -> None:
    found = regions((0, 0, 1, 1), (0, 0, 2, 2), (0, 0, 3, 3), (0, 0, 4, 4), sizes=(5, 9, 5, 7))
    order = chosen(found, ProposalFilter(by_size=True))
    assert order == [(0, 0, 2, 2), (0, 0, 4, 4), (0, 0, 1, 1), (0, 0, 3, 3)]


def test_max_boxes_takes_the_first() -> None:
    found = regions((0, 0, 1, 1), (0, 0, 2, 2), (0, 0, 3, 3))
    assert chosen(found, ProposalFilter(max_boxes=2)) == [(0, 0, 1, 1), (0, 0, 2, 2)]


def test_whole_image_where_nothing_remains() -> None:
    strict = ProposalFilter(min_side=1000)
    kept = strict(regions((0, 0, 9, 9)), 40, 50)
    assert kept.boxes.tolist() == [[0, 0, 49, 39]]
    assert kept.sizes.tolist() == [2000]
    assert chosen(regions(), ProposalFilter()) == [(0, 0, 49, 39)]
    assert len(ProposalFilter(min_side=1000, whole_image=False)(regions((0, 0, 9, 9)), 40, 50)) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"min_side": -1}, "min_side: expected a finite number of at least 0, got -1"),
        ({"min_side": float("nan")}, "min_side: expected a finite number"),
        ({"max_aspect_ratio": 0.5}, "max_aspect_ratio: .* at least 1, got 0.5"),
        ({"max_boxes": 0}, "max_boxes: expected a whole number of at least 1, got 0"),
        ({"max_boxes": 2.5}, "max_boxes: expected a whole number of at least 1, got 2.5"),
    ],
)
def test_bad_settings_are_refused(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProposalFilter(**arguments)


@settings(deadline=None, derandomize=True)
@given(
    boxes=arrays(np.int32, st.tuples(st.integers(0, 30), st.just(4)), elements=st.integers(0, 12)),
    min_side=st.integers(0, 8),
    ratio=st.none() | st.floats(1, 5),
    by_size=st.booleans(),
    most=st.none() | st.integers(1, 10),
)
def test_what_is_kept_meets_every_condition(boxes, min_side, ratio, by_size, most) -> None:
    boxes = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    sizes = np.arange(len(boxes)) * 7 % 5
    chooser = ProposalFilter(
        min_side=min_side, max_aspect_ratio=ratio, by_size=by_size, max_boxes=most
    )
    kept = chooser(Regions(boxes, sizes), 40, 50)
    if kept.boxes.tolist() == [[0, 0, 49, 39]]:
        return
    found = {tuple(box) for box in boxes.tolist()}
    rows = [tuple(box) for box in kept.boxes.tolist()]
    assert len(set(rows)) == len(rows)
    assert set(rows) <= found
    sides = kept.boxes[:, 2:] - kept.boxes[:, :2]
    assert (sides >= min_side).all()
    if ratio is not None:
        assert (sides.max(axis=1) <= ratio * sides.min(axis=1)).all()
    if by_size:
        assert (np.diff(kept.sizes) <= 0).all()
    assert most is None or len(kept) <= most
