"""Telling apart the JSON and XML files of annotation tools by their first megabytes."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from pathlib import Path

from rcnn_ext.files import read_head

# Every mark stands near the beginning, if not behind a picture that is part of the file.
_HEAD = 4 << 20

# Kind, first character of the document, the keys that it must have, and those it must not have.
_MARKS: tuple[tuple[str, str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("via", "{", ("_via_img_metadata",), ()),
    ("via", "{", ("filename", "regions", "file_attributes"), ()),
    ("via", "{", ("filename", "regions", "shape_attributes"), ()),
    ("via", "{", ("project", "file", "metadata", "view"), ("images",)),
    ("labelme", "{", ("shapes", "imagePath"), ()),
    ("datumaro", "{", ("items", "categories"), ("images",)),
    ("supervisely", "{", ("size", "objects"), ("images", "shapes", "items")),
    ("label_studio", "[", ("data", "result"), ()),
    ("label_studio", "[", ("data", "annotations", "predictions"), ()),
    ("label_studio", "{", ("data", "result", "task"), ("images",)),
    ("label_studio", "{", ("data", "annotations", "predictions"), ("images",)),
    ("label_studio", "[", ("annotation_id", "annotator"), ()),
    ("label_studio", "[", ("original_width", "original_height"), ()),
    ("createml", "[", ("image", "annotations"), ("data",)),
    ("createml", "[", ("imagefilename", "annotation"), ()),
    ("createml", "{", ("image", "annotations", "coordinates"), ("images", "categories")),
)


def json_kind(path: Path) -> str | None:
    """Return the format that a JSON file is of, by the keys in it; None for any other file.

    Files are not parsed, so that a broken one is still known for what it was.
    """
    try:
        stat = path.stat()
    except OSError:
        return None
    return _json_kind(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=4096)
def _json_kind(path: Path, size: int, changed: int) -> str | None:
    text = _head(path).lstrip("\ufeff \t\r\n")
    if not text:
        return None
    keys = set(re.findall(r'"([A-Za-z_]{4,32})"[ \t\r\n]*:', text))
    for kind, first, needed, foreign in _MARKS:
        if text[0] == first and keys.issuperset(needed) and keys.isdisjoint(foreign):
            return kind
    return None


def _head(path: Path) -> str:
    head = read_head(path, _HEAD)
    return head.decode(json.detect_encoding(head), errors="replace")


def is_cvat(path: Path) -> bool:
    """Return whether an XML file is one of CVAT's, for images or for video."""
    # UTF-16 has a zero beside each of these letters.
    head = read_head(path, 1 << 16).replace(b"\0", b"")
    return re.search(rb"<annotations[\s>]", head) is not None and b"<annotation>" not in head
