"""Files and folders without the right to read them: each is named, and the others are done."""

from __future__ import annotations

from pathlib import Path

import pytest

from rcnn_ext.data import DataConfig, open_split
from rcnn_ext.data.check import check_split
from rcnn_ext.errors import UserError
from tests.helpers import layouts
from tests.helpers.permissions import folder_without_privileges

pytest.importorskip("lxml", reason="lxml comes with the extra train")


def _errors(root: Path) -> dict[str, str]:
    found = check_split(DataConfig(), root, "train")
    return {str(p.file.relative_to(root)): p.message for p in found.report.errors()}


def _yolo(root: Path) -> None:
    layouts.pictures(root / "images" / "train")
    layouts.yolo_labels(root / "labels" / "train")
    (root / "classes.txt").write_text("cat\ndog\n")


def _voc(root: Path) -> None:
    layouts.pictures(root / "JPEGImages")
    layouts.voc_xml(root / "Annotations")


@pytest.mark.parametrize(
    ("make", "label", "picture"),
    [
        (_yolo, "labels/train/p1.txt", "images/train/p2.png"),
        (_voc, "Annotations/p1.xml", "JPEGImages/p2.png"),
    ],
)
def test_each_file_that_cannot_be_read_is_named(make, label, picture):
    with folder_without_privileges() as root:
        make(root)
        assert _errors(root) == {}
        (root / label).chmod(0)
        (root / picture).chmod(0)
        found = [f"{file}: {message}" for file, message in _errors(root).items()]
        for name in (label, picture):
            assert sum(name in line and "Permission denied" in line for line in found) == 1
        skipped = open_split(DataConfig(on_error="skip"), root, "train")
        assert len(skipped) == layouts.COUNT - 2
        with pytest.raises(UserError, match=rf"{label}.*Permission denied"):
            open_split(DataConfig(), root, "train")


@pytest.mark.parametrize("make", [_yolo, _voc])
def test_a_folder_that_cannot_be_read_is_named_and_the_others_are_done(make):
    with folder_without_privileges() as root:
        make(root)
        closed = root / "more"
        layouts.pictures(closed)
        closed.chmod(0)
        found = _errors(root)
        message = "the folder cannot be read: Permission denied; what is in it is missing"
        assert found == {"more": message}
        assert len(open_split(DataConfig(on_error="skip"), root, "train")) == layouts.COUNT


def test_annotations_that_cannot_be_read_are_one_error():
    with folder_without_privileges() as root:
        _voc(root)
        (root / "Annotations").chmod(0)
        with pytest.raises(UserError, match=r"Annotations.*Permission denied"):
            open_split(DataConfig(format="voc"), root, "train")
    with folder_without_privileges() as root:
        layouts.pictures(root)
        layouts.coco(root / "train.json")
        (root / "train.json").chmod(0)
        with pytest.raises(UserError, match=r"train\.json: Permission denied"):
            open_split(DataConfig(format="coco"), root, "train")
