"""Label Studio's JSON: tasks with their annotations, or JSON-MIN.

Places are percentages of the image's sides; rectangles and ellipses may be turned. Images are named
by the addresses under which Label Studio shows them. https://labelstud.io/guide/task_format
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from rcnn_ext.data.builder import RawObject
from rcnn_ext.data.formats.document_format import DocumentFormat
from rcnn_ext.data.formats.documents import Document, ImageEntry, Scan, load_json
from rcnn_ext.data.formats.file_names import file_parts
from rcnn_ext.data.formats.json_kinds import json_kind
from rcnn_ext.data.formats.outlines import (
    Box,
    Point,
    box_around,
    box_around_ellipse,
    box_around_rectangle,
    number,
    numbers,
    points_of,
    segmentation_of,
)
from rcnn_ext.data.images import IMAGE_SUFFIXES
from rcnn_ext.data.json_places import JsonPlaces
from rcnn_ext.errors import UserError

_IMAGE_KEYS = ("image", "img", "photo", "picture", "url")

# Results that say something about an image or a region, and are no objects.
_NO_OBJECTS = {"choices", "textarea", "rating", "relation", "taxonomy", "number", "datetime"}

Steps = tuple["str | int", ...]
Result = tuple[dict[str, Any], Steps]
Size = tuple[int, int]


def _read(document: Document, scan: Scan) -> Iterator[ImageEntry]:
    value = load_json(document)
    places = JsonPlaces(document.path)
    tasks = value if isinstance(value, list) else [value]
    latest = _latest_rows(tasks)
    for index, task in enumerate(tasks):
        steps: Steps = (index,) if isinstance(value, list) else ()
        line = places.line(*steps) if scan.lines else None
        if not isinstance(task, dict):
            raise UserError(f"{document.path} is not Label Studio's: entry {index} is no task")
        if latest.get(_row_key(task), index) != index:
            what = "annotations of a task besides its latest one"
            scan.leave_out(what, document.path, places.line(*steps))
            continue
        entry = ImageEntry([""], None, [], document.path, line)
        try:
            name, results = _contents(task, steps, entry)
        except UserError as error:
            scan.report.error(document.path, places.line(*steps), f"task {index}: {error}")
            entry.names, entry.broken = [f"task {index}"], True
            yield entry
            continue
        entry.names = [name]
        if name.startswith("data:"):
            entry.names = [f"of task {index}"]
            entry.hint = "; the task holds it itself, which is not read: save it as a file"
        _add_objects(entry, results, scan, places)
        yield entry


def _row_key(task: dict[str, Any]) -> str | None:
    """Return what JSON-MIN's rows about one task have in common; full exports have one each."""
    return None if "data" in task or "id" not in task else str(task["id"])


def _latest_rows(tasks: Sequence[Any]) -> dict[str | None, int]:
    """Return the index of the latest of the rows about one task in JSON-MIN."""
    latest: dict[str | None, int] = {}
    for index, task in enumerate(tasks):
        key = _row_key(task) if isinstance(task, dict) else None
        if key is None:
            continue
        other = latest.get(key)
        if other is None or _time(task) >= _time(tasks[other]):
            latest[key] = index
    return latest


def _time(item: Any) -> str:
    return str(item.get("updated_at") or item.get("created_at") or "")


def _contents(task: dict[str, Any], steps: Steps, entry: ImageEntry) -> tuple[str, list[Result]]:
    """Return the address of a task's image, and the results of its latest annotation."""
    data = task.get("data")
    if data is None:
        return _image_of(task), [
            (item, (*steps, key, place))
            for key, value in task.items()
            if isinstance(value, list)
            for place, item in enumerate(value)
            if isinstance(item, dict)
        ]
    if not isinstance(data, dict):
        raise UserError("'data' is not an object")
    name = _image_of(data)
    key = "annotations" if "annotations" in task else "completions"
    done = task.get(key)
    if not isinstance(done, list):
        raise UserError("it has no list 'annotations'")
    usable = [
        (place, item)
        for place, item in enumerate(done)
        if isinstance(item, dict)
        and isinstance(item.get("result"), list)
        and not (item.get("was_cancelled") or item.get("skipped"))
    ]
    if not usable:
        entry.left_out = "images without a finished annotation (predictions are not read)"
        return name, []
    place, chosen = max(usable, key=lambda one: (bool(one[1].get("ground_truth")), _time(one[1])))
    results = chosen["result"]
    wrong = [item for item in results if not isinstance(item, dict)]
    if wrong:
        raise UserError(f"a result is {wrong[0]!r:.40}, not an object")
    return name, [
        (item, (*steps, key, place, "result", number)) for number, item in enumerate(results)
    ]


def _image_of(data: dict[str, Any]) -> str:
    """Return the address of the image in the fields of a task."""
    texts = {key: value for key, value in data.items() if isinstance(value, str) and value}
    for key in _IMAGE_KEYS:
        if key in texts:
            return texts[key]
    images = [value for value in texts.values() if _names_image(value)]
    if len(images) == 1:
        return images[0]
    if images:
        raise UserError(
            f"it has several images ({', '.join(images[:3])}), of which none is 'image'"
        )
    if any(isinstance(value, list) for value in data.values()) and "id" not in data:
        raise UserError("it has a list of images: export tasks with one image each")
    raise UserError("it names no image")


def _names_image(value: str) -> bool:
    parts = file_parts(value)
    return bool(parts) and parts[-1].lower().endswith(IMAGE_SUFFIXES)


