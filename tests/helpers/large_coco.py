"""Write a COCO file of any size, with boxes and perhaps outlines, and no pictures.

``python -m tests.helpers.large_coco OUT.json --images 118000 --objects 860000`` writes one as large
as that of COCO's training images; ``--measure`` reads it and prints CPU time and peak memory.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import time
from pathlib import Path

NUM_CLASSES = 80


def write_large_coco(path: Path, images: int, objects: int, outlines: int = 0) -> None:
    """Write a COCO file, and empty files as its pictures in ``images`` beside it.

    Args:
        path: The file to write.
        images: Number of images of 640x480.
        objects: Number of objects, spread over them.
        outlines: Number of points of the outline of each object.
    """
    rng = random.Random(0)
    folder = path.parent / "images"
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{index:012d}.jpg" for index in range(images)]
    for name in names:
        (folder / name).touch()
    with path.open("w") as file:
        file.write('{"info": {"description": "made"}, "licenses": [], "images": [')
        for index, name in enumerate(names):
            entry = {
                "license": 4,
                "file_name": name,
                "coco_url": f"http://images.example.org/train/{name}",
                "height": 480,
                "width": 640,
                "date_captured": "2013-11-14 11:18:45",
                "id": 1000 + index,
            }
            file.write(", " * (index > 0) + json.dumps(entry))
        file.write('], "annotations": [')
        for index in range(objects):
            x, y = round(rng.random() * 500, 2), round(rng.random() * 400, 2)
            width, height = round(2 + rng.random() * 100, 2), round(2 + rng.random() * 70, 2)
            entry = {
                "segmentation": [[round(rng.random() * 400, 2) for _ in range(2 * outlines)]]
                * bool(outlines),
                "area": round(width * height, 4),
                "iscrowd": int(index % 100 == 0),
                "image_id": 1000 + rng.randrange(images),
                "bbox": [x, y, width, height],
                "category_id": 1 + rng.randrange(NUM_CLASSES),
                "id": 1 + index,
            }
            file.write(", " * (index > 0) + json.dumps(entry))
        categories = [
            {"supercategory": "thing", "id": index + 1, "name": f"class {index + 1}"}
            for index in range(NUM_CLASSES)
        ]
        file.write(f'], "categories": {json.dumps(categories)}}}')


def main() -> None:
    """Write a file, or read it and print what that took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path)
    parser.add_argument("--images", type=int, default=118_000)
    parser.add_argument("--objects", type=int, default=860_000)
    parser.add_argument("--outlines", type=int, default=0, help="points of each outline")
    parser.add_argument("--measure", action="store_true", help="read the file instead")
    options = parser.parse_args()
    if not options.measure:
        write_large_coco(options.path, options.images, options.objects, options.outlines)
        return
    from rcnn_ext.data import read_coco

    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    found = read_coco(options.path)
    seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        f"{found.summary()}: {seconds:.1f} s of CPU, {peak >> 10} MB at most ({base >> 10} before)"
    )


if __name__ == "__main__":
    main()
