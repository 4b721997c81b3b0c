"""Real pictures with several objects each in the layouts of tools: the boxes are those of COCO."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lxml", reason="lxml comes with the extra train")

from rcnn_ext.data import AnnotationSet, DataConfig, detect_format, open_split
from rcnn_ext.data.annotations import ImageRecord
from tests.helpers.layouts import write_json
from tests.helpers.real_data import REAL, needs_real_data

COUNT = 12


class Entry:
    """A picture as a tool would export it."""

    def __init__(self, record: ImageRecord, names: list[str]) -> None:
        self.path = record.path
        self.name, self.stem = record.path.name, record.path.stem
        self.width, self.height = record.width, record.height
        self.objects = list(zip(names, record.boxes.tolist(), strict=True))


def _rect(box: list[float]) -> dict[str, object]:
    x1, y1, x2, y2 = box
    return {"name": "rect", "x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1}


def _via(root: Path, entries: list[Entry]) -> None:
    images = {}
    for one in entries:
        regions = [
            {"shape_attributes": _rect(box), "region_attributes": {"class": name}}
            for name, box in one.objects
        ]
        images[one.name] = {"filename": one.name, "regions": regions, "file_attributes": {}}
    write_json(root / "via_project.json", {"_via_img_metadata": images, "_via_attributes": {}})


def _via_csv(root: Path, entries: list[Entry]) -> None:
    header = ["filename", "file_size", "region_count", "region_id"]
    rows = [[*header, "region_shape_attributes", "region_attributes"]]
    for one in entries:
        for index, (name, box) in enumerate(one.objects):
            cells = [json.dumps(_rect(box)), json.dumps({"class": name})]
            rows.append([one.name, "9", str(len(one.objects)), str(index), *cells])
    with (root / "via.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def _label_studio(root: Path, entries: list[Entry]) -> None:
    tasks = []
    for one in entries:
        results = []
        for name, (x1, y1, x2, y2) in one.objects:
            value = {
                "x": 100 * x1 / one.width,
                "y": 100 * y1 / one.height,
                "width": 100 * (x2 - x1) / one.width,
                "height": 100 * (y2 - y1) / one.height,
                "rotation": 0,
                "rectanglelabels": [name],
            }
            size = {"original_width": one.width, "original_height": one.height}
            results.append({"type": "rectanglelabels", "value": value, **size})
        image = {"image": f"/data/upload/3/0a1b2c3d-{one.name}"}
        annotation = {"result": results, "was_cancelled": False}
        tasks.append({"data": image, "annotations": [annotation], "predictions": []})
    write_json(root / "export.json", tasks)


def _supervisely(root: Path, entries: list[Entry]) -> None:
    names = sorted({name for one in entries for name, _ in one.objects})
    write_json(root / "meta.json", {"classes": [{"title": name} for name in names], "tags": []})
    for one in entries:
        objects = [
            {
                "classTitle": name,
                "geometryType": "rectangle",
                "points": {"exterior": [box[:2], box[2:]], "interior": []},
            }
            for name, box in one.objects
        ]
        size = {"width": one.width, "height": one.height}
        write_json(root / "ds0" / "ann" / f"{one.name}.json", {"size": size, "objects": objects})
    for one in entries:
        (root / "ds0" / "img").mkdir(exist_ok=True)
        shutil.move(root / one.name, root / "ds0" / "img")


def _datumaro(root: Path, entries: list[Entry]) -> None:
    names = sorted({name for one in entries for name, _ in one.objects})
    items = []
    for one in entries:
        annotations = [
            {"type": "bbox", "label_id": names.index(name), "bbox": [a, b, c - a, d - b]}
            for name, (a, b, c, d) in one.objects
        ]
        image = {"path": one.name, "size": [one.height, one.width]}
        items.append({"id": one.stem, "annotations": annotations, "image": image})
    labels = {"label": {"labels": [{"name": name} for name in names]}}
    write_json(root / "annotations" / "default.json", {"categories": labels, "items": items})


def _imagefolder(root: Path, entries: list[Entry]) -> None:
    lines = []
    for one in entries:
        boxes = [[a, b, c - a, d - b] for _, (a, b, c, d) in one.objects]
        objects = {"bbox": boxes, "categories": [name for name, _ in one.objects]}
        lines.append(json.dumps({"file_name": one.name, "objects": objects}) + "\n")
    (root / "metadata.jsonl").write_text("".join(lines))


def _yolo(root: Path, entries: list[Entry]) -> None:
    names = sorted({name for one in entries for name, _ in one.objects})
    (root / "data.yaml").write_text(f"train: .\nnames: {json.dumps(names)}\n")
    for one in entries:
        lines = []
        for name, (x1, y1, x2, y2) in one.objects:
            values = ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1)
            sides = (one.width, one.height) * 2
            parts = [f"{value / side:.8f}" for value, side in zip(values, sides, strict=True)]
            lines.append(f"{names.index(name)} {' '.join(parts)}\n")
        (root / f"{one.stem}.txt").write_text("".join(lines))


def _kaggle(root: Path, entries: list[Entry]) -> None:
    rows = [["image_id", "width", "height", "bbox", "class"]]
    for one in entries:
        for name, (a, b, c, d) in one.objects:
            box = str([a, b, c - a, d - b])
            rows.append([one.stem, str(one.width), str(one.height), box, name])
    with (root / "train.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def _open_images(root: Path, entries: list[Entry]) -> None:
    names = sorted({name for one in entries for name, _ in one.objects})
    codes = {name: f"/m/{index:04d}" for index, name in enumerate(names)}
    rows = [["ImageID", "Source", "LabelName", "Confidence", "XMin", "XMax", "YMin", "YMax"]]
    for one in entries:
        for name, (x1, y1, x2, y2) in one.objects:
            sides = [x1 / one.width, x2 / one.width, y1 / one.height, y2 / one.height]
            rows.append([one.stem, "verification", codes[name], "1", *map(str, sides)])
    for file_name, content in (
        ("train-annotations-bbox.csv", rows),
        ("class-descriptions-boxable.csv", [[code, name] for name, code in codes.items()]),
    ):
        with (root / file_name).open("w", newline="") as file:
            csv.writer(file).writerows(content)


FORMATS: dict[str, Callable[[Path, list[Entry]], None]] = {
    "via": _via,
    "via_csv": _via_csv,
    "label_studio": _label_studio,
    "supervisely": _supervisely,
    "datumaro": _datumaro,
    "imagefolder": _imagefolder,
    "yolo": _yolo,
    "csv": _kaggle,
    "openimages": _open_images,
}


def _named(found: AnnotationSet, record: ImageRecord) -> list[str]:
    return [found.classes.name(label) for label in record.labels.tolist()]


@needs_real_data
@pytest.mark.parametrize("kind", FORMATS)
def test_real_pictures_have_the_boxes_of_their_coco_file(tmp_path: Path, kind: str) -> None:
    wanted = open_split(DataConfig(), REAL / "coco", "val")
    records = [one for one in wanted.images if len(one.boxes) and not one.crowd.any()][:COUNT]
    assert len(records) == COUNT
    entries = [Entry(record, _named(wanted, record)) for record in records]
    for one in entries:
        shutil.copy(one.path, tmp_path / one.name)
    FORMATS[kind](tmp_path, entries)
    assert detect_format(tmp_path) == kind
    found = open_split(DataConfig(), tmp_path, "train")
    assert not [problem for problem in found.problems if problem.severity != "note"]
    by_name = {record.path.name: record for record in found.images}
    assert sorted(by_name) == sorted(one.name for one in entries)
    for record in records:
        read = by_name[record.path.name]
        assert (read.width, read.height) == (record.width, record.height)
        np.testing.assert_allclose(read.boxes, record.boxes, atol=0.01)
        assert _named(found, read) == _named(wanted, record)
