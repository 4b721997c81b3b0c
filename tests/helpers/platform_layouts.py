"""The tiny data set as Label Studio, CVAT, ImageFolder and Datumaro have it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

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
