"""CVAT's own XML, version 1.1: for images, and for video, whose tracks are read frame by frame.

https://docs.cvat.ai/docs/other/xml_format
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rcnn_ext.data.builder import RawObject
from rcnn_ext.data.formats.document_format import DocumentFormat
from rcnn_ext.data.formats.documents import Document, ImageEntry, Scan
from rcnn_ext.data.formats.json_kinds import is_cvat
from rcnn_ext.data.formats.outlines import (
    Box,
    Point,
    box_around,
    box_around_ellipse,
    box_around_rectangle,
    number,
    numbers,
    segmentation_of,
)
from rcnn_ext.data.formats.safe_xml import XmlError, read_xml, text_of
from rcnn_ext.data.formats.split_names import splits_in_name
from rcnn_ext.errors import UserError
from rcnn_ext.files import read_head

# The names that CVAT gives to the frames of a video.
_FRAME_SUFFIXES = (".PNG", ".png", ".jpg", ".jpeg")

_SHAPES = {"box", "polygon", "polyline", "points", "ellipse", "mask", "cuboid", "skeleton"}


def _split_up(document: Document) -> list[Document]:
    """Divide a file by the subsets that it gives its images, as a project's export does."""
    content = read_head(document.path)
    found = re.findall(rb'<(?:image|track)\b[^>]*?\ssubset="([^"]*)"', content)
    subsets = sorted({name.decode("utf-8", "replace") for name in found})
    splits = {name: splits_in_name(name) for name in subsets}
    if not any(len(split) == 1 for split in splits.values()):
        return [document]
    return [
        Document(document.path, next(iter(split)) if len(split) == 1 else None, name)
        for name, split in splits.items()
    ]


def _read(document: Document, scan: Scan) -> Iterator[ImageEntry]:
    try:
        root = read_xml(document.path, scan.config.encoding)
    except XmlError as error:
        place = "" if error.line is None else f"line {error.line}: "
        raise UserError(f"{document.path} {place}{error}") from None
    if root.tag != "annotations":
        raise UserError(
            f"{document.path} is not a CVAT file: it begins with <{root.tag}>, not <annotations>"
        )
    _declare(root, scan)
    for image in root.iterfind("image"):
        if document.part in (None, image.get("subset", "")):
            yield _image(image, document.path, scan)
    tracks = [
        track
        for track in root.iterfind("track")
        if document.part in (None, track.get("subset", ""))
    ]
    if tracks or (root.find("image") is None and root.find("meta") is not None):
        yield from _frames(root, tracks, document.path, scan)


def _declare(root: Any, scan: Scan) -> None:
    for label in root.iterfind("meta//labels/label"):
        # Points of skeletons are labels with a parent.
        name = text_of(label, "name")
        if name and label.find("parent") is None:
            scan.declare([name])


def _image(image: Any, path: Path, scan: Scan) -> ImageEntry:
    name = image.get("name") or ""
    subset = image.get("subset")
    names = [name]
    if subset:
        # Projects have a folder for each subset, in which names of tasks may come again.
        names.insert(0, f"images/{subset}/{name}")
    entry = ImageEntry(names, _size(image), [], path, image.sourceline)
    if not name:
        scan.report.error(path, image.sourceline, "an image without a name")
        entry.names, entry.broken = ["without a name"], True
    for item in image:
        _add(entry, item, item.get("label"), path, scan)
    return entry


def _add(entry: ImageEntry, item: Any, label: str | None, path: Path, scan: Scan) -> None:
    """Add the object of an element, or report or count it."""
    tag = item.tag
    if tag == "tag":
        scan.leave_out("tags of whole images", path, item.sourceline)
        return
    if tag == "points":
        scan.leave_out("objects of shape points, which have no box", path, item.sourceline)
        return
    problem = None
    box: Box | None = None
    if tag not in _SHAPES:
        problem = f"the unknown shape <{tag}>"
    elif not label:
        problem = f"a {tag} without a label"
    else:
        box = _BOXES[tag](item)
        if box is None:
            problem = f"the {tag} of the {label} has numbers that are missing or wrong"
    if box is None:
        scan.report.error(path, item.sourceline, str(problem))
        entry.broken = True
        return
    turned = tag == "box" and number(item.get("rotation"))
    name = str(label)
    outline = "turned box" if turned else "" if tag == "box" else tag
    place = scan.known_place(item.sourceline)
    made = segmentation_of(_points(item) or []) if tag == "polygon" else None
    entry.objects.append(RawObject(box, name, place, name, outline=outline, segmentation=made))


