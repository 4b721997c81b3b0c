"""The names of pictures in a converted data set: their own where these are unique and readable."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, field
from pathlib import Path

from rcnn_ext.data.conversion.losses import Losses
from rcnn_ext.data.formats.file_names import file_parts

# File systems allow 255 bytes, also for the name of a label file.
_MAX_BYTES = 250

_ALIKE = "told apart from others by folder, case or suffix only: numbered, or named by their folder"


@dataclass
class FileNames:
    """Gives each picture of a folder a name of its own.

    Attributes:
        losses: Where pictures that are renamed are counted.
        by_stem: Whether pictures whose names differ in the suffix only need other names, since
            their annotations are found by the name without it.
    """

    losses: Losses
    by_stem: bool
    _taken: set[str] = field(default_factory=set)

    def take(self, path: Path, suffix: str = "") -> str:
        """Return a name for one more picture.

        Args:
            path: The picture where it is now.
            suffix: Put behind the name; empty where the name has one.
        """
        name = readable(path.name) + suffix
        if name != path.name:
            why = "a suffix was missing, or a character could not be written or read in a list"
            self.losses.add("names of pictures", why)
        chosen, number = name, 1
        while self._key(chosen) in self._taken or len(chosen.encode()) > _MAX_BYTES:
            if number == 1:
                chosen = f"{readable(path.parent.name)}_{name}"
            else:
                stem, dot = Path(name).stem, Path(name).suffix
                stem = stem.encode()[: _MAX_BYTES - 20].decode(errors="ignore")
                chosen = f"{stem}_{number}{dot[:10]}"
            number += 1
        if chosen != name:
            self.losses.add("names of pictures", _ALIKE)
        self._taken.add(self._key(chosen))
        return chosen

    def _key(self, name: str) -> str:
        # Some file systems make no difference between cases and forms of accents.
        plain = Path(name).stem if self.by_stem else name
        return unicodedata.normalize("NFC", plain).casefold()


def readable(name: str) -> str:
    """Return a name without characters that lists cannot hold, or that readers would interpret."""
    plain = "".join(
        "_" if unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") else char for char in name
    ).strip()
    if file_parts(plain) != (plain,):
        plain = "".join("_" if char in "\\:?/" else char for char in plain)
    return plain or "_"
