"""The names of pictures in annotations, as tools and other systems write them."""

from __future__ import annotations

import re
import unicodedata
from urllib.parse import parse_qs, unquote, urlsplit


def file_parts(name: str) -> tuple[str, ...]:
    r"""Return the folders and the file name in a path or address as tools write them.

    Understands ``C:\data\a.jpg``, ``/home/me/a.jpg``, ``file:///a.jpg``, ``s3://bucket/a.jpg``,
    ``https://host/a.jpg?key=1`` and Label Studio's ``/data/local-files/?d=images/a.jpg``.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", name):
        parts = urlsplit(name)
        within = parse_qs(parts.query).get("d")
        name = within[0] if within else unquote(parts.path) or name
    elif "?d=" in name:
        name = unquote(name.partition("?d=")[2].partition("&")[0])
    name = re.sub(r"^[A-Za-z]:", "", name.replace("\\", "/"))
    return tuple(part for part in name.split("/") if part not in ("", "."))


def name_key(name: str) -> str:
    """Return a name without what some file systems ignore: case, and how accents are composed."""
    return unicodedata.normalize("NFC", name).casefold()
