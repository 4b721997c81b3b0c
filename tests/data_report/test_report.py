"""The page of ``rcnn-ext check --report``, and what it prints in short."""

from __future__ import annotations

import base64
import io
import json
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("lightning", reason="lightning comes with the extra train")

from rcnn_ext.cli import main
from tests.helpers.real_data import REAL, needs_real_data

_EVIL = '<script>alert("x")</script>&amp;<b>'
_SIDE = 96


class _Page(HTMLParser):
    """The text, the tags and the attributes of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.by_id: dict[str, str] = {}
        self._id: str | None = None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._id = dict(attrs).get("id")

    def handle_data(self, data):
        self.words.append(data)
        if self._id is not None:
            self.by_id.setdefault(self._id, data)
            self._id = None

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


def _picture(seed: int) -> Image.Image:
    """Soft noise, so that pictures differ at low frequencies, which near copies keep."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)


def _write_split(root: Path, name: str, pictures: dict[str, Image.Image | bytes], boxes) -> None:
    """Write pictures and ``instances_NAME.json``; boxes are (picture, class, x, y, w, h)."""
    (root / "images").mkdir(exist_ok=True)
    for file, picture in pictures.items():
        if isinstance(picture, bytes):
            (root / "images" / file).write_bytes(picture)
        else:
            picture.save(root / "images" / file)
    ids = {file: index for index, file in enumerate(pictures, start=1)}
    document = {
        "images": [
            {"id": index, "file_name": file, "width": _SIDE, "height": _SIDE}
            for file, index in ids.items()
        ],
        "annotations": [
            {
                "id": index,
                "image_id": ids[file],
                "category_id": label,
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": 0,
            }
            for index, (file, label, *box) in enumerate(boxes, start=1)
        ],
        "categories": [{"id": 1, "name": "plain"}, {"id": 2, "name": _EVIL}],
    }
    (root / f"instances_{name}.json").write_text(json.dumps(document, indent=0))


@pytest.fixture
def folder(tmp_path):
    """Six pictures to train on and three for validation, with one fault of each kind."""
    train = {f"t{index}.png": _picture(index) for index in range(5)}
    train["<img src=x onerror=alert(1)>.png"] = _picture(5)
    boxes = [
        ("t0.png", 1, 10, 10, 20, 40),
        ("t0.png", 1, 10, 10, 20, 39.5),  # doubled
        ("t0.png", 2, 50, 10, 20, 40),
        ("t1.png", 1, 10, 10, 2, 30),  # tiny
        ("t2.png", 2, 0, 0, 96, 95),  # huge
        ("t3.png", 1, 60, 60, 60, 30),  # clipped
        ("<img src=x onerror=alert(1)>.png", 2, 30, 20, 20, 30),
        ("<img src=x onerror=alert(1)>.png", 1, 30, 20, 20, 29.5),  # another class there
    ]
    _write_split(tmp_path, "train", train, boxes)
    near = io.BytesIO()
    _picture(1).resize((_SIDE, _SIDE)).save(near, "JPEG", quality=30)
    mirrored = _picture(2).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    val = {"v0.jpg": near.getvalue(), "v1.png": mirrored, "v2.png": _picture(20)}
    val |= {"v3.png": (tmp_path / "images" / "t4.png").read_bytes()}
    _write_split(tmp_path, "val", val, [(name, 1, 10, 10, 30, 30) for name in val])
    return tmp_path


def _check(folder: Path, capsys, *arguments: str) -> tuple[_Page, str, list[str]]:
    out = folder / "report" / "data.html"
    assert main(["check", str(folder), "--report", str(out), *arguments]) == 0
    text = out.read_text(encoding="utf-8")
    return _Page(text), text, capsys.readouterr().out.splitlines()


def test_page_has_the_numbers_of_the_data(folder, capsys):
    page, _, printed = _check(folder, capsys)
    assert "train 6 1 8 1.33 6 2 0 0 96×96" in page.text
    assert "val 4 0 4 1.00 4 0 0 0 96×96" in page.text
    assert "plain 5 4 4 4" in page.text  # Objects and pictures of training, then of validation.
    assert f"{_EVIL} 3 3 0 0" in page.text
    for found in ("train: 1 tiny", "train: 1 huge", "train: 1 doubled", "train: 1 two classes"):
        assert found in page.text
    assert "1 boxes that reached out of their picture were cut" in page.text
    assert "Pictures without objects train: 1 images/t4.png" in page.text
    assert re.search(
        r"instances_train\.json:\d+ annotations\[5\] .{,20}the box \[60, 60, 120", page.text
    )
    assert "train: suspicious boxes: 1 tiny, 1 huge, 1 doubled, 1 two classes" in " ".join(printed)
    assert "val: median picture 96x96, 1.0 boxes per image: 100% small" in " ".join(printed)


