"""YOLO data as other systems and tools write them, and files that are made to do harm."""

from __future__ import annotations

import time
from itertools import pairwise

import numpy as np
import pytest

from rcnn_ext.data import DataConfig, detect_format, open_split
from rcnn_ext.data.formats.safe_yaml import load_yaml
from rcnn_ext.data.formats.yolo_lines import read_line
from rcnn_ext.errors import UserError
from tests.helpers import layouts, text_layouts

pytest.importorskip("yaml", reason="PyYAML comes with the extra train")


def test_shapes_of_lines():
    size, names = (40, 20), ["cat", "dog"]
    for text, outline in (
        ("1 0.5 0.5 0.5 0.6", ""),
        ("1.0 0.5 0.5 0.5 0.6", ""),
        ("1 0.25 0.2 0.75 0.2 0.75 0.8", "polygon"),
        ("1 0.25 0.2 0.75 0.2 0.75 0.8 0.25 0.8", "oriented box"),
        ("1 0.5 0.5 0.5 0.6 0.1 0.1 2", ""),
        ("1 0.5 0.5 0.5 0.6 0.1 0.1 2 0.3 0.3 0", ""),
    ):
        found = read_line(text, 3, size, names)
        np.testing.assert_allclose(found.box, (10, 4, 30, 16), atol=1e-9)
        assert (found.name, found.line, found.outline) == ("dog", 3, outline)
    for text in ("1.5 .5 .5 .5 .5", "nan .5 .5 .5 .5", "inf .5 .5 .5 .5"):
        with pytest.raises(ValueError, match="no class has the number"):
            read_line(text, 1, size, names)


def test_boxes_around_other_shapes_are_counted(tmp_path):
    text_layouts.yolo_oriented(tmp_path)
    found = open_split(DataConfig(), tmp_path, "train")
    assert found.outlines == {"oriented box": layouts.COUNT}
    assert "oriented box" in found.summary()


def test_files_without_counterpart_are_counted(tmp_path):
    layouts.yolo_without_yaml(tmp_path)
    (tmp_path / "labels" / "train" / "p1.txt").unlink()
    (tmp_path / "images" / "train" / "p2.png").unlink()
    (tmp_path / "labels" / "train" / "notes.txt").write_text("the cat was asleep\n")
    found = open_split(DataConfig(), tmp_path, "train")
    assert [len(record.boxes) for record in found.images] == [1, 0, 1]
    said = {problem.severity: problem.message for problem in found.problems}
    assert len(found.problems) == 2
    assert said["note"] == "1 picture has no text file, so no objects; the first is p1.png"
    expected = "1 text file has no picture that can be read; the first is p2.txt"
    assert said["warning"] == expected


def test_suffixes_in_any_case(tmp_path):
    layouts.yolo_without_yaml(tmp_path)
    for path in (*tmp_path.rglob("p*.txt"), *tmp_path.rglob("p*.png")):
        path.rename(path.with_suffix(path.suffix.upper()))
    found = open_split(DataConfig(), tmp_path, "train")
    assert [len(record.boxes) for record in found.images] == [1, 1, 1, 1]


def test_encodings_of_labels_lists_and_names(tmp_path):
    text_layouts.cvat_ultralytics(tmp_path)
    yaml = tmp_path / "data.yaml"
    text = yaml.read_text().replace("cat", "狗")
    for encoding in ("utf-16", "utf-8-sig", "utf-16-le"):
        yaml.write_bytes(text.encode(encoding))
        for name in ("train.txt", "labels/train/p0.txt"):
            content = (tmp_path / name).read_text(encoding="utf-8-sig")
            (tmp_path / name).write_bytes(content.encode(encoding))
        found = open_split(DataConfig(), tmp_path, "train")
        assert found.classes.names == ("狗", "dog")
        assert [len(record.boxes) for record in found.images] == [1, 1, 1, 1]
        for name in ("train.txt", "labels/train/p0.txt"):
            (tmp_path / name).write_bytes(content.encode())
        text_layouts.yolo_labels(tmp_path / "labels" / "train", range(4))
        lines = "".join(f"data/images/train/p{n}.png\n" for n in range(4))
        (tmp_path / "train.txt").write_text(lines)
    yaml.write_bytes(text.encode("gbk"))
    assert detect_format(tmp_path) == "yolo"
    with pytest.raises(UserError, match=r"data\.yaml:2: byte 0xb9 at offset 12 is not UTF-8 text"):
        open_split(DataConfig(), tmp_path, "train")
    assert open_split(DataConfig(encoding="gbk"), tmp_path, "train").classes.names[0] == "狗"
    (tmp_path / "labels" / "train" / "p0.txt").write_bytes(b"0 .5 .5 .5 .5 \xb9\n")
    yaml.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"p0\.txt: .*byte 0xb9"):
        open_split(DataConfig(), tmp_path, "train")
    assert len(open_split(DataConfig(on_error="skip"), tmp_path, "train")) == 3


def test_names_that_fit_two_pictures_of_a_list(tmp_path):
    text_layouts.cvat_ultralytics(tmp_path)
    (tmp_path / "train.txt").write_text("x/images/train/p0.png\ny/images/train/p0.png\n")
    with pytest.raises(UserError, match=r"train\.txt:2: x/images.* and y/images.* would both be"):
        open_split(DataConfig(), tmp_path, "train")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a: &a [x,x,x,x,x,x,x,x,x]\n"
            + "".join(f"{b}: &{b} [{','.join(['*' + a] * 9)}]\n" for a, b in pairwise("abcdefghi"))
            + "names: *i\n",
            "its aliases repeat",
        ),
        ("names: &a [*a]\n", "its aliases repeat"),
        ("names: " + "[" * 5000 + "]" * 5000, "more than 50 lists|nesting depth"),
        ("names: " + "{a: " * 5000 + "}" * 5000, "more than 50 lists|nesting depth"),
        ("names: [[a, b], c]\ntrain: images/train\n", "the name of the class 0 is no text"),
        ("names: !!python/object/apply:os.system [ls]\n", r"data\.yaml:1 cannot be read as YAML"),
        ("names: [a\n", r"data\.yaml:2 cannot be read as YAML"),
        ("train: \x07\n", r"data\.yaml cannot be read as YAML"),
    ],
)
def test_yaml_that_is_made_to_do_harm(tmp_path, text, message):
    layouts.yolo_without_yaml(tmp_path)
    (tmp_path / "data.yaml").write_text(text)
    before = time.process_time()
    with pytest.raises(UserError, match=message) as caught:
        open_split(DataConfig(format="yolo"), tmp_path, "train")
    assert len(str(caught.value)) < 1000
    assert time.process_time() - before < 2


def test_yaml_with_modest_aliases_is_read(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("n: &n [cat, dog]\nnames: *n\nbase: &b {train: x}\nother: {<<: *b}\n")
    assert load_yaml(path)["names"] == ["cat", "dog"]
    assert load_yaml(path)["other"] == {"train": "x"}
    path.write_text("")
    assert load_yaml(path) is None
    with pytest.raises(UserError, match="is not a file"):
        load_yaml(tmp_path)
