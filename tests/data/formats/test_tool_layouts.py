"""The layouts of annotation tools and benchmarks, from ``rcnn-ext check`` to a step of training."""

from __future__ import annotations

import re

import numpy as np
import pytest

from rcnn_ext.cli import main
from rcnn_ext.data import DataConfig, detect_format, has_split, open_split
from tests.conftest import TINY
from tests.helpers import layouts, text_layouts, tool_layouts

pytest.importorskip("lxml", reason="lxml comes with the extra train")

TOOLS = tool_layouts.TOOLS | text_layouts.TOOLS


@pytest.mark.parametrize("name", TOOLS)
def test_layouts_of_tools_are_read_with_their_splits_and_classes(tmp_path, name):
    make, kind, counts = TOOLS[name]
    make(tmp_path)
    assert detect_format(tmp_path) == kind
    config = DataConfig()
    seen = []
    for split in ("train", "val", "test"):
        assert has_split(config, tmp_path, split) == (split in counts)
        if split not in counts:
            continue
        found = open_split(config, tmp_path, split, layouts.CLASSES)
        assert not [p for p in found.problems if p.severity != "note"]
        assert len(found) == counts[split]
        for record in found.images:
            number = int(re.search(r"(\d+)$", record.path.stem)[1])
            np.testing.assert_allclose(record.boxes, [layouts.BOX], atol=1e-4)
            assert record.labels.tolist() == [number % 2 + 1]
            assert (record.width, record.height) == (40, 20)
            seen.append(number)
    assert open_split(config, tmp_path, "train").classes.names == layouts.CLASSES
    assert sorted(seen) == list(range(layouts.COUNT))


@pytest.mark.parametrize("name", TOOLS)
def test_check_says_which_format_it_took_the_data_for(tmp_path, name, capsys):
    make, kind, counts = TOOLS[name]
    make(tmp_path)
    assert main(["check", str(tmp_path), "--strict"]) == 0
    said = capsys.readouterr().out
    assert f"{tmp_path}: format {kind}" in said
    for split, count in counts.items():
        assert f"{split}: {count} images, {count} objects of 2 classes" in said
    assert "0 errors, 0 warnings" in said


# One layout of each format; the others differ in what comes before the images.
@pytest.mark.parametrize(
    "name",
    [
        "LabelImg CreateML",
        "labelme",
        "VIA export",
        "Supervisely",
        "Label Studio JSON",
        "CVAT for images",
        "ImageFolder CSV",
        "Datumaro",
        "Kaggle",
        "Open Images",
        "VIA CSV",
        "KITTI",
        "CVAT Ultralytics",
    ],
)
def test_each_format_trains(tmp_path, name, one_thread, capsys):
    pytest.importorskip("lightning", reason="lightning comes with the extra train")
    make, kind, _ = TOOLS[name]
    make(tmp_path / "data")
    arguments = ["faster_rcnn_synthetic", "--data", str(tmp_path / "data")]
    arguments += ["--out", str(tmp_path / "out"), "--max-steps", "1", *TINY]
    assert main(["train", *arguments, "data.format=auto", "data.workers=0"]) == 0
    assert (tmp_path / "out" / "last.ckpt").is_file()


def test_check_prints_no_line_of_thousands_of_characters(tmp_path, capsys):
    tool_layouts.labelme(tmp_path)
    path = min(tmp_path.rglob("*.json"))
    path.write_text(re.sub(r'("shape_type": )"\w+"', rf'\1"{"a" * 5000}"', path.read_text()))
    assert main(["check", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert f"of shape {'a' * 60}... (500" in out
    assert max(map(len, out.splitlines())) < 1000
