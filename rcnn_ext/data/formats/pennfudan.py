"""Pictures with instance masks, as in the Penn-Fudan pedestrian database, read as boxes.

Layout: ``PNGImages/<name>.png`` and ``PedMasks/<name>_mask.png``, in which a pixel is 0 for the
background and otherwise the number of the instance it belongs to.
https://www.cis.upenn.edu/~jshi/ped_html/
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from rcnn_ext.data.annotations import AnnotationSet
from rcnn_ext.data.builder import RawObject, ReadOptions, SetBuilder
from rcnn_ext.data.formats.format import Format
from rcnn_ext.data.images import is_picture, load_mask, numeric_ids
from rcnn_ext.data.problems import Report
from rcnn_ext.data.segmentation import Segmentation, instance_boxes
from rcnn_ext.errors import UserError


def mask_folders(root: Path) -> tuple[Path, Path] | None:
    """Return the folders of images and masks: in ``root`` or in ``root/PennFudanPed``."""
    for parent in (root, root / "PennFudanPed"):
        images, masks = parent / "PNGImages", parent / "PedMasks"
        if images.is_dir() and masks.is_dir():
            return images, masks
    return None


def read_pennfudan(
    root: Path | str, *, classes: Sequence[str] | None = None, report: Report | None = None
) -> AnnotationSet:
    """Read all images, sorted by name, and the box and area of each instance of their masks.

    Args:
        root: The folder with ``PNGImages`` and ``PedMasks``.
        classes: The one name of what the masks show; None: ``person``.
        report: Where problems go; broken images are then left out. None raises for errors.

    Raises:
        UserError: Files are missing or wrong; what and where is named.
    """
    return read_pennfudan_with(Path(root), ReadOptions(classes, report=report))


def read_pennfudan_with(root: Path, options: ReadOptions) -> AnnotationSet:
    """:func:`read_pennfudan` with the options that all formats share."""
    folders = mask_folders(root)
    if folders is None:
        raise UserError(f"{root} has no folders PNGImages and PedMasks")
    name = "person" if not options.classes or len(options.classes) != 1 else options.classes[0]
    images, masks = folders
    files = sorted(filter(is_picture, images.iterdir()))
    if not files:
        raise UserError(f"{images} has no images")
    builder = SetBuilder(images.parent, options)
    builder.declare([(name, 1)])
    for image_id, path in zip(numeric_ids([file.stem for file in files]), files, strict=True):
        mask = masks / f"{path.stem}_mask.png"
        if not builder.exists(mask):
            builder.report.error(path, None, f"its mask {mask} does not exist")
            builder.skip()
            continue
        try:
            size, objects = _objects(mask, name, options.reader.max_pixels)
        except UserError as error:
            builder.report.error(mask, None, str(error))
            builder.skip()
        else:
            builder.add(image_id, path, size, objects, (mask, None), verify_size=True)
    listed = {file.stem for file in files}
    for mask in sorted(masks.glob("*_mask.png")):
        if mask.stem.removesuffix("_mask") not in listed:
            builder.report.warning(mask, None, "a mask without an image")
    return builder.finish()


def instances_of(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the instances of a mask, in the order of their numbers, which may have gaps.

    Args:
        mask: Integers [H, W], 0 for the background.

    Returns:
        int64 [H, W], 0 for the background and 1 + the index of the instance for its pixels; int64
        [N, 4] (x1, y1, x2, y2), with x2 and y2 beyond the last pixel; and the instances' numbers of
        pixels, int64 [N].
    """
    numbers, places = np.unique(mask, return_inverse=True)
    places = places.reshape(mask.shape)  # [H, W], index into numbers
    has_background = bool((numbers == 0).any())
    places = places if has_background else places + 1
    boxes, areas = instance_boxes(places, len(numbers) - has_background)
    return places, boxes, areas


def _objects(path: Path, name: str, max_pixels: int) -> tuple[tuple[int, int], list[RawObject]]:
    mask = load_mask(path, name="the mask", max_pixels=max_pixels)
    if mask.ndim != 2:
        raise UserError(
            f"the mask has {mask.shape[2]} channels; one with instance numbers is needed"
        )
    places, boxes, areas = instances_of(mask)
    objects = [
        RawObject(
            (float(x1), float(y1), float(x2), float(y2)),
            name,
            area=float(area),
            segmentation=partial(_instance, places, number),
        )
        for number, ((x1, y1, x2, y2), area) in enumerate(zip(boxes, areas, strict=True), start=1)
    ]
    return (mask.shape[1], mask.shape[0]), objects


def _instance(places: np.ndarray, number: int) -> Segmentation:
    return Segmentation.from_mask(places == number)


FORMAT = Format(
    "PNGImages and PedMasks",
    lambda root: mask_folders(root) is not None,
    lambda config, root, split: split == "train",
    lambda config, root, split, options: read_pennfudan_with(root, options),
)
