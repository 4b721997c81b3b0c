"""A COCO data set of small pictures, each of its own color, with boxes as a test wants them."""

from __future__ import annotations

import json

from PIL import Image

from rcnn_ext.data import DataConfig, open_split


def coco(root, images, objects, names=("a",), split="train"):
    """Write COCO data: pictures by name as (id, file name), objects as (image, category, box)."""
    root.mkdir(parents=True, exist_ok=True)
    for number, (_, name) in enumerate(images):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 20), (number, 0, 0)).save(root / name, format="PNG")
    document = {
        "images": [{"id": i, "file_name": n, "width": 40, "height": 20} for i, n in images],
        "annotations": [
            {"id": n, "image_id": i, "category_id": c, "bbox": box}
            for n, (i, c, box) in enumerate(objects)
        ],
        "categories": [{"id": n, "name": name} for n, name in enumerate(names)],
    }
    (root / f"{split}.json").write_text(json.dumps(document))


def read(root, split="train", **config):
    return open_split(DataConfig(**config), root, split)


def boxes_by_color(found):
    """The boxes of each picture, which is told by its color."""
    return {
        Image.open(record.path).getpixel((0, 0))[0]: record.boxes.tolist()
        for record in found.images
    }
