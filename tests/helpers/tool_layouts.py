"""One tiny data set in the JSON and XML layouts of annotation tools.

The images and boxes are those of :mod:`tests.helpers.layouts`.
"""

from __future__ import annotations

import base64
import io
import json
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from tests.helpers.layouts import BOX, CLASSES, COUNT, pictures

X1, Y1, X2, Y2 = BOX
CORNERS = [[X1, Y1], [X2, Y1], [X2, Y2], [X1, Y2]]
ALL = tuple(range(COUNT))


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1))


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


def label_studio_result(number: int, **more: Any) -> dict[str, Any]:
    return {
        "id": f"region{number}",
        "type": "rectanglelabels",
        "from_name": "label",
        "to_name": "image",
        "original_width": 40,
        "original_height": 20,
        "image_rotation": 0,
        "value": {
            "x": X1 / 40 * 100,
            "y": Y1 / 20 * 100,
            "width": (X2 - X1) / 40 * 100,
            "height": (Y2 - Y1) / 20 * 100,
            "rotation": 0,
            "rectanglelabels": [CLASSES[number % 2]],
        },
        **more,
    }


def label_studio_polygon(number: int) -> dict[str, Any]:
    points = [[x / 40 * 100, y / 20 * 100] for x, y in CORNERS]
    value = {"points": points, "closed": True, "polygonlabels": [CLASSES[number % 2]]}
    return label_studio_result(number, type="polygonlabels", value=value)


def label_studio_task(number: int, image: str, results: Sequence[Any]) -> dict[str, Any]:
    return {
        "id": number + 1,
        "data": {"image": image},
        "annotations": [
            {
                "id": number,
                "completed_by": 1,
                "result": list(results),
                "was_cancelled": False,
                "ground_truth": False,
                "created_at": "2024-05-01T10:00:00Z",
                "updated_at": "2024-05-01T10:00:00Z",
                "lead_time": 3.1,
            }
        ],
        "drafts": [],
        "predictions": [],
        "file_upload": image.rpartition("/")[2],
    }


# What Label Studio calls p0.png to p5.png, and where a person has the files.
ADDRESSES = (
    "/data/upload/7/0a1b2c3d-p0.png",
    "/data/local-files/?d=images/p1.png",
    "s3://bucket/some/folder/p2.png",
    "https://example.org/files/p3.png?token=abc",
    "/data/local-files/?d=images%2Fp4.png",
    "gs://bucket/images/p5.png",
)


def label_studio(root: Path) -> None:
    pictures(root / "images")
    tasks = [
        label_studio_task(n, ADDRESSES[n], [(label_studio_result, label_studio_polygon)[n % 2](n)])
        for n in ALL
    ]
    write_json(root / "project-1-at-2024-05-01-10-00-0a1b2c3d.json", tasks)


def label_studio_min(root: Path) -> None:
    pictures(root / "images")
    rows = []
    for n in ALL:
        result = label_studio_result(n)
        region = {**result["value"], "original_width": 40, "original_height": 20}
        rows.append(
            {
                "image": ADDRESSES[n],
                "id": n + 1,
                "label": [region],
                "annotator": 1,
                "annotation_id": n,
                "created_at": "2024-05-01T10:00:00Z",
                "updated_at": "2024-05-01T10:00:00Z",
                "lead_time": 2.5,
            }
        )
    write_json(root / "project-1-at-2024-05-01-min.json", rows)


def cvat_xml(shapes: Callable[[int], str], subset: Callable[[int], str] | None = None) -> str:
    labels = "".join(
        f"<label><name>{name}</name><color>#f00</color><type>any</type>"
        f"<attributes></attributes></label>"
        for name in CLASSES
    )
    images = "".join(
        f'  <image id="{n}" name="p{n}.png"'
        + (f' subset="{subset(n)}" task_id="1"' if subset is not None else "")
        + f' width="40" height="20">\n    {shapes(n)}\n  </image>\n'
        for n in ALL
    )
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n'
        f"  <meta><task><id>1</id><name>animals</name><size>{COUNT}</size>"
        f"<mode>annotation</mode><labels>{labels}</labels></task></meta>\n{images}</annotations>\n"
    )


