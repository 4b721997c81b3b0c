"""Write text of any script on pictures, with Pillow's font and those of the machine.

A text is written in the first font that has all its characters, or in several fonts, part by part.
A character that no font has is written as ``[U+732B]``, so that texts that differ look different
on any machine. Fonts are looked for in ``RCNN_EXT_FONTS`` (files and folders), in Pillow, in the
packages of the extra ``fonts``, in matplotlib and in the folders of the operating system.

Scripts that join or reorder letters need Pillow's layout by Raqm, which its wheels have. Without it
letters stay apart, and words that run from right to left are turned around, one by one.
"""

from __future__ import annotations

import os
import re
import sys
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Any

from PIL import ImageDraw, ImageFont, features

VARIABLE = "RCNN_EXT_FONTS"

# Packages that hold fonts: those of the extra, and matplotlib with DejaVu (Latin, Greek, Cyrillic,
# Armenian, Georgian, Hebrew and Arabic).
_PACKAGES = ("noto_cjk_sans_jp_regular", "manimgx_fonts", "manimgx_fonts_cjk", "matplotlib")
_FOLDERS = {
    "linux": (
        "/usr/share/fonts",
        "/usr/local/share/fonts",
        "/usr/X11R6/lib/X11/fonts",
        "~/.fonts",
        "~/.local/share/fonts",
    ),
    "darwin": ("/System/Library/Fonts", "/Library/Fonts", "~/Library/Fonts"),
    "win32": ("%WINDIR%/Fonts", "%LOCALAPPDATA%/Microsoft/Windows/Fonts"),
}
_SUFFIXES = {".ttf", ".otf", ".ttc", ".otc"}
# Bold, slanted and narrow styles; fonts with a sign, not a letter, for every character.
_UNSUITABLE = re.compile(
    r"bold|italic|oblique|black|heavy|thin|light|cond|narrow|mono|emoji-?color|coloremoji"
    r"|lastresort|adobeblank|symbol\.ttf|wingding|webding|stix|cmr|cmex|cmmi|cmsy|cmss|cmtt|cmb",
    re.IGNORECASE,
)
# Fonts with many letters, by the beginnings of their files' names, the most legible first.
_PREFERRED = (
    "dejavusans.",
    "notosans-regular",
    "notosans[",
    "notosanscjk",
    "notosans",
    "sourcehansans",
    "wqy-",
    "droidsansfallback",
    "pingfang",
    "hiragino",
    "msyh",
    "simhei",
    "meiryo",
    "yugoth",
    "malgun",
    "arial unicode",
    "arialuni",
    "segoeui.",
    "tahoma.",
    "nirmala",
    "leelaw",
    "geezapro",
    "freesans.",
    "unifont",
)
_REGULAR_WEIGHT = 400

# Joiners are part of words in some scripts, and variation selectors choose between pictures of one
# sign: neither has an image of its own.
_JOINERS = "\u200c\u200d"
_SELECTORS = re.compile("[\ufe00-\ufe0f]")
_ABSENT = "\U0010fffe"  # No font has this noncharacter.
_PROBE_SIZE = 24


@dataclass(frozen=True, eq=False)
class Typeface:
    """A font file, or Pillow's own font.

    Attributes:
        path: The file; None means Pillow's own.
    """

    path: Path | None
    _known: dict[str, bool] = field(default_factory=dict, init=False, repr=False)
    _missing: tuple[Any, ...] | None = field(default=None, init=False, repr=False)

    def at(self, size: int) -> ImageFont.FreeTypeFont:
        """Return the font at a size in pixels.

        Raises:
            OSError: FreeType cannot read it.
            ImportError: Pillow has no FreeType.
            TypeError: Pillow is older than its own font.
        """
        return _load(self.path, size, _layout())

    def has(self, character: str) -> bool:
        """Return whether the font has a glyph for a character."""
        known = self._known.get(character)
        if known is None:
            # Kept by character and not as an open font: a machine may have hundreds of fonts.
            known = self._known[character] = self._looks_like_one(character)
        return known

    def _looks_like_one(self, character: str) -> bool:
        try:
            font = _load(self.path, _PROBE_SIZE, ImageFont.Layout.BASIC)
            if not isinstance(font, ImageFont.FreeTypeFont):
                return False
            if self._missing is None:
                object.__setattr__(self, "_missing", _image(font, _ABSENT))
            return character == " " or _image(font, character) != self._missing
        except (OSError, ImportError, TypeError, ValueError):
            return False  # No FreeType, or a damaged file.


