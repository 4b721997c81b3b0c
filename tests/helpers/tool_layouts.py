"""One tiny data set in the JSON and XML layouts of annotation tools.

The images and boxes are those of :mod:`tests.helpers.layouts`.
"""

from __future__ import annotations

import base64
import io
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from tests.helpers.layouts import (
    ALL,
    CLASSES,
    CORNERS,
    COUNT,
    X1,
    X2,
    Y1,
    Y2,
    pictures,
    write_json,
)
from tests.helpers.platform_layouts import (
    cvat_images,
    cvat_project,
    cvat_video,
    datumaro,
    imagefolder,
    imagefolder_csv,
    imagefolder_with_card,
    label_studio,
    label_studio_min,
)


def createml_entry(number: int) -> dict[str, Any]:
    center = {"x": (X1 + X2) / 2, "y": (Y1 + Y2) / 2, "width": X2 - X1, "height": Y2 - Y1}
    return {
        "image": f"p{number}.png",
        "verified": False,
        "annotations": [{"label": CLASSES[number % 2], "coordinates": center}],
    }


def createml_labelimg(root: Path) -> None:
    pictures(root)
    write_json(root / "pictures.json", [createml_entry(n) for n in ALL])


def createml_roboflow(root: Path) -> None:
    for split, numbers in (("train", range(4)), ("valid", range(4, 6))):
        pictures(root / split, numbers)
        entries = [createml_entry(n) for n in numbers]
        write_json(root / split / "_annotations.createml.json", entries)


def createml_file_per_image(root: Path) -> None:
    pictures(root / "images")
    for n in ALL:
        write_json(root / "annotations" / f"p{n}.json", [createml_entry(n)])


def labelme_file(number: int, shapes: Sequence[dict[str, Any]], image: str) -> dict[str, Any]:
    return {
        "version": "5.4.1",
        "flags": {},
        "shapes": [
            {
                "label": CLASSES[number % 2],
                "group_id": None,
                "description": "",
                "flags": {},
                "mask": None,
                **shape,
            }
            for shape in shapes
        ],
        "imagePath": image,
        "imageData": None,
        "imageHeight": 20,
        "imageWidth": 40,
    }


RECTANGLE = {"shape_type": "rectangle", "points": [[X2, Y2], [X1, Y1]]}
POLYGON = {"shape_type": "polygon", "points": CORNERS}


def labelme(root: Path) -> None:
    pictures(root)
    for n in ALL:
        shape = (RECTANGLE, POLYGON)[n % 2]
        write_json(root / f"p{n}.json", labelme_file(n, [shape], f"p{n}.png"))


def labelme_windows(root: Path) -> None:
    pictures(root / "images")
    for n in ALL:
        document = labelme_file(n, [RECTANGLE], f"..\\images\\p{n}.png")
        write_json(root / "labels" / f"p{n}.json", document)


def labelme_splits(root: Path) -> None:
    for split, numbers in (("train", range(4)), ("val", range(4, 6))):
        pictures(root / split, numbers)
        for n in numbers:
            path = root / split / f"p{n}.json"
            write_json(path, labelme_file(n, [POLYGON], f"p{n}.png"))


def via_image(number: int, as_polygon: bool = False) -> dict[str, Any]:
    rectangle = {"name": "rect", "x": X1, "y": Y1, "width": X2 - X1, "height": Y2 - Y1}
    polygon = {
        "name": "polygon",
        "all_points_x": [x for x, _ in CORNERS],
        "all_points_y": [y for _, y in CORNERS],
    }
    return {
        "filename": f"p{number}.png",
        "size": 200,
        "regions": [
            {
                "shape_attributes": polygon if as_polygon else rectangle,
                "region_attributes": {"animal": CLASSES[number % 2]},
            }
        ],
        "file_attributes": {},
    }


def via_export(root: Path) -> None:
    pictures(root)
    write_json(root / "via_region_data.json", {f"p{n}.png200": via_image(n, n > 2) for n in ALL})


def via_project(root: Path) -> None:
    pictures(root / "images")
    options = dict.fromkeys(CLASSES, "")
    write_json(
        root / "via_project_1Dec2024_10h5m.json",
        {
            "_via_settings": {"ui": {}, "core": {"default_filepath": "images/"}},
            "_via_img_metadata": {f"p{n}.png200": via_image(n) for n in ALL},
            "_via_attributes": {
                "region": {"animal": {"type": "dropdown", "options": options}},
                "file": {},
            },
            "_via_data_format_version": "2.0.10",
            "_via_image_id_list": [f"p{n}.png200" for n in ALL],
        },
    )


def via_1(root: Path) -> None:
    pictures(root)
    images = {f"p{n}.png200": via_image(n) for n in ALL}
    for image in images.values():
        image["regions"] = {str(i): region for i, region in enumerate(image["regions"])}
    write_json(root / "via_region_data.json", images)