def cvat_shape(number: int) -> str:
    label = CLASSES[number % 2]
    points = ";".join(f"{x:.2f},{y:.2f}" for x, y in CORNERS)
    shapes = (
        f'<box label="{label}" source="manual" occluded="0" xtl="{X1}.00" ytl="{Y1}.00" '
        f'xbr="{X2}.00" ybr="{Y2}.00" z_order="0"><attribute name="old">no</attribute></box>',
        f'<polygon label="{label}" source="manual" occluded="0" points="{points}" z_order="0"/>',
        f'<mask label="{label}" rle="240" left="{X1}" top="{Y1}" width="{X2 - X1}" '
        f'height="{Y2 - Y1}" z_order="0"/>',
    )
    return shapes[number % 3]


def cvat_images(root: Path) -> None:
    pictures(root / "images")
    (root / "annotations.xml").write_text(cvat_xml(cvat_shape))


def cvat_project(root: Path) -> None:
    for subset, numbers in (("Train", range(4)), ("Validation", range(4, 6))):
        pictures(root / "images" / subset, numbers)
    xml = cvat_xml(cvat_shape, lambda n: "Train" if n < 4 else "Validation")
    (root / "annotations.xml").write_text(xml)


def cvat_video(root: Path) -> None:
    for n in ALL:
        pictures(root / "images", [n])
        (root / "images" / f"p{n}.png").rename(root / "images" / f"frame_{n:06d}.PNG")
    tracks = ""
    for label, start in ((CLASSES[0], 0), (CLASSES[1], 1)):
        boxes = "".join(
            f'<box frame="{n}" keyframe="1" outside="{int(n % 2 != start)}" occluded="0" '
            f'xtl="{X1}" ytl="{Y1}" xbr="{X2}" ybr="{Y2}" z_order="0"></box>'
            for n in ALL
        )
        tracks += f'<track id="{start}" label="{label}" source="manual">{boxes}</track>'
    (root / "annotations.xml").write_text(
        "<annotations><version>1.1</version><meta><task>"
        f"<size>{COUNT}</size><mode>interpolation</mode><start_frame>0</start_frame>"
        "<stop_frame>5</stop_frame><frame_filter></frame_filter>"
        "<original_size><width>40</width><height>20</height></original_size>"
        f"</task></meta>{tracks}</annotations>"
    )


def imagefolder_row(number: int, **more: Any) -> dict[str, Any]:
    objects = {"bbox": [[X1, Y1, X2 - X1, Y2 - Y1]], "categories": [CLASSES[number % 2]]}
    return {"file_name": f"p{number}.png", "objects": objects, **more}


def imagefolder(root: Path) -> None:
    for split, numbers in (("train", range(4)), ("validation", range(4, 6))):
        pictures(root / split, numbers)
        lines = [json.dumps(imagefolder_row(n)) for n in numbers]
        (root / split / "metadata.jsonl").write_text("\n".join(lines) + "\n")


def imagefolder_with_card(root: Path) -> None:
    pictures(root)
    (root / "README.md").write_text(
        "---\ndataset_info:\n  features:\n  - name: objects\n    sequence:\n"
        "    - name: category\n      dtype:\n        class_label:\n          names:\n"
        "            '0': cat\n            '1': dog\n---\n# Animals\n"
    )
    box = [X1, Y1, X2 - X1, Y2 - Y1]
    lines = [
        json.dumps({"file_name": f"p{n}.png", "objects": [{"bbox": box, "category": n % 2}]})
        for n in ALL
    ]
    (root / "metadata.jsonl").write_text("\n".join(lines) + "\n")


def imagefolder_csv(root: Path) -> None:
    pictures(root)
    rows = ["file_name,objects"]
    for n in ALL:
        objects = json.dumps(imagefolder_row(n)["objects"]).replace('"', '""')
        rows.append(f'p{n}.png,"{objects}"')
    (root / "metadata.csv").write_text("\n".join(rows) + "\n")


def datumaro(root: Path) -> None:
    pictures(root / "images" / "default")
    items = [
        {
            "id": f"p{n}",
            "annotations": [
                {
                    "id": 0,
                    "type": "bbox",
                    "group": 0,
                    "label_id": n % 2,
                    "bbox": [X1, Y1, X2 - X1, Y2 - Y1],
                }
            ],
            "image": {"path": f"p{n}.png", "size": [20, 40]},
        }
        for n in ALL
    ]
    labels = [{"name": name, "parent": "", "attributes": []} for name in CLASSES]
    categories = {"label": {"labels": labels, "attributes": []}}
    document = {"info": {}, "categories": categories, "items": items}
    write_json(root / "annotations" / "default.json", document)


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