class Line:
    """A line of text, ready to be drawn.

    Args:
        text: Any text.
        size: Height of the font in pixels.

    Attributes:
        box: (left, top, right, bottom) of its pixels, relative to the left end of its base line.
    """

    def __init__(self, text: str, size: int) -> None:
        self._runs: list[tuple[float, str, Any]] = []
        x, boxes = 0.0, []
        for part, face in runs(text):
            if _layout() is not ImageFont.Layout.RAQM:
                part = in_visual_order(part)
            font = _bitmap_font() if face is None else face.at(size)
            left, top, right, bottom = _box(font, part)
            boxes.append((x + left, top, x + right, bottom))
            self._runs.append((x, part, font))
            x += font.getlength(part)
        sides = list(zip(*boxes, strict=True)) or [(0,)] * 4
        self.box: tuple[float, float, float, float] = (
            min(sides[0]),
            min(sides[1]),
            max(sides[2]),
            max(sides[3]),
        )

    def draw(self, pen: ImageDraw.ImageDraw, x: float, y: float, color: Any) -> None:
        """Draw it with the left end of its base line at a point."""
        for offset, part, font in self._runs:
            if isinstance(font, ImageFont.FreeTypeFont):
                options: dict[str, Any] = {"anchor": "ls", **_direction()}
                pen.text((x + offset, y), part, color, font, **options)
            else:
                pen.text((x + offset, y + _box(font, part)[1]), part, color, font)


def runs(text: str, faces: Sequence[Typeface] | None = None) -> list[tuple[str, Typeface | None]]:
    """Split a text into parts that a font can write.

    Args:
        text: Any text.
        faces: The fonts to choose from, best first; None means all of :func:`typefaces`.

    Returns:
        The parts, in which characters without a glyph are escaped, and their fonts; None means
        Pillow's bitmap font, where there is no other.
    """
    choice = typefaces() if faces is None else _Fonts(iter(faces))
    characters = list(_SELECTORS.sub("", unicodedata.normalize("NFC", text)))
    shown = [
        character if _is_visible(character, before) else escape(character)
        for character, before in zip(characters, ["", *characters], strict=False)
    ]
    for one in choice:
        if all(_has(one, part) for part in shown):
            return [("".join(shown), one)] if shown else []
    found: list[tuple[str, Typeface | None]] = []
    for part in shown:
        before = found[-1][1] if found else None
        face = before if before is not None and _has(before, part) else None
        face = face or next((one for one in choice if _has(one, part)), None)
        if face is None:
            part = escape(part)
            face = next((one for one in choice if _has(one, part)), None)
        if found and face is before:
            found[-1] = (found[-1][0] + part, face)
        else:
            found.append((part, face))
    return found


def escape(text: str) -> str:
    """Write the characters of a text as their numbers, such as ``[U+732B]``."""
    return "".join(f"[U+{ord(character):04X}]" for character in text)


def in_visual_order(text: str) -> str:
    """Turn words that run from right to left around, for a layout that does not."""
    if text.isascii():
        return text
    parts: list[str] = []
    for words in re.split(r"([\s\x21-\x7e]+)", text):
        rtl = any(unicodedata.bidirectional(character) in ("R", "AL") for character in words)
        parts.append(words[::-1] if rtl else words)
    return "".join(parts)


def typefaces() -> _Fonts:
    """Return the fonts of the machine, best first; they are looked for when they are needed."""
    return _all_fonts(os.environ.get(VARIABLE, ""))


def plot_fonts() -> list[Typeface]:
    """Return the fonts that are files, which matplotlib can use, best first."""
    return [face for face in typefaces() if face.path is not None]


