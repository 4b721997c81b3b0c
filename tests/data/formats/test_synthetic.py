from __future__ import annotations

import hashlib
import os

import numpy as np
import pytest

from rcnn_ext.data import SyntheticConfig, find_annotations, make_synthetic, read_coco
from rcnn_ext.data.formats.synthetic import SHAPES, draw_scene
from rcnn_ext.errors import UserError

SMALL = SyntheticConfig(train=6, val=3, size=64, seed=5)


def digests(root):
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_the_same_seed_gives_the_same_files_and_another_seed_others(tmp_path):
    first = digests(make_synthetic(tmp_path / "a", SMALL))
    assert digests(make_synthetic(tmp_path / "b", SMALL)) == first
    other = digests(make_synthetic(tmp_path / "c", SyntheticConfig(6, 3, 64, seed=6)))
    assert other.keys() == first.keys()
    assert not any(other[name] == first[name] for name in first)


def test_a_larger_set_begins_with_the_smaller_one(tmp_path):
    small = digests(make_synthetic(tmp_path / "small", SMALL))
    large = digests(make_synthetic(tmp_path / "large", SyntheticConfig(8, 4, 64, seed=5)))
    images = [name for name in small if name.endswith(".png")]
    assert len(images) == 9
    assert all(large[name] == small[name] for name in images)


def test_it_reads_as_coco_with_nothing_to_mend(tmp_path):
    root = make_synthetic(tmp_path / "set", SMALL)
    for split, count in (("train", 6), ("val", 3)):
        found = read_coco(find_annotations(root, split), root=root)
        assert len(found) == count
        assert found.classes.names == SHAPES
        assert (found.clipped, found.dropped) == (0, 0)


def test_boxes_are_tight_around_what_was_drawn():
    """Compares the image with the one whose objects have another texture but the same outline."""
    config = SyntheticConfig(size=96, max_objects=1)
    seen = set()
    for index in range(60):
        picture, objects = draw_scene(config, "train", index)
        if not objects:
            continue
        (drawn,) = objects
        seen.add(drawn.category)
        x1, y1, x2, y2 = drawn.box
        assert 0 <= x1 < x2 <= 96
        assert 0 <= y1 < y2 <= 96
        filled = drawn.area / ((x2 - x1) * (y2 - y1))
        # pi / 4 of a circle's box; the others fill theirs the less the more they are turned.
        least, most = {0: (0.74, 0.83), 1: (0.58, 1.0), 2: (0.38, 0.56)}[drawn.category]
        assert least <= filled <= most, (index, drawn)
        assert 0.15 * 96 < max(x2 - x1, y2 - y1) <= 0.54 * 96 + 1
    assert seen == {0, 1, 2}


def test_some_images_are_empty_and_objects_hide_little_of_each_other():
    config = SyntheticConfig(size=64)
    counts = []
    for index in range(150):
        _, objects = draw_scene(config, "val", index)
        counts.append(len(objects))
        for i, first in enumerate(objects):
            for second in objects[:i]:
                width = min(first.box[2], second.box[2]) - max(first.box[0], second.box[0])
                height = min(first.box[3], second.box[3]) - max(first.box[1], second.box[1])
                smaller = min((b[2] - b[0]) * (b[3] - b[1]) for b in (first.box, second.box))
                assert max(0, width) * max(0, height) < 0.15 * smaller
    assert 1 <= counts.count(0) <= 20
    assert max(counts) == 3


def test_splits_differ():
    config = SyntheticConfig(size=64)
    train, _ = draw_scene(config, "train", 0)
    val, _ = draw_scene(config, "val", 0)
    assert not np.array_equal(np.asarray(train), np.asarray(val))


def test_an_existing_set_is_kept_and_anything_else_is_refused(tmp_path):
    root = make_synthetic(tmp_path / "set", SMALL)
    image = root / "train" / "000001.png"
    before = image.stat().st_mtime_ns
    make_synthetic(root, SMALL)
    assert image.stat().st_mtime_ns == before
    with pytest.raises(UserError, match="other than the synthetic data set asked for"):
        make_synthetic(root, SyntheticConfig(6, 3, 64, seed=6))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(UserError, match="name an empty or a new folder"):
        make_synthetic(tmp_path / "mine", SMALL)
    assert os.listdir(tmp_path / "mine") == ["thesis.txt"]
    with pytest.raises(UserError, match="is a file"):
        make_synthetic(image, SMALL)


def test_an_interrupted_run_leaves_nothing(tmp_path):
    def stop_half_way(items):
        for item in items:
            if item == 4:
                raise KeyboardInterrupt
            yield item

    with pytest.raises(KeyboardInterrupt):
        make_synthetic(tmp_path / "set", SMALL, stop_half_way)
    assert os.listdir(tmp_path) == []


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="size must be at least 32"):
        SyntheticConfig(size=8)
