"""PASCAL VOC detection data: one XML file per image, and perhaps image sets.

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
from rcnn_ext.data.formats.format import Format, named_annotations
from rcnn_ext.data.formats.safe_xml import XmlError, read_xml, text_of
from rcnn_ext.data.formats.voc_layout import (
    VocSource,
    all_voc_annotations,
    describe_search,
    find_voc_split,
    looks_like_voc,
)
from rcnn_ext.data.images import IMAGE_SUFFIXES, numeric_ids
from rcnn_ext.data.problems import Report
from rcnn_ext.data.text_files import read_lines
from rcnn_ext.errors import UserError


def read_voc(
    root: Path | str,
    image_set: str | None = None,
    *,
    config: VocConfig | None = None,
    classes: Sequence[str] | None = None,
    report: Report | None = None,
) -> AnnotationSet:
    """Read VOC annotations: an image set of a devkit, or all XML files of a folder.

    Args:
        root: The devkit, its parent, or one year of it; or any folder with XML files, in
            ``Annotations`` or a folder of a similar name, or beside the pictures.
        image_set: Name of a list in ``ImageSets/Main``, or a folder of XML files in ``root``; None
            takes every XML file.
        config: How to read it.
        classes: Names of the classes; objects of others are left out. None takes those that occur,
            sorted.
        report: Where problems go; broken images are then left out. None raises for errors.

    Returns:
        The images in the order of the list, or of the names of the XML files. Boxes are (x1, y1,
        x2, y2) with x2 and y2 beyond the last pixel. A list without any XML file gives images
        without annotations.

    Raises:
        UserError: Files are missing or wrong; what and where is named.
    """
    config = config or VocConfig()
    root = Path(root)
    sources = (
        all_voc_annotations(root, config.years)
        if image_set is None
        else find_voc_split(root, "train", config.years, image_set)
    )
    if not sources and image_set is not None and all_voc_annotations(root, config.years):
        raise UserError(f"{root} has no image set ImageSets/Main/{image_set}.txt")
    if not sources:
        years = "" if config.years is None else f" of the years {config.years}"
        raise UserError(
            f"no VOC data{years} in {root}: looked for a folder Annotations in it, in VOC<year> "
            "and in VOCdevkit/VOC<year>, and for XML files"
        )
    return _read_sources(root, sources, config, ReadOptions(classes, True, report=report))


def read_voc_split(
    root: Path, split: str, named: str | None, config: VocConfig, options: ReadOptions
) -> AnnotationSet:
    """Read a split with the options that all formats share.

    Args:
        root: The folder of the data set.
        split: ``train``, ``val`` or ``test``.
        named: Its image set or folder of XML files; None looks for it.
        config: How to read it.
        options: The options that all formats share.

    Raises:
        UserError: Files are missing or wrong; what and where is named.
    """
    sources = find_voc_split(root, split, config.years, named)
    if not sources and named is not None:
        raise UserError(
            f"{root} has no image set ImageSets/Main/{named}.txt, nor XML files in {root / named}"
        )
    if not sources:
        raise UserError(
            f"no VOC annotations for {split} in {root}: "
            f"{describe_search(root, split, config.years)}; name an image set or a folder with "
            f"data.{split}_annotations=NAME"
        )
    return _read_sources(root, sources, config, options)


def _read_sources(
    root: Path, sources: Sequence[VocSource], config: VocConfig, options: ReadOptions
) -> AnnotationSet:
    only = sources[0]
    origin = root if len(sources) > 1 or only.listing is None else only.listing
    builder = SetBuilder(origin, options)
    names: list[tuple[VocSource, str, tuple[Path, int | None]]] = []  # and where it is listed
    for source in sources:
        names += [(source, name, where) for name, where in _listed(source, builder)]
    if not names:
        raise UserError(f"{origin} lists no images")
    ids = numeric_ids([name for _, name, _ in names])
    annotated = any(builder.exists(source.annotations / f"{name}.xml") for source, name, _ in names)
    for image_id, (source, name, listed) in zip(ids, names, strict=True):
        xml = source.annotations / f"{name}.xml"
        if not annotated:
            builder.add(image_id, _picture(source, name, None, builder), None, [], listed)
        elif not builder.exists(xml):
            builder.report.error(*listed, f"{xml} does not exist")
            builder.skip()
        else:
            _add(builder, image_id, source, name, xml, config)
    looked_for = str(names[0][0].annotations / f"{names[0][1]}.xml")
    return builder.finish(annotated=annotated, looked_for=looked_for)


def _listed(source: VocSource, builder: SetBuilder) -> list[tuple[str, tuple[Path, int | None]]]:
    """Return the names of a source's images, and where each is listed."""
    listing = source.listing
    if listing is None:
        files = sorted(source.annotations.glob("*.xml"))
        return [(file.stem, (file, None)) for file in files]
    found: dict[str, int] = {}
    for number, text in enumerate(read_lines(listing, builder.options.encoding), start=1):
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
    return [(name, (listing, number)) for name, number in found.items()]


def _picture(source: VocSource, name: str, named: str | None, builder: SetBuilder) -> Path:
    files = [f"{name}{suffix}" for suffix in IMAGE_SUFFIXES]
    if named:
        files.insert(1, Path(named.replace("\\", "/")).name)
    candidates = [folder / file for folder in source.images for file in files]
    return next((path for path in candidates if builder.exists(path)), candidates[0])


def _add(
    builder: SetBuilder, image_id: int, source: VocSource, name: str, xml: Path, config: VocConfig
) -> None:
    report = builder.report
    try:
        node = read_xml(xml)
    except (XmlError, UserError) as error:
        report.error(xml, getattr(error, "line", None), str(error))
        builder.skip()
        return
    if node.tag != "annotation":
        found = f"<{node.tag}> instead of <annotation>"
        report.error(xml, node.sourceline, f"no annotation of VOC's kind: it begins with {found}")
        builder.skip()
        return
    path = _picture(source, name, text_of(node, "filename"), builder)
    before = len(report.errors())
    size, size_line = _size(node, xml, report)
    objects = []
    for item in node.findall("object"):
        one = _object(item, xml, config.one_based, report)
        if one is not None:
            objects.append(one)
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


FORMAT = Format(
    "Annotations or other folders with VOC's XML files",
    looks_like_voc,
    lambda config, root, split: bool(find_voc_split(root, split, config.voc.years)),
    lambda config, root, split, options: read_voc_split(
        root, split, named_annotations(config, split), config.voc, options
    ),
)
