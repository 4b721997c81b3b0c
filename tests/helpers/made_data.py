"""The synthetic shapes in the layouts of other data sets, for tests of whole recipes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from rcnn_ext.data.annotations import AnnotationSet
from rcnn_ext.data.formats.coco import read_coco
from rcnn_ext.data.formats.synthetic import SyntheticConfig, make_synthetic
from rcnn_ext.data.images import load_image

_IMAGES, _SIZE = 8, 64


def shapes(folder: Path) -> AnnotationSet:
    """Eight images of 64x64 pixels in COCO's layout, and what is in them."""
    config = SyntheticConfig(train=_IMAGES, val=2, size=_SIZE, seed=1)
    make_synthetic(folder, config, lambda items: items)
    return read_coco(folder / "annotations" / "instances_train.json", folder / "train")


def as_coco(folder: Path) -> Path:
    shapes(folder)
    return folder


def as_voc(folder: Path) -> Path:
    found = shapes(folder / "coco")
    year = folder / "VOCdevkit" / "VOC2007"
    for name in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (year / name).mkdir(parents=True)
    stems = []
    for record in found.images:
        stem = record.path.stem
        stems.append(stem)
        load_image(record.path).save(year / "JPEGImages" / f"{stem}.jpg", quality=95)
        objects = "".join(
            f"<object><name>{found.classes.name(int(label))}</name><difficult>0</difficult><bndbox>"
            f"<xmin>{x1 + 1:g}</xmin><ymin>{y1 + 1:g}</ymin><xmax>{x2:g}</xmax><ymax>{y2:g}</ymax>"
            "</bndbox></object>\n"
            for (x1, y1, x2, y2), label in zip(
                record.boxes.round().tolist(), record.labels, strict=True
            )
        )
        (year / "Annotations" / f"{stem}.xml").write_text(
            f"<annotation><filename>{stem}.jpg</filename><size><width>{_SIZE}</width>"
            f"<height>{_SIZE}</height><depth>3</depth></size>\n{objects}</annotation>\n"
        )
    (year / "ImageSets" / "Main" / "trainval.txt").write_text("\n".join(stems) + "\n")
    return folder / "VOCdevkit"


def as_pennfudan(folder: Path) -> Path:
    found = shapes(folder / "coco")
    root = folder / "PennFudanPed"
    for name in ("PNGImages", "PedMasks"):
        (root / name).mkdir(parents=True)
    for record in found.images:
        mask = np.zeros((_SIZE, _SIZE), dtype=np.uint8)
        for number, (x1, y1, x2, y2) in enumerate(record.boxes.round().astype(int), start=1):
            mask[y1:y2, x1:x2] = number
        load_image(record.path).save(root / "PNGImages" / f"{record.path.stem}.png")
        Image.fromarray(mask).save(root / "PedMasks" / f"{record.path.stem}_mask.png")
    return root


def as_csv(folder: Path) -> Path:
    """Keep one object per image: the largest."""
    found = shapes(folder / "coco")
    root = folder / "csv"
    (root / "images").mkdir(parents=True)
    rows = ["filename,xmin,ymin,xmax,ymax,class"]
    for record in found.images:
        if len(record.boxes) == 0:
            continue
        sides = record.boxes[:, 2:] - record.boxes[:, :2]
        largest = int(sides.prod(axis=1).argmax())
        load_image(record.path).save(root / "images" / f"{record.path.stem}.png")
        box = ",".join(f"{value:g}" for value in record.boxes[largest].tolist())
        # Two classes of four images, so that each is in both parts of a split.
        name = ("circle", "square")[len(rows) % 2]
        rows.append(f"{record.path.stem}.png,{box},{name}")
    (root / "train.csv").write_text("\n".join(rows) + "\n")
    return root