def _add_objects(
    entry: ImageEntry, results: Sequence[Result], scan: Scan, places: JsonPlaces
) -> None:
    """Add the objects of an image, or report what is wrong with them."""
    labels = _labels_by_region(results)
    found: list[tuple[dict[str, Any], str, int]] = []
    for item, steps in results:
        # JSON-MIN has the values alone.
        value = item.get("value") if "value" in item else item
        kind = str(item.get("type", ""))
        if kind in _NO_OBJECTS or kind == "labels" or not isinstance(value, dict):
            continue
        shape = _shape(value)
        if shape is None and "type" not in item and not _labels(value):
            continue  # A list of JSON-MIN that is about something else.
        place = scan.place(places, *steps)
        if shape is None or shape in ("keypoint", "brush"):
            what = f"objects of the kind {kind or shape or 'unknown'}, which have no box here"
            scan.leave_out(what, entry.document, scan.locate(place))
            continue
        names = _labels(value) or labels.get(str(item.get("id")), [])
        problem = None
        if not names:
            problem = "it has no label"
        elif item.get("image_rotation"):
            problem = "the image was turned in Label Studio (image_rotation), which is not read"
        elif _relative_box(value, (100, 100)) is None:
            problem = f"a number of the {shape} is missing or not finite"
        if problem is not None:
            what = f"a region of {entry.names[0]}: {problem}"
            scan.report.error(entry.document, scan.locate(place), what)
            entry.broken = True
            continue
        if len(names) > 1:
            what = "further labels of regions that have several, of which the first counts"
            scan.leave_out(what, entry.document, scan.locate(place), len(names) - 1)
        found.append((item, names[0], place))
        entry.size = entry.size or _original_size(item)
    if entry.size is not None:
        entry.objects = _objects(found, entry.size)
    else:
        entry.resolve = partial(_objects, found) if found else None


def _labels_by_region(results: Sequence[Result]) -> dict[str, list[str]]:
    """Return the labels that stand in results of their own, by the id of their region."""
    found: dict[str, list[str]] = {}
    for item, _ in results:
        value = item.get("value")
        if "id" in item and isinstance(value, dict):
            found.setdefault(str(item["id"]), []).extend(_labels(value))
    return found


def _labels(value: dict[str, Any]) -> list[str]:
    for key, names in value.items():
        if key.endswith("labels") and isinstance(names, list):
            return [str(name) for name in names]
    return []


def _original_size(item: dict[str, Any]) -> Size | None:
    sides = numbers((item.get("original_width"), item.get("original_height")))
    return (int(sides[0]), int(sides[1])) if sides is not None and min(sides) >= 1 else None


def _shape(value: dict[str, Any]) -> str | None:
    if "points" in value:
        return "polygon"
    if "radiusX" in value:
        return "ellipse"
    if "rle" in value or "imageDataURL" in value:
        return "brush"
    if "x" in value and "width" in value:
        return "rectangle" if "height" in value else "keypoint"
    if "vertices" in value:
        return "polygon"
    return "rectangle" if "x" in value and "height" in value else None


def _objects(found: Sequence[tuple[dict[str, Any], str, int]], size: Size) -> list[RawObject]:
    objects = []
    for item, name, place in found:
        value = item.get("value") if "value" in item else item
        assert isinstance(value, dict)
        box = _relative_box(value, size)
        assert box is not None
        shape = _shape(value)
        turned = bool(number(value.get("rotation")))
        outline = {"rectangle": "turned rectangle" if turned else ""}.get(str(shape), str(shape))
        made = segmentation_of(_points(value, size) or []) if shape == "polygon" else None
        objects.append(RawObject(box, name, place, name, outline=outline, segmentation=made))
    return objects


def _points(value: dict[str, Any], size: Size) -> list[Point] | None:
    """Return the points of a polygon in pixels; None where they are none."""
    given = value.get("points", value.get("vertices"))
    if isinstance(given, list) and given and isinstance(given[0], dict):
        given = [[item.get("x"), item.get("y")] for item in given if isinstance(item, dict)]
    points = points_of(given)
    across, down = size[0] / 100, size[1] / 100
    return [(x * across, y * down) for x, y in points] if points else None


def _relative_box(value: dict[str, Any], size: Size) -> Box | None:
    """Return the box of a region in pixels; None where a number is missing."""
    across, down = size[0] / 100, size[1] / 100
    shape = _shape(value)
    if shape == "polygon":
        points = _points(value, size)
        return box_around(points) if points else None
    angle = number(value.get("rotation") or 0)
    keys = ("x", "y", "radiusX", "radiusY") if shape == "ellipse" else ("x", "y", "width", "height")
    values = numbers(value.get(key) for key in keys)
    if values is None or angle is None:
        return None
    x, y, width, height = (
        part * scale for part, scale in zip(values, (across, down) * 2, strict=True)
    )
    if shape == "ellipse":
        return box_around_ellipse((x, y), (width, height), angle)
    # Label Studio turns rectangles about their first corner.
    return box_around_rectangle((x, y, x + width, y + height), angle, (x, y))


LABEL_STUDIO = DocumentFormat(
    "Label Studio",
    "JSON files with tasks, each with 'data' and 'annotations', or JSON-MIN (Label Studio)",
    (".json",),
    lambda path: json_kind(path) == "label_studio",
    _read,
)
FORMAT = LABEL_STUDIO.as_format()
