"""A made data set in COCO format: textured shapes on varied backgrounds.

It needs no download, is the same for the same seed, and is easy enough that a small detector learns
it from scratch in minutes, so it shows that a detector, its losses and its metrics work. The class
of an object is its outline alone; colors and textures are drawn independently of it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from rcnn_ext.config.data import DataConfig, SyntheticConfig
from rcnn_ext.data.annotations import AnnotationSet
from rcnn_ext.data.builder import ReadOptions
from rcnn_ext.data.formats import coco
from rcnn_ext.data.formats.format import Format
from rcnn_ext.errors import UserError
from rcnn_ext.files import read_json, replacing_folder
from rcnn_ext.progress import tracked

SHAPES = ("circle", "square", "triangle")

# Maximum angle by which outlines are turned from upright.
_TURN = math.radians(20)

# Masks are drawn this many times larger and averaged down, which gives smooth outlines.
_SUPERSAMPLING = 4


def make_synthetic(
    root: Path | str,
    config: SyntheticConfig | None = None,
    progress: Callable[[Iterable[int]], Iterable[int]] = lambda items: items,
) -> Path:
    """Write the data set, or keep the one that is there if it was made from the same values.

    The layout is COCO's: ``annotations/instances_train.json``, ``annotations/instances_val.json``,
    ``train/`` and ``val/`` with PNG images. The folder appears whole or not at all.

    Args:
        root: Folder to make.
        config: What to make.
        progress: Wraps the iteration over images, to show it.

    Returns:
        ``root``.

    Raises:
        UserError: ``root`` holds anything else.
    """
    root = Path(root)
    config = config or SyntheticConfig()
    if root.exists() and not root.is_dir():
        raise UserError(f"{root} is a file; a synthetic data set needs a folder")
    if root.is_dir() and any(root.iterdir()):
        if _made_from(root) == asdict(config):
            return root
        raise UserError(
            f"{root} holds something other than the synthetic data set asked for; "
            "name an empty or a new folder"
        )
    with replacing_folder(root) as folder:
        (folder / "annotations").mkdir()
        counts = {"train": config.train, "val": config.val}
        todo = iter(progress(range(sum(counts.values()))))
        for split, count in counts.items():
            (folder / split).mkdir()
            document = _coco_document(split, config)
            for index in range(count):
                next(todo)
                picture, objects = draw_scene(config, split, index)
                name = f"{index + 1:06d}.png"
                picture.save(folder / split / name, compress_level=6)
                _append(document, name, config.size, objects)
            path = folder / "annotations" / f"instances_{split}.json"
            path.write_text(json.dumps(document), encoding="utf-8")
        # Lets a progress bar see its end.
        next(todo, None)
    return root


@dataclass(frozen=True)
class DrawnObject:
    """One shape of a made image.

    Attributes:
        category: Index into ``SHAPES``.
        box: ``(x1, y1, x2, y2)`` in image pixels, tight around the outline.
        area: Number of pixels inside the outline.
    """

    category: int
    box: tuple[int, int, int, int]
    area: int


def draw_scene(
    config: SyntheticConfig, split: str, index: int
) -> tuple[Image.Image, list[DrawnObject]]:
    """Draw one image.

    Each image has a random stream of its own, so that a larger set begins with the images of a
    smaller one.
    """
    stream = ("train", "val").index(split)
    rng = np.random.default_rng([config.seed, stream, index])
    size = config.size
    canvas, base = _background(rng, size)  # [size, size, 3], [3]
    objects: list[DrawnObject] = []
    wanted = 0 if rng.random() < 0.05 else int(rng.integers(1, config.max_objects + 1))
    for _ in range(wanted):
        category = int(rng.integers(len(SHAPES)))
        placed = _place(rng, category, size, [drawn.box for drawn in objects])
        if placed is None:
            continue
        alpha, drawn = placed
        texture = _texture(rng, size, _contrasting(rng, base))  # [size, size, 3]
        canvas = canvas * (1 - alpha[..., None]) + texture * alpha[..., None]
        objects.append(drawn)
    canvas = canvas + rng.normal(0, 0.02, canvas.shape)
    pixels = (canvas.clip(0, 1) * 255).round().astype(np.uint8)
    return Image.fromarray(pixels), objects


def _place(
    rng: np.random.Generator,
    category: int,
    size: int,
    taken: list[tuple[int, int, int, int]],
) -> tuple[np.ndarray, DrawnObject] | None:
    """Find a place for a shape that hides little of the others; None if there is none."""
    for _ in range(20):
        radius = size * rng.uniform(0.13, 0.27)
        center = rng.uniform(radius, size - radius, 2)
        alpha = _mask(category, size, center, radius, rng.uniform(-_TURN, _TURN))
        inside = alpha >= 0.5
        rows = np.flatnonzero(inside.any(axis=1))
        columns = np.flatnonzero(inside.any(axis=0))
        box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
        if all(_overlap_of_smaller(box, other) < 0.15 for other in taken):
            return alpha, DrawnObject(category, box, int(inside.sum()))
    return None


def _mask(
    category: int, size: int, center: np.ndarray, radius: float, turn: float
) -> np.ndarray:  # [size, size], 0 outside to 1 inside
    scale = _SUPERSAMPLING
    drawing = Image.new("L", (size * scale, size * scale))
    x, y = center * scale
    radius = radius * scale
    pen = ImageDraw.Draw(drawing)
    if SHAPES[category] == "circle":
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    else:
        # A square stands on a side and a triangle too: their first corners are at 45 and -90
        # degrees.
        corners, first = {"square": (4, math.pi / 4), "triangle": (3, -math.pi / 2)}[
            SHAPES[category]
        ]
        angles = [first + turn + 2 * math.pi * i / corners for i in range(corners)]
        points = [(x + radius * math.cos(a), y + radius * math.sin(a)) for a in angles]
        pen.polygon(points, fill=255)
    small = drawing.resize((size, size), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32) / 255


def _overlap_of_smaller(
    first: tuple[int, int, int, int], second: tuple[int, int, int, int]
) -> float:
    """Intersection over the smaller of two boxes ``(x1, y1, x2, y2)``."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return width * height / min(areas)


