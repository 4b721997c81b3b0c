"""One tiny data set in the layouts that annotation tools write.

Six pictures of 40x20 pixels, each of its own color, with one box each: a cat, a dog, a cat ...
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

CLASSES = ("cat", "dog")
# (x1, y1, x2, y2), pixels, x2 and y2 beyond the last one.
BOX = (10, 4, 30, 16)
COUNT = 6
X1, Y1, X2, Y2 = BOX
CORNERS = [[X1, Y1], [X2, Y1], [X2, Y2], [X1, Y2]]
ALL = tuple(range(COUNT))


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1))


def pictures(folder: Path, numbers: Sequence[int] = range(COUNT)) -> list[str]:
    """Write pictures and return their names without suffix."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        Image.new("RGB", (40, 20), (40 * number, 90, 120)).save(folder / f"p{number}.png")
    return [f"p{number}" for number in numbers]


def yolo_labels(folder: Path, numbers: Sequence[int] = range(COUNT)) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        (folder / f"p{number}.txt").write_text(f"{number % 2} 0.5 0.5 0.5 0.6\n")


def voc_xml(folder: Path, numbers: Sequence[int] = range(COUNT)) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    x1, y1, x2, y2 = BOX
    for number in numbers:
        (folder / f"p{number}.xml").write_text(
            f"<annotation><filename>p{number}.png</filename>"
            "<size><width>40</width><height>20</height><depth>3</depth></size>"
            f"<object><name>{CLASSES[number % 2]}</name><bndbox><xmin>{x1 + 1}</xmin>"
            f"<ymin>{y1 + 1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
            "</annotation>\n"
        )


def coco(path: Path, numbers: Sequence[int] = range(COUNT), prefix: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    x1, y1, x2, y2 = BOX
    document = {
        "images": [
            {"id": n, "file_name": f"{prefix}p{n}.png", "width": 40, "height": 20} for n in numbers
        ],
        "annotations": [
            {"id": n, "image_id": n, "category_id": n % 2, "bbox": [x1, y1, x2 - x1, y2 - y1]}
            for n in numbers
        ],
        "categories": [{"id": index, "name": name} for index, name in enumerate(CLASSES)],
    }
    path.write_text(json.dumps(document))


def table(path: Path, header: str, row: Callable[[int], Sequence[object]]) -> None:
    """Write a CSV file with one row per picture."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header.split(","))
        writer.writerows(row(number) for number in range(COUNT))


def fiftyone_yolo(root: Path) -> None:
    _split_yolo(root, ("train", "val"))
    (root / "dataset.yaml").write_text(
        "path: .\ntrain: ./images/train/\nval: ./images/val/\nnames:\n  0: cat\n  1: dog\n"
    )


def custom_yaml(root: Path) -> None:
    _split_yolo(root, ("fit", "held_out"))
    (root / "animals.yaml").write_text(
        "path: ../datasets/animals\ntrain: images/fit\nval: images/held_out\nnames: [cat, dog]\n"
    )


def yolo_without_yaml(root: Path) -> None:
    _split_yolo(root, ("train", "val"))
    (root / "labels" / "train" / "classes.txt").write_text("cat\ndog\n")


def _split_yolo(root: Path, names: tuple[str, str]) -> None:
    for name, numbers in zip(names, (range(4), range(4, 6)), strict=True):
        pictures(root / "images" / name, numbers)
        yolo_labels(root / "labels" / name, numbers)


def labelimg_yolo(root: Path) -> None:
    pictures(root)
    yolo_labels(root)
    (root / "classes.txt").write_text("cat\ndog\n")


def labelimg_voc(root: Path) -> None:
    pictures(root)
    voc_xml(root)


def raccoon_voc(root: Path) -> None:
    pictures(root / "images")
    voc_xml(root / "annotations")


def voc_without_sets(root: Path) -> None:
    pictures(root / "JPEGImages")
    voc_xml(root / "Annotations")


def roboflow_voc(root: Path) -> None:
    for name, numbers in (("train", range(4)), ("valid", range(4, 6))):
        pictures(root / name, numbers)
        voc_xml(root / name, numbers)


def divided_voc(root: Path) -> None:
    for name, numbers in (("train", range(4)), ("val", range(4, 6))):
        pictures(root / "JPEGImages" / name, numbers)
        voc_xml(root / "Annotations" / name, numbers)


def cvat_voc(root: Path) -> None:
    voc_without_sets(root)
    (root / "ImageSets" / "Main").mkdir(parents=True)
    names = "".join(f"p{number}\n" for number in range(COUNT))
    (root / "ImageSets" / "Main" / "default.txt").write_text(names)


def cvat_yolo(root: Path) -> None:
    pictures(root / "obj_train_data")
    yolo_labels(root / "obj_train_data")
    (root / "obj.names").write_text("cat\ndog\n")
    (root / "obj.data").write_text("classes = 2\ntrain = data/train.txt\nnames = data/obj.names\n")
    names = "".join(f"data/obj_train_data/p{number}.png\n" for number in range(COUNT))
    (root / "train.txt").write_text(names)


def cvat_coco(root: Path) -> None:
    pictures(root / "images" / "default")
    coco(root / "annotations" / "instances_default.json")


def fiftyone_coco(root: Path) -> None:
    pictures(root / "data")
    coco(root / "labels.json")


def label_studio_coco(root: Path) -> None:
    pictures(root / "images")
    coco(root / "result.json", prefix="../../label-studio/data/media/upload/1/")


def label_studio_coco_windows(root: Path) -> None:
    pictures(root / "images")
    coco(root / "result.json", prefix="images\\")


def roboflow_csv(root: Path) -> None:
    x1, y1, x2, y2 = BOX
    pictures(root / "train")
    table(
        root / "train" / "_annotations.csv",
        "filename,width,height,class,xmin,ymin,xmax,ymax",
        lambda n: (f"p{n}.png", 40, 20, CLASSES[n % 2], x1, y1, x2, y2),
    )


# The format, and how many images each split has.
LAYOUTS: dict[str, tuple[Callable[[Path], None], str, dict[str, int]]] = {
    "FiftyOne YOLOv5": (fiftyone_yolo, "yolo", {"train": 4, "val": 2}),
    "custom YAML": (custom_yaml, "yolo", {"train": 4, "val": 2}),
    "YOLO without YAML": (yolo_without_yaml, "yolo", {"train": 4, "val": 2}),
    "LabelImg YOLO": (labelimg_yolo, "yolo", {"train": COUNT}),
    "CVAT YOLO 1.1": (cvat_yolo, "yolo", {"train": COUNT}),
    "LabelImg VOC": (labelimg_voc, "voc", {"train": COUNT}),
    "annotations and images": (raccoon_voc, "voc", {"train": COUNT}),
    "VOC without ImageSets": (voc_without_sets, "voc", {"train": COUNT}),
    "Roboflow VOC": (roboflow_voc, "voc", {"train": 4, "val": 2}),
    "VOC in folders": (divided_voc, "voc", {"train": 4, "val": 2}),
    "CVAT VOC": (cvat_voc, "voc", {"train": COUNT}),
    "CVAT COCO": (cvat_coco, "coco", {"train": COUNT}),
    "FiftyOne COCO": (fiftyone_coco, "coco", {"train": COUNT}),
    "Label Studio COCO": (label_studio_coco, "coco", {"train": COUNT}),
    "Label Studio COCO, Windows": (label_studio_coco_windows, "coco", {"train": COUNT}),
    "Roboflow CSV": (roboflow_csv, "csv", {"train": COUNT}),
}