def _size(image: Any) -> tuple[int, int] | None:
    width, height = number(image.get("width")), number(image.get("height"))
    return (int(width), int(height)) if width and height and min(width, height) >= 1 else None


def _values(item: Any, *names: str) -> list[float] | None:
    return numbers(item.get(name) for name in names)


def _box(item: Any) -> Box | None:
    values = _values(item, "xtl", "ytl", "xbr", "ybr")
    angle = number(item.get("rotation", "0"))
    if values is None or angle is None:
        return None
    x1, y1, x2, y2 = values
    return box_around_rectangle((x1, y1, x2, y2), angle)


def _polygon(item: Any) -> Box | None:
    points = _points(item)
    return None if points is None else box_around(points)


def _points(item: Any) -> list[Point] | None:
    points: list[Point] = []
    for pair in (item.get("points") or "").split(";"):
        values = numbers(pair.split(","))
        if values is None or len(values) != 2:
            return None
        points.append((values[0], values[1]))
    return points


def _ellipse(item: Any) -> Box | None:
    values = _values(item, "cx", "cy", "rx", "ry")
    angle = number(item.get("rotation", "0"))
    if values is None or angle is None:
        return None
    x, y, rx, ry = values
    return box_around_ellipse((x, y), (rx, ry), angle)


def _mask(item: Any) -> Box | None:
    values = _values(item, "left", "top", "width", "height")
    if values is None:
        return None
    x, y, width, height = values
    return x, y, x + width, y + height


def _cuboid(item: Any) -> Box | None:
    names = [name for name in item.attrib if re.fullmatch(r"[xy][tb][lr][12]", name)]
    xs = _values(item, *sorted(name for name in names if name[0] == "x"))
    ys = _values(item, *sorted(name for name in names if name[0] == "y"))
    if not xs or not ys or len(xs) != len(ys):
        return None
    return box_around(list(zip(xs, ys, strict=True)))


def _skeleton(item: Any) -> Box | None:
    """Return the box around the points of a skeleton that are in the image."""
    boxes = [_polygon(p) for p in item.iterfind("points") if p.get("outside") != "1"]
    found = [box for box in boxes if box is not None]
    if not found or len(found) < len(boxes):
        return None
    return box_around([(box[0], box[1]) for box in found])


_BOXES = {
    "box": _box,
    "polygon": _polygon,
    "polyline": _polygon,
    "ellipse": _ellipse,
    "mask": _mask,
    "cuboid": _cuboid,
    "skeleton": _skeleton,
}


def _frames(root: Any, tracks: list[Any], path: Path, scan: Scan) -> Iterator[ImageEntry]:
    """Yield the frames of a video with the shapes that its tracks have in them."""
    frames: dict[int, list[tuple[Any, str | None]]] = {}
    for track in tracks:
        for shape in track:
            frame = number(shape.get("frame"))
            if frame is None or frame < 0:
                scan.report.error(path, shape.sourceline, f"a <{shape.tag}> without a frame")
                continue
            shapes = frames.setdefault(int(frame), [])
            if shape.get("outside") != "1":
                shapes.append((shape, track.get("label")))
    task = next(root.iterfind("meta/task"), None)
    if task is not None:
        plain = not text_of(task, "frame_filter") and text_of(task, "start_frame") in (None, "0")
        size = number(text_of(task, "size"))
        if plain and size is not None:
            for frame in range(min(int(size), 1_000_000)):
                frames.setdefault(frame, [])
    original = next(root.iterfind("meta//original_size"), None)
    sides = None
    if original is not None:
        sides = numbers((text_of(original, "width"), text_of(original, "height")))
    size_of_frames = (int(sides[0]), int(sides[1])) if sides and min(sides) >= 1 else None
    for frame, shapes in sorted(frames.items()):
        names = [f"frame_{frame:06d}{suffix}" for suffix in _FRAME_SUFFIXES]
        line = shapes[0][0].sourceline if shapes else None
        hint = "; export the task with its images (Save images)"
        entry = ImageEntry(names, size_of_frames, [], path, line, hint=hint)
        for shape, label in shapes:
            _add(entry, shape, label, path, scan)
        yield entry


CVAT = DocumentFormat(
    "CVAT XML",
    "an XML file that begins with <annotations> (CVAT for images or video 1.1)",
    (".xml",),
    is_cvat,
    _read,
    split_up=_split_up,
)
FORMAT = CVAT.as_format()