def _background(
    rng: np.random.Generator, size: int
) -> tuple[np.ndarray, np.ndarray]:  # [size, size, 3], [3] (its mean color)
    base = rng.uniform(0.1, 0.9, 3)
    canvas = _texture(rng, size, base, contrast=0.12)
    # A slow change of brightness across the image, as light has.
    x, y = np.meshgrid(np.linspace(-1, 1, size), np.linspace(-1, 1, size))
    angle = rng.uniform(0, 2 * math.pi)
    light = 0.12 * (x * math.cos(angle) + y * math.sin(angle))  # [size, size]
    return canvas + light[..., None], base


def _contrasting(rng: np.random.Generator, base: np.ndarray) -> np.ndarray:  # [3]
    """Return a color that stands out from ``base`` by some channel."""
    while True:
        color = rng.uniform(0, 1, 3)
        if np.abs(color - base).max() > 0.4:
            return color


def _texture(
    rng: np.random.Generator, size: int, base: np.ndarray, contrast: float = 0.25
) -> np.ndarray:  # [size, size, 3]
    """Plain, striped, checkered, dotted or cloudy paint around a base color."""
    y, x = np.mgrid[0:size, 0:size].astype(np.float64)
    angle = rng.uniform(0, math.pi)
    u = x * math.cos(angle) + y * math.sin(angle)
    v = y * math.cos(angle) - x * math.sin(angle)
    period = rng.uniform(6, 16)
    kind = rng.integers(5)
    if kind == 0:
        pattern = np.zeros_like(x)
    elif kind == 1:
        pattern = np.sin(2 * math.pi * u / period)
    elif kind == 2:
        pattern = np.sign(np.sin(2 * math.pi * u / period) * np.sin(2 * math.pi * v / period))
    elif kind == 3:
        pattern = np.cos(2 * math.pi * u / period) + np.cos(2 * math.pi * v / period)
        pattern = np.where(pattern > 0.8, 1.0, -0.3)
    else:
        cells = rng.uniform(-1, 1, (9, 9)).astype(np.float32)
        clouds = Image.fromarray(cells).resize((size, size), Image.Resampling.BICUBIC)
        pattern = np.asarray(clouds, dtype=np.float64)
    tint = rng.uniform(-1, 1, 3) * contrast
    return base + pattern[..., None] * tint


def _coco_document(split: str, config: SyntheticConfig) -> dict[str, Any]:
    return {
        "info": {
            "description": f"rcnn_ext synthetic shapes, {split}",
            "made_from": asdict(config),
        },
        "images": [],
        "annotations": [],
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(SHAPES)],
    }


def _append(
    document: dict[str, Any], file_name: str, size: int, objects: list[DrawnObject]
) -> None:
    image_id = len(document["images"]) + 1
    document["images"].append(
        {"id": image_id, "file_name": file_name, "width": size, "height": size}
    )
    for drawn in objects:
        x1, y1, x2, y2 = drawn.box
        document["annotations"].append(
            {
                "id": len(document["annotations"]) + 1,
                "image_id": image_id,
                "category_id": drawn.category + 1,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": drawn.area,
                "iscrowd": 0,
            }
        )


def _made_from(root: Path) -> dict[str, Any] | None:
    path = root / "annotations" / "instances_train.json"
    if not path.is_file():
        return None
    document = read_json(path)
    info = document.get("info") if isinstance(document, dict) else None
    return info.get("made_from") if isinstance(info, dict) else None


def _read_split(config: DataConfig, root: Path, split: str, options: ReadOptions) -> AnnotationSet:
    images = config.synthetic.train + config.synthetic.val
    make_synthetic(root, config.synthetic, lambda items: tracked(items, "Drawing", images))
    return coco.FORMAT.read(config, root, split, options)


FORMAT = Format(
    "nothing, it is made",
    lambda root: False,  # On disk it is COCO.
    lambda config, root, split: split in ("train", "val"),
    _read_split,
)