def test_pictures_in_two_splits_are_a_warning(folder, capsys):
    page, _, printed = _check(folder, capsys)
    (leak,) = (line for line in printed if "show the same as pictures for train" in line)
    assert f"{folder / 'instances_val.json'}: warning: 3 of the 4 pictures for val" in leak
    assert "(1 copies, 1 nearly the same, 1 mirrored)" in leak
    assert printed[-1] == "0 errors, 2 warnings"
    assert "2 warnings" in page.text
    assert "nearly the same val: images/v0.jpg train: images/t1.png" in page.text
    assert "mirrored val: images/v1.png train: images/t2.png" in page.text
    assert "copy val: images/v3.png train: images/t4.png" in page.text
    out = folder / "report" / "data.html"
    assert main(["check", str(folder), "--report", str(out), "--strict"]) == 2


def test_names_are_text_and_nothing_is_loaded(folder, capsys):
    page, text, _ = _check(folder, capsys)
    assert "<script" not in text
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "b"}
    attributes = [(name, value) for _, found in page.tags for name, value in found.items()]
    assert not [name for name, _ in attributes if name.startswith("on")]
    sources = [value for name, value in attributes if name == "src"]
    assert all(value.startswith("data:image/jpeg;base64,") for value in sources)
    assert "http" not in re.sub(r"http-equiv", "", re.sub(r"base64,[^\"]+", "", text))
    # Ten pictures of both splits, and three pairs of them.
    assert len(sources) == 10 + 2 * 3
    sizes = {Image.open(io.BytesIO(base64.b64decode(v.split(",", 1)[1]))).size for v in sources}
    assert sizes == {(480, 480), (_SIDE, _SIDE)}
    assert _EVIL in page.text
    assert "<img src=x onerror=alert(1)>.png" in page.text


def test_page_is_the_same_each_time(folder, capsys):
    first = _check(folder, capsys)[1]
    assert _check(folder, capsys, "--workers", "1")[1] == first


@pytest.mark.parametrize("recipe", [None, "faster_rcnn_coco_small", "localizer_csv"])
def test_suggested_overrides_train(folder, capsys, recipe):
    options = () if recipe is None else ("--recipe", recipe)
    if recipe == "localizer_csv":
        options += ("data.objects=largest",)
    page, _, printed = _check(folder, capsys, *options)
    overrides = shlex.split(page.by_id["overrides"])
    line = next(line for line in printed if line.startswith("suggested for "))
    assert line.endswith(f": {page.by_id['overrides']}")
    keys = [override.partition("=")[0] for override in overrides]
    assert len(set(keys)) == len(keys)
    assert "data.batch_size" in keys
    assert "schedule.epochs" in keys
    assert ("model.anchor_sizes" in keys) == (recipe != "localizer_csv")
    small = ["model.backbone=resnet18", "model.weights_backbone=null", "data.workers=0"]
    if recipe == "localizer_csv":
        small += ["data.objects=largest", "optimizer.lr_overrides={}"]
    command = ["train", recipe or "faster_rcnn_coco_small", "--data", str(folder), *overrides]
    assert main([*command, *small, "--out", str(folder / "run"), "--max-steps", "1"]) == 0


def test_data_that_cannot_be_read_have_a_page_too(folder, capsys):
    (folder / "instances_train.json").write_text("{")
    (folder / "images" / "v2.png").write_bytes(b"")
    out = folder / "data.html"
    assert main(["check", str(folder), "--report", str(out)]) == 2
    page = _Page(out.read_text(encoding="utf-8"))
    assert "train cannot be read" in page.text
    assert "None: no training split with objects was read." in page.text
    assert "v2.png" in page.text
    assert "suggested for" not in capsys.readouterr().out


def test_a_folder_that_cannot_be_written_is_one_line(folder, capsys):
    (folder / "file").write_text("")
    assert main(["check", str(folder), "--report", str(folder / "file" / "data.html")]) == 2
    assert str(folder / "file") in capsys.readouterr().err


@needs_real_data
def test_real_data_share_no_picture_between_splits(tmp_path, capsys):
    out = tmp_path / "coco.html"
    assert main(["check", str(REAL / "coco"), "--report", str(out)]) == 0
    page = _Page(out.read_text(encoding="utf-8"))
    assert "None among 128 pictures." in page.text
    assert len([tag for tag, _ in page.tags if tag == "img"]) == 24
    assert out.stat().st_size < 2_000_000
