"""One tiny data set in layouts of tables and text files, as tools and benchmarks write them.

The images and boxes are those of :mod:`tests.helpers.layouts`.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from tests.helpers.layouts import BOX, CLASSES, COUNT, pictures

X1, Y1, X2, Y2 = BOX
WIDTH, HEIGHT = 40, 20
SPLITS = (("train", range(4)), ("val", range(4, 6)))


def write_rows(path: Path, rows: Iterable[Sequence[object]], header: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if header is not None:
            writer.writerow(header.split(","))
        writer.writerows(rows)


def kaggle(root: Path) -> None:
    pictures(root / "train")
    rows = [
        (f"p{n}", WIDTH, HEIGHT, str([float(X1), float(Y1), X2 - X1, Y2 - Y1]), CLASSES[n % 2])
        for n in range(COUNT)
    ]
    write_rows(root / "train.csv", rows, "image_id,width,height,bbox,class")


def retinanet(root: Path) -> None:
    for split, numbers in SPLITS:
        pictures(root / "images", numbers)
        rows = [(f"images/p{n}.png", X1, Y1, X2, Y2, CLASSES[n % 2]) for n in numbers]
        write_rows(root / f"{split}.csv", rows)
    write_rows(root / "classes.csv", [(name, n) for n, name in enumerate(CLASSES)])


def roboflow_retinanet(root: Path) -> None:
    for split, numbers in (("train", range(4)), ("valid", range(4, 6))):
        pictures(root / split, numbers)
        rows = [(f"p{n}.png", X1, Y1, X2, Y2, CLASSES[n % 2]) for n in numbers]
        write_rows(root / split / "_annotations.csv", rows)
        write_rows(root / split / "_classes.csv", [(name, n) for n, name in enumerate(CLASSES)])


def tensorflow(root: Path) -> None:
    for name, numbers in (("train", range(4)), ("test", range(4, 6))):
        pictures(root / "images" / name, numbers)
        rows = [(f"p{n}.png", WIDTH, HEIGHT, CLASSES[n % 2], X1, Y1, X2, Y2) for n in numbers]
        header = "filename,width,height,class,xmin,ymin,xmax,ymax"
        write_rows(root / f"{name}_labels.csv", rows, header)


def tensorflow_normalized(root: Path) -> None:
    pictures(root / "images")
    rows = [
        (f"p{n}.png", X1 / WIDTH, X2 / WIDTH, Y1 / HEIGHT, Y2 / HEIGHT, CLASSES[n % 2])
        for n in range(COUNT)
    ]
    write_rows(root / "labels.csv", rows, "filename,xmin,xmax,ymin,ymax,class")


def automl(root: Path) -> None:
    pictures(root / "images")
    split = {name.upper().replace("VAL", "VALIDATION"): numbers for name, numbers in SPLITS}
    rows = [
        (
            *(name, f"gs://bucket/images/p{n}.png", CLASSES[n % 2]),
            *(X1 / WIDTH, Y1 / HEIGHT, "", "", X2 / WIDTH, Y2 / HEIGHT, "", ""),
        )
        for name, numbers in split.items()
        for n in numbers
    ]
    write_rows(root / "export.csv", rows)


def _open_images_row(number: int) -> tuple[object, ...]:
    box = (X1 / WIDTH, X2 / WIDTH, Y1 / HEIGHT, Y2 / HEIGHT)
    return f"p{number}", "xclick", f"/m/0{number % 2}", 1, *box, 0, 0, 0, 0, 0


OPEN_IMAGES = (
    "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,"
    "IsDepiction,IsInside"
)


def open_images(root: Path) -> None:
    for split, numbers in (("train", range(4)), ("validation", range(4, 6))):
        pictures(root / split, numbers)
        prefix = "oidv6-" if split == "train" else ""
        path = root / f"{prefix}{split}-annotations-bbox.csv"
        write_rows(path, map(_open_images_row, numbers), OPEN_IMAGES)
    names = [(f"/m/0{n}", name) for n, name in enumerate(CLASSES)]
    write_rows(root / "class-descriptions-boxable.csv", names)


def open_images_fiftyone(root: Path) -> None:
    for split, numbers in (("train", range(4)), ("validation", range(4, 6))):
        pictures(root / split / "data", numbers)
        path = root / split / "labels" / "detections.csv"
        write_rows(path, map(_open_images_row, numbers), OPEN_IMAGES)
        names = [(f"/m/0{n}", name) for n, name in enumerate(CLASSES)]
        write_rows(root / split / "metadata" / "classes.csv", names)


def open_images_subset(root: Path) -> None:
    pictures(root / "images")
    rows = [(*_open_images_row(n), "train" if n < 4 else "validation") for n in range(COUNT)]
    write_rows(root / "boxes.csv", rows, f"{OPEN_IMAGES},Subset")
    names = [("LabelName", "DisplayName"), *((f"/m/0{n}", c) for n, c in enumerate(CLASSES))]
    write_rows(root / "oidv7-class-descriptions.csv", names)


def via_csv(root: Path) -> None:
    pictures(root)
    shapes = [
        {"name": "rect", "x": X1, "y": Y1, "width": X2 - X1, "height": Y2 - Y1},
        {
            "name": "polygon",
            "all_points_x": [X1, X2, X2, X1],
            "all_points_y": [Y1, Y1, Y2, Y2],
        },
        {"name": "ellipse", "cx": 20, "cy": 10, "rx": 10, "ry": 6, "theta": 0},
    ]
    rows = [
        (
            *(f"p{n}.png", 900, '{"caption":""}', 1, 0),
            *(json.dumps(shapes[n % 3]), json.dumps({"type": CLASSES[n % 2]})),
        )
        for n in range(COUNT)
    ]
    header = (
        "filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,"
        "region_attributes"
    )
    write_rows(root / "via_project_csv.csv", rows, header)


# The format, and how many images each split has.
TOOLS: dict[str, tuple[Callable[[Path], None], str, dict[str, int]]] = {
    "Kaggle": (kaggle, "csv", {"train": COUNT}),
    "RetinaNet": (retinanet, "csv", {"train": 4, "val": 2}),
    "Roboflow RetinaNet": (roboflow_retinanet, "csv", {"train": 4, "val": 2}),
    "TensorFlow": (tensorflow, "csv", {"train": 4, "test": 2}),
    "TensorFlow, normalized": (tensorflow_normalized, "csv", {"train": COUNT}),
    "AutoML": (automl, "csv", {"train": 4, "val": 2}),
    "Open Images": (open_images, "openimages", {"train": 4, "val": 2}),
    "Open Images of FiftyOne": (open_images_fiftyone, "openimages", {"train": 4, "val": 2}),
    "Open Images, one file": (open_images_subset, "openimages", {"train": 4, "val": 2}),
    "VIA CSV": (via_csv, "via_csv", {"train": COUNT}),
}
