"""PASCAL VOC detection data: image sets and one XML file per image.

Format: http://host.robots.ox.ac.uk/pascal/VOC/voc2012/htmldoc/devkit_doc.html
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rcnn_ext.config.data import VocConfig
from rcnn_ext.data.annotations import AnnotationSet
from rcnn_ext.data.builder import RawObject, ReadOptions, SetBuilder
from rcnn_ext.data.formats.safe_xml import XmlError, read_xml, text_of
from rcnn_ext.data.images import IMAGE_SUFFIXES, numeric_ids
from rcnn_ext.data.problems import Report
from rcnn_ext.errors import UserError


def voc_folders(root: Path, years: Sequence[int] | None = None) -> list[Path]:
    """Return the folders with ``Annotations`` and images: ``root``, or VOC<year> below it."""
    for parent in (root, root / "VOCdevkit"):
        found = sorted(path for path in parent.glob("VOC*") if (path / "Annotations").is_dir())
        if years is not None:
            found = [path for path in found if path.name in {f"VOC{year}" for year in years}]
        if found:
            return found
    return [root] if (root / "Annotations").is_dir() else []


def voc_image_sets(root: Path, name: str, years: Sequence[int] | None = None) -> list[Path]:
    """Return the lists ``ImageSets/Main/<name>.txt``, at most one per year."""
    lists = [folder / "ImageSets" / "Main" / f"{name}.txt" for folder in voc_folders(root, years)]
    return [path for path in lists if path.is_file()]


def voc_set_name(root: Path, split: str, years: Sequence[int] | None = None) -> str | None:
    """Return the image set of a split where the recipe names none; None if there is none.

    Training is ``train`` where there is a ``val`` to go with it, else ``trainval``.
    """
    if split != "train":
        return split if voc_image_sets(root, split, years) else None
    paired = voc_image_sets(root, "val", years)
    order = ("train", "trainval") if paired else ("trainval", "train")
    return next((name for name in order if voc_image_sets(root, name, years)), None)


def read_voc(
    root: Path,
    image_set: str | None = None,
    *,
    config: VocConfig | None = None,
    classes: Sequence[str] | None = None,
    report: Report | None = None,
) -> AnnotationSet:
    """Read an image set of a VOC devkit.

    Args:
        root: The devkit, its parent, or one year of it.
        image_set: Name of a list in ``ImageSets/Main``; None takes every XML file.
        config: How to read it.
        classes: Names of the classes; objects of others are left out. None takes those that occur,
            sorted.
        report: Where problems go; broken images are then left out. None raises for errors.

    Returns:
        The images in the order of the list. Boxes are (x1, y1, x2, y2) with x2 and y2 beyond the
        last pixel. A list without any XML file gives images without annotations.

    Raises:
        UserError: Files are missing or wrong; what and where is named.
    """
    return read_voc_with(
        root, image_set, config or VocConfig(), ReadOptions(classes, True, report=report)
    )


def read_voc_with(
    root: Path, image_set: str | None, config: VocConfig, options: ReadOptions
) -> AnnotationSet:
    """:func:`read_voc` with the options that all formats share."""
    folders = voc_folders(root, config.years)
    if not folders:
        years = "" if config.years is None else f" of the years {config.years}"
        raise UserError(
            f"no VOC data{years} in {root}: looked for a folder Annotations in it, in VOC<year> "
            "and in VOCdevkit/VOC<year>"
        )
    source = root
    lists: list[Path | None] = [None] * len(folders)
    if image_set is not None:
        found = voc_image_sets(root, image_set, config.years)
        if not found:
            raise UserError(f"{root} has no image set ImageSets/Main/{image_set}.txt")
        folders = [path.parents[2] for path in found]
        lists = list(found)
        source = found[0] if len(found) == 1 else root
    builder = SetBuilder(source, options)
    names: list[tuple[Path, str, tuple[Path, int | None]]] = []  # folder, name, where it is listed
    for folder, listing in zip(folders, lists, strict=True):
        names += _listed(folder, listing, builder)
    if not names:
        raise UserError(f"{source} lists no images")
    ids = numeric_ids([name for _, name, _ in names])
    annotated = any(
        builder.exists(folder / "Annotations" / f"{name}.xml") for folder, name, _ in names
    )
    for image_id, (folder, name, listed) in zip(ids, names, strict=True):
        xml = folder / "Annotations" / f"{name}.xml"
        if not annotated:
            builder.add(image_id, _picture(folder, name, None, builder), None, [], listed)
        elif not builder.exists(xml):
            builder.report.error(*listed, f"{xml} does not exist")
            builder.skip()
        else:
            _add(builder, image_id, folder, name, xml, config)
    return builder.finish(annotated=annotated)


def _listed(
    folder: Path, listing: Path | None, builder: SetBuilder
) -> list[tuple[Path, str, tuple[Path, int | None]]]:
    if listing is None:
        files = sorted((folder / "Annotations").glob("*.xml"))
        return [(folder, file.stem, (file, None)) for file in files]
    found: dict[str, int] = {}
    for number, text in enumerate(listing.read_text(encoding="utf-8").splitlines(), start=1):
        words = text.split()
        # The list of a class has a flag beside each name; -1 means that no such object is there.
        if not words or words[1:2] == ["-1"]:
            continue
        if words[0] in found:
            first = found[words[0]]
            builder.report.error(
                listing, number, f"{words[0]} is listed twice, first at line {first}"
            )
            continue
        found[words[0]] = number
    return [(folder, name, (listing, number)) for name, number in found.items()]


def _picture(folder: Path, name: str, named: str | None, builder: SetBuilder) -> Path:
    images = folder / "JPEGImages"
    if not images.is_dir():
        # Tools that borrow the format often keep the pictures elsewhere.
        images = next(
            (f for f in (folder / "images", folder / "Annotations") if f.is_dir()), folder
        )
    candidates = [images / f"{name}{suffix}" for suffix in IMAGE_SUFFIXES]
    if named:
        candidates.insert(1, images / Path(named.replace("\\", "/")).name)
    return next((path for path in candidates if builder.exists(path)), candidates[0])


def _add(
    builder: SetBuilder, image_id: int, folder: Path, name: str, xml: Path, config: VocConfig
) -> None:
    report = builder.report
    try:
        node = read_xml(xml)
    except (XmlError, UserError) as error:
        report.error(xml, getattr(error, "line", None), str(error))
        builder.skip()
        return
    path = _picture(folder, name, text_of(node, "filename"), builder)
    before = len(report.errors())
    size, size_line = _size(node, xml, report)
    objects = []
    for item in node.findall("object"):
        found = _object(item, xml, config.one_based, report)
        if found is not None:
            objects.append(found)
    broken = len(report.errors()) > before
    builder.add(image_id, path, size, objects, (xml, size_line), broken=broken, verify_size=True)


def _size(node: Any, xml: Path, report: Report) -> tuple[tuple[int, int] | None, int | None]:
    size = node.find("size")
    if size is None:
        return None, None
    width, height = (_number(text_of(size, side)) for side in ("width", "height"))
    if width is None or height is None or min(width, height) < 0:
        report.error(xml, size.sourceline, "the size is not two numbers, width and height")
        return None, size.sourceline
    # Some tools write 0 where they do not know it.
    known = width > 0 and height > 0
    return ((int(width), int(height)) if known else None), size.sourceline


def _object(item: Any, xml: Path, one_based: bool, report: Report) -> RawObject | None:
    name, box = text_of(item, "name"), item.find("bndbox")
    if not name:
        report.error(xml, item.sourceline, "an object without a name")
        return None
    if box is None:
        report.error(xml, item.sourceline, f"the {name} has no bndbox")
        return None
    values = {tag: _number(text_of(box, tag)) for tag in ("xmin", "ymin", "xmax", "ymax")}
    wrong = [tag for tag, value in values.items() if value is None]
    if wrong:
        text = text_of(box, wrong[0])
        shown = "missing" if text is None else f"{text!r}, not a number"
        report.error(xml, box.sourceline, f"{wrong[0]} of the {name} is {shown}")
        return None
    x1, y1, x2, y2 = (float(value or 0) for value in values.values())
    shift = 1.0 if one_based else 0.0
    return RawObject(
        (x1 - shift, y1 - shift, x2, y2),
        name,
        box.sourceline,
        name,
        difficult=text_of(item, "difficult") == "1",
        truncated=text_of(item, "truncated") == "1",
    )


def _number(text: str | None) -> float | None:
    try:
        value = float(text) if text is not None else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None
