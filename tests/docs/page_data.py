"""The data that the pages of the documentation speak of, eight images of 64x64 pixels each."""

from __future__ import annotations

import shutil
from pathlib import Path

import yaml
from PIL import Image

from rcnn_ext.data.images import load_image
from tests.helpers.made_data import as_coco, as_csv, as_pennfudan, as_voc, shapes
from tests.helpers.videos import make_video


def make_page_data(folder: Path) -> None:
    """Write coco, VOCdevkit, PennFudanPed, csv and yolo, and pictures and a video without boxes.

    Args:
        folder: An existing folder, which a page's examples see as the current one.
    """
    as_coco(folder / "coco")
    for make in (as_voc, as_pennfudan, as_csv):
        made = make(folder / "made" / make.__name__)
        shutil.move(made, folder / made.name)
    _list_test_pictures(folder / "csv")
    _as_yolo(folder)
    shutil.rmtree(folder / "made")
    pictures = sorted((folder / "coco" / "val").iterdir())
    (folder / "folder").mkdir()
    for picture in pictures:
        load_image(picture).save(folder / "folder" / f"{picture.stem}.png")
    load_image(pictures[0]).save(folder / "photo.jpg")
    make_video(folder / "street.mp4", 8)


def _list_test_pictures(root: Path) -> None:
    """Add test.csv, which only names pictures."""
    names = sorted(path.name for path in (root / "images").iterdir())[:3]
    (root / "test.csv").write_text("filename\n" + "\n".join(names) + "\n")


def _as_yolo(folder: Path) -> None:
    found = shapes(folder / "made" / "yolo")
    for part in ("images", "labels"):
        (folder / "yolo" / part / "train").mkdir(parents=True)
    for record in found.images:
        shutil.copy(record.path, folder / "yolo" / "images" / "train" / record.path.name)
        with Image.open(record.path) as picture:
            width, height = picture.size
        lines = [
            f"{label - 1} {(x1 + x2) / 2 / width} {(y1 + y2) / 2 / height} "
            f"{(x2 - x1) / width} {(y2 - y1) / height}"
            for (x1, y1, x2, y2), label in zip(
                record.boxes.tolist(), record.labels.tolist(), strict=True
            )
        ]
        text = "\n".join(lines) + "\n"
        (folder / "yolo" / "labels" / "train" / f"{record.path.stem}.txt").write_text(text)
    names = [found.classes.name(label + 1) for label in range(len(found.classes.names))]
    description = {"train": "images/train", "names": names}
    (folder / "yolo" / "data.yaml").write_text(yaml.safe_dump(description))
