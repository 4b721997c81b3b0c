"""PASCAL VOC detection data: one XML file per image, and perhaps image sets.

Format: http://host.robots.ox.ac.uk/pascal/VOC/voc2012/htmldoc/devkit_doc.html
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rcnn_ext.config.data import VocConfig
from rcnn_ext.data.annotations import AnnotationSet
from rcnn_ext.data.builder import ReadOptions, SetBuilder
from rcnn_ext.data.formats.file_names import file_parts
from rcnn_ext.data.formats.format import Format, named_annotations
from rcnn_ext.data.formats.picture_names import AmbiguousNameError, PictureFinder
from rcnn_ext.data.formats.safe_xml import XmlError, read_xml, text_of
from rcnn_ext.data.formats.voc_layout import (
    VocSource,
    all_voc_annotations,
    describe_search,
    find_voc_split,
    looks_like_voc,
    xml_files,
)
from rcnn_ext.data.formats.voc_objects import is_deleted, object_of, problem_of_root, size_of
from rcnn_ext.data.images import IMAGE_SUFFIXES, numeric_ids
from rcnn_ext.data.problems import Report
from rcnn_ext.data.text_files import read_lines
from rcnn_ext.errors import UserError

# What the list of a class has behind each name.
_FLAG = re.compile(r"\s+-?[0-9]+$")


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
    images = [image for source in sources for image in _listed(source, builder)]
    if not images:
        raise UserError(f"{origin} lists no images")
    ids = numeric_ids([image.xml.stem for image in images])
    annotated = any(builder.exists(image.xml) for image in images)
    finders = {source: PictureFinder(source.images) for source in sources}
    for image_id, image in zip(ids, images, strict=True):
        finder = finders[image.source]
        if not annotated:
            path = _picture(image, None, finder)
            builder.add(image_id, path, None, [], image.where)
        elif not builder.exists(image.xml):
            builder.report.error(*image.where, f"{image.xml} does not exist")
            builder.skip()
        else:
            _add(builder, image_id, image, finder, config)
    for source, finder in finders.items():
        if source.listing is None:
            _name_unlisted(finder, builder.report)
    return builder.finish(annotated=annotated, looked_for=str(images[0].xml))


@dataclass(frozen=True)
class _Image:
    """An image before its annotations are read.

    Attributes:
        source: Where it is from.
        xml: The file of its annotations.
        where: The file and line that name it.
    """

    source: VocSource
    xml: Path
    where: tuple[Path, int | None]


def _listed(source: VocSource, builder: SetBuilder) -> list[_Image]:
    """Return the images of a source."""
    listing = source.listing
    if listing is None:
        return [_Image(source, file, (file, None)) for file in xml_files(source.annotations)]
    found: dict[Path, int] = {}
    for number, text in enumerate(read_lines(listing, builder.options.encoding), start=1):
        name = text.strip()
        if not name:
            continue
        xml = _xml_of(source, name, builder)
        # The list of a class has a flag behind each name; -1 means that no such object is there.
        if _FLAG.search(name) is not None and name.endswith("-1") and xml.stem != name:
            continue
        if xml in found:
            builder.report.error(
                listing, number, f"{xml.stem} is listed twice, first at line {found[xml]}"
            )
            continue
        found[xml] = number
    return [_Image(source, xml, (listing, number)) for xml, number in found.items()]


def _xml_of(source: VocSource, line: str, builder: SetBuilder) -> Path:
    """Return the annotation file of a line in a list.

    Args:
        source: The source of the list.
        line: A name, perhaps with spaces or a suffix, perhaps with a flag or other words behind it.
        builder: The builder.
    """
    without_flag = _FLAG.sub("", line)
    tried = (line, without_flag, line.split()[0])
    for name in (*tried, *(Path(name).stem for name in tried if _is_image(name))):
        for suffix in (".xml", ".XML"):
            path = source.annotations / f"{name}{suffix}"
            if builder.exists(path):
                return path
    stem = Path(without_flag).stem if _is_image(without_flag) else without_flag
    return source.annotations / f"{stem}.xml"


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES)


def _picture(image: _Image, named: str | None, finder: PictureFinder) -> Path:
    """Return the picture of an annotation file: of its name, or else as the file calls it."""
    stem = image.xml.stem
    last = file_parts(named)[-1:] if named else []
    # Of a.jpg and a.png the annotation file knows which one it is about.
    names = [*last, stem] if last and Path(last[0]).stem == stem else [stem, *last]
    for name in names:
        try:
            found = finder.find(name)
        except AmbiguousNameError:
            continue
        if found is not None:
            return found
    folder = image.source.images[0]
    files = [folder / f"{stem}{suffix}" for suffix in IMAGE_SUFFIXES]
    return next((path for path in files if path.exists()), files[0])


def _add(
    builder: SetBuilder,
    image_id: int,
    image: _Image,
    finder: PictureFinder,
    config: VocConfig,
) -> None:
    report, xml = builder.report, image.xml
    try:
        node = read_xml(xml, builder.options.encoding)
    except (XmlError, UserError) as error:
        report.error(xml, getattr(error, "line", None), str(error))
        builder.skip()
        return
    problem = problem_of_root(node)
    if problem is not None:
        report.error(xml, node.sourceline, f"no annotation of VOC's kind: {problem}")
        builder.skip()
        return
    path = _picture(image, text_of(node, "filename"), finder)
    before = len(report.errors())
    size, size_line = size_of(node, xml, report)
    objects = []
    deleted = 0
    for item in node.findall("object"):
        if is_deleted(item):
            deleted += 1
            continue
        one = object_of(item, xml, config.one_based, report)
        if one is not None:
            objects.append(one)
    if deleted:
        report.warning(xml, None, f"left out: {deleted} objects that are marked as deleted")
    broken = len(report.errors()) > before
    builder.add(image_id, path, size, objects, (xml, size_line), broken=broken, verify_size=True)


def _name_unlisted(finder: PictureFinder, report: Report) -> None:
    """Name the pictures beside those that have annotations, since only these are read."""
    others = finder.unlisted()
    if others:
        what = "1 image that has" if len(others) == 1 else f"{len(others)} images that have"
        first = "" if len(others) == 1 else ", the first here"
        report.warning(others[0], None, f"left out: {what} no annotations{first}")


FORMAT = Format(
    "Annotations or other folders with VOC's XML files",
    looks_like_voc,
    lambda config, root, split: bool(find_voc_split(root, split, config.voc.years)),
    lambda config, root, split, options: read_voc_split(
        root, split, named_annotations(config, split), config.voc, options
    ),
)