def via_3(root: Path) -> None:
    pictures(root)
    points = [value for corner in CORNERS for value in corner]
    shapes = ([2, X1, Y1, X2 - X1, Y2 - Y1], [7, *points], [8, *points])
    options = {str(index): name for index, name in enumerate(CLASSES)}
    anchor = "FILE1_Z0_XY1"
    write_json(
        root / "animals.json",
        {
            "project": {"pid": "__VIA_PROJECT_ID__", "data_format_version": "3.1.1"},
            "config": {"file": {"loc_prefix": {"1": "", "2": "", "3": "", "4": ""}}},
            "attribute": {
                "1": {"aname": "animal", "anchor_id": anchor, "type": 4, "options": options}
            },
            "file": {
                str(n + 1): {
                    "fid": str(n + 1),
                    "fname": f"p{n}.png",
                    "type": 2,
                    "loc": 1,
                    "src": "",
                }
                for n in ALL
            },
            "metadata": {
                f"{n + 1}_aBcD": {
                    "vid": str(n + 1),
                    "flg": 0,
                    "z": [],
                    "xy": shapes[n % 3],
                    "av": {"1": str(n % 2)},
                }
                for n in ALL
            },
            "view": {str(n + 1): {"fid_list": [str(n + 1)]} for n in ALL},
        },
    )


def bitmap(width: int, height: int) -> str:
    """Return the data of a Supervisely bitmap."""
    file = io.BytesIO()
    Image.new("L", (width, height), 255).save(file, "PNG")
    return base64.b64encode(zlib.compress(file.getvalue())).decode()


def supervisely_file(number: int) -> dict[str, Any]:
    common = {"classTitle": CLASSES[number % 2], "tags": [], "labelerLogin": "me", "id": number}
    shapes: tuple[dict[str, Any], ...] = (
        {
            "geometryType": "rectangle",
            "points": {"exterior": [[X1, Y1], [X2, Y2]], "interior": []},
        },
        {"geometryType": "polygon", "points": {"exterior": CORNERS, "interior": []}},
        {
            "geometryType": "bitmap",
            "bitmap": {"data": bitmap(X2 - X1, Y2 - Y1), "origin": [X1, Y1]},
        },
    )
    return {
        "description": "",
        "tags": [],
        "size": {"height": 20, "width": 40},
        "objects": [{**common, **shapes[number % 3]}],
    }


def supervisely(root: Path) -> None:
    classes = [{"title": name, "shape": "any", "color": "#0F8A10", "id": 1} for name in CLASSES]
    write_json(root / "meta.json", {"classes": classes, "tags": [], "projectType": "images"})
    pictures(root / "ds0" / "img")
    for n in ALL:
        write_json(root / "ds0" / "ann" / f"p{n}.png.json", supervisely_file(n))


def supervisely_splits(root: Path) -> None:
    classes = [{"title": name, "shape": "any", "color": "#0F8A10"} for name in CLASSES]
    write_json(root / "meta.json", {"classes": classes, "tags": []})
    for split, numbers in (("train", range(4)), ("val", range(4, 6))):
        pictures(root / split / "img", numbers)
        for n in numbers:
            write_json(root / split / "ann" / f"p{n}.png.json", supervisely_file(n))


# The format, and how many images each split has.
TOOLS: dict[str, tuple[Callable[[Path], None], str, dict[str, int]]] = {
    "LabelImg CreateML": (createml_labelimg, "createml", {"train": COUNT}),
    "Roboflow CreateML": (createml_roboflow, "createml", {"train": 4, "val": 2}),
    "CreateML, a file per image": (createml_file_per_image, "createml", {"train": COUNT}),
    "labelme": (labelme, "labelme", {"train": COUNT}),
    "labelme, Windows": (labelme_windows, "labelme", {"train": COUNT}),
    "labelme in folders": (labelme_splits, "labelme", {"train": 4, "val": 2}),
    "VIA export": (via_export, "via", {"train": COUNT}),
    "VIA project": (via_project, "via", {"train": COUNT}),
    "VIA 1": (via_1, "via", {"train": COUNT}),
    "VIA 3": (via_3, "via", {"train": COUNT}),
    "Supervisely": (supervisely, "supervisely", {"train": COUNT}),
    "Supervisely in folders": (supervisely_splits, "supervisely", {"train": 4, "val": 2}),
    "Label Studio JSON": (label_studio, "label_studio", {"train": COUNT}),
    "Label Studio JSON-MIN": (label_studio_min, "label_studio", {"train": COUNT}),
    "CVAT for images": (cvat_images, "cvat", {"train": COUNT}),
    "CVAT project": (cvat_project, "cvat", {"train": 4, "val": 2}),
    "CVAT for video": (cvat_video, "cvat", {"train": COUNT}),
    "ImageFolder": (imagefolder, "imagefolder", {"train": 4, "val": 2}),
    "ImageFolder with a card": (imagefolder_with_card, "imagefolder", {"train": COUNT}),
    "ImageFolder CSV": (imagefolder_csv, "imagefolder", {"train": COUNT}),
    "Datumaro": (datumaro, "datumaro", {"train": COUNT}),
}