class _Fonts:
    """Fonts that are looked for one by one, as far as a text needs them."""

    def __init__(self, source: Iterator[Typeface]) -> None:
        self._source = source
        self._found: list[Typeface] = []
        self._lock = Lock()

    def __iter__(self) -> Iterator[Typeface]:
        index = 0
        while True:
            with self._lock:
                if index == len(self._found):
                    face = next(self._source, None)
                    if face is None:
                        return
                    self._found.append(face)
            yield self._found[index]
            index += 1


@lru_cache(maxsize=8)
def _all_fonts(chosen: str) -> _Fonts:
    return _Fonts(_find(chosen))


def _find(chosen: str) -> Iterator[Typeface]:
    for name in filter(None, chosen.split(os.pathsep)):
        path = Path(name).expanduser()
        if not path.exists():
            warnings.warn(f"{VARIABLE}: {path} does not exist", stacklevel=2)
        files = [path] if path.is_file() else _files(path)
        yield from (Typeface(file) for file in files)
    yield Typeface(None)
    files = []
    for package in _PACKAGES:
        spec = find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            files += _files(Path(folder))
    names = _FOLDERS.get(sys.platform, _FOLDERS["linux"])
    for name in names:
        files += _files(Path(os.path.expandvars(name)).expanduser())
    suitable = [file for file in files if not _UNSUITABLE.search(file.name)]
    yield from (Typeface(file) for file in sorted(suitable, key=_preference))


def _files(folder: Path) -> list[Path]:
    """Return the font files below a folder; none where it cannot be read."""
    found = []
    for parent, _, names in os.walk(folder, onerror=None):
        found += [Path(parent, name) for name in names if Path(name).suffix.lower() in _SUFFIXES]
    return sorted(found)


def _preference(path: Path) -> int:
    name = path.name.lower()
    return next(
        (i for i, start in enumerate(_PREFERRED) if name.startswith(start)), len(_PREFERRED)
    )


@lru_cache(maxsize=32)
def _load(path: Path | None, size: int, layout: Any) -> Any:
    if path is None:
        font: Any = ImageFont.load_default(size)
        if isinstance(font, ImageFont.FreeTypeFont) and layout is not font.layout_engine:
            font = font.font_variant(layout_engine=layout)
        return font
    font = ImageFont.truetype(str(path), size, layout_engine=layout)
    try:
        axes = font.get_variation_axes()
        # Some variable fonts are thin unless told otherwise.
        font.set_variation_by_axes(
            [
                min(max(_REGULAR_WEIGHT, axis["minimum"] or 0), axis["maximum"] or 0)
                if axis["name"] == b"Weight"
                else axis["default"] or 0
                for axis in axes
            ]
        )
    except (OSError, NotImplementedError):
        pass  # Not a variable font.
    return font


@lru_cache(maxsize=1)
def _layout() -> Any:
    return ImageFont.Layout.RAQM if features.check("raqm") else ImageFont.Layout.BASIC


def _direction() -> dict[str, str]:
    """Let a line begin on the left; words within it run as their script does."""
    return {"direction": "ltr"} if _layout() is ImageFont.Layout.RAQM else {}


@lru_cache(maxsize=1)
def _bitmap_font() -> Any:
    """Return Pillow's font without FreeType, which has ASCII."""
    return ImageFont.load_default()


def _box(font: Any, text: str) -> tuple[float, float, float, float]:
    """Return the pixels of a text, relative to the left end of its base line."""
    if isinstance(font, ImageFont.FreeTypeFont):
        options: dict[str, Any] = {"anchor": "ls", **_direction()}
        return font.getbbox(text, **options)
    left, top, right, bottom = font.getbbox(text)
    return left, top - bottom, right, 0


def _image(font: ImageFont.FreeTypeFont, character: str) -> tuple[Any, ...]:
    mask = font.getmask(character)
    return (mask.size, bytes(mask), font.getlength(character) if 0 in mask.size else 0)


def _has(face: Typeface, part: str) -> bool:
    return all(character in _JOINERS or face.has(character) for character in part)


def _is_visible(character: str, before: str) -> bool:
    """Return whether a character can be seen, or shapes the letter before."""
    if character in _JOINERS:
        return before > "\x7f"
    return unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp")
