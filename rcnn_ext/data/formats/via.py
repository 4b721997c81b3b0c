"""JSON of the VGG Image Annotator, versions 1 to 3: a project, or its annotations alone.

Each image has ``regions`` with ``shape_attributes`` and ``region_attributes``; one of the latter is
the class. https://www.robots.ox.ac.uk/~vgg/software/via/
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from rcnn_ext.data.builder import RawObject
from rcnn_ext.data.formats.document_format import DocumentFormat
from rcnn_ext.data.formats.documents import Document, ImageEntry, Scan, load_json
from rcnn_ext.data.formats.json_kinds import json_kind
from rcnn_ext.data.formats.via_3 import is_version_3, read_version_3
from rcnn_ext.data.formats.via_regions import choose_attribute, class_of, region_box
from rcnn_ext.data.json_places import JsonPlaces
from rcnn_ext.errors import UserError

_IMAGES = "_via_img_metadata"


def _read(document: Document, scan: Scan) -> Iterator[ImageEntry]:
    value = load_json(document)
    if not isinstance(value, dict):
        raise UserError(f"{document.path} is not a VIA file: its top level is not an object")
    if is_version_3(value):
        yield from read_version_3(value, document, scan, JsonPlaces(document.path))
        return
    before: tuple[str, ...] = (_IMAGES,) if _IMAGES in value else ()
    images = value.get(_IMAGES, value)
    if not isinstance(images, dict):
        raise UserError(f"{document.path} is not a VIA file: {_IMAGES} is not an object")
    places = JsonPlaces(document.path)
    attribute = _class_attribute(document, images)
    scan.declare(_declared(value, attribute))
    for key, image in images.items():
        name = image.get("filename") if isinstance(image, dict) else None
        regions = image.get("regions") if isinstance(image, dict) else None
        # Version 1 has an object with the keys "0", "1", ... for the list of version 2.
        keyed = list(regions.items()) if isinstance(regions, dict) else None
        line = places.line(*before, key) if scan.lines else None
        if not isinstance(name, str) or not name or not isinstance(regions, (list, dict)):
            where = places.line(*before, key)
            scan.report.error(document.path, where, f"{key!r:.80} has no 'filename' and 'regions'")
            yield ImageEntry([str(key)], None, [], document.path, where, broken=True)
            continue
        entry = ImageEntry([name], None, [], document.path, line)
        for index, region in keyed if keyed is not None else enumerate(regions):
            place = scan.place(places, *before, key, "regions", index)
            shape = region.get("shape_attributes") if isinstance(region, dict) else None
            found = region_box(shape)
            label = class_of(region.get("region_attributes"), attribute) if shape else None
            if isinstance(found, str) or label is None:
                wrong = found if isinstance(found, str) else f"it has no {attribute or 'class'}"
                what = f"region {index} of {name}: {wrong}"
                scan.report.error(document.path, scan.locate(place), what)
                entry.broken = True
            elif found is None:
                what = f"objects of shape {shape['name']}, which have no box"  # type: ignore[index]
                scan.leave_out(what, document.path, scan.locate(place))
            else:
                box, outline, made = found
                what = f"{label} of {name}"
                entry.objects.append(
                    RawObject(box, label, place, what, outline=outline, segmentation=made)
                )
        yield entry


def _class_attribute(document: Document, images: dict[str, Any]) -> str | None:
    """Return the attribute of regions that is the class; None where regions have none.

    Raises:
        UserError: Several could be.
    """
    counts: Counter[str] = Counter()
    for image in images.values():
        regions = image.get("regions") if isinstance(image, dict) else None
        if isinstance(regions, dict):
            regions = list(regions.values())
        for region in regions if isinstance(regions, list) else []:
            attributes = region.get("region_attributes") if isinstance(region, dict) else None
            counts.update(list(attributes) if isinstance(attributes, dict) else [])
    return choose_attribute(document.path, counts)


def _declared(value: dict[str, Any], attribute: str | None) -> list[str]:
    """Return the options of the class attribute in a project file; none where there are none."""
    found: Any = value.get("_via_attributes")
    for key in ("region", attribute, "options"):
        found = found.get(key) if isinstance(found, dict) else None
    return [str(name) for name in found] if isinstance(found, dict) else []


VIA = DocumentFormat(
    "VIA",
    "JSON files with '_via_img_metadata', or images with 'filename' and 'regions' (VIA)",
    (".json",),
    lambda path: json_kind(path) == "via",
    _read,
)
FORMAT = VIA.as_format()
