"""Proposals on disk: computed once for a data set, read by every run that trains on it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np

from rcnn_ext import files
from rcnn_ext.config.selective_search import SearchSettings
from rcnn_ext.errors import UserError
from rcnn_ext.selective_search.filters import ProposalFilter
from rcnn_ext.selective_search.regions import Regions

# To be raised when a search gives other regions for the same settings than before, or the files
# have other contents.
_VERSION = 2
_SUFFIX = ".safetensors"


@dataclasses.dataclass(frozen=True)
class CachedRegions:
    """The cache's entry for an image.

    Attributes:
        regions: All that the search found, in its order.
        height: Height of the image, upright, in pixels.
        width: Width of the image, upright, in pixels.
    """

    regions: Regions
    height: int
    width: int


class ProposalCache:
    """Regions of images in a folder, one file for each image and each set of settings.

    A file is named by a hash of the image file's content and of the settings: an image that moves
    or is copied keeps its proposals, one that changes loses them, and searches with other settings
    lie beside each other. Files are written whole or not at all, so several processes may write and
    read one folder. They are safetensors: arrays and strings, no code.

    Args:
        folder: Where the files are; made when the first is written.
        settings: Settings of the search.
        filters: What :meth:`boxes` leaves out; the files hold all regions.

    Example:
        >>> cache = ProposalCache(Path("proposals"), SearchSettings(), ProposalFilter(min_side=20))
        >>> cache.boxes(Path("photo.jpg"))  # [N, 4] float32
    """

    def __init__(
        self,
        folder: Path,
        settings: SearchSettings | None = None,
        filters: ProposalFilter | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.settings = SearchSettings() if settings is None else settings
        self.filters = ProposalFilter() if filters is None else filters
        self._settings_text = json.dumps(
            {"version": _VERSION, **self.settings.resolved()}, sort_keys=True
        )

    def path_for(self, content: bytes) -> Path:
        """Return the file that holds an image's regions.

        Args:
            content: Bytes of the image file, as on disk.
        """
        digest = hashlib.sha256(self._settings_text.encode())
        digest.update(b"\0")
        digest.update(content)
        name = digest.hexdigest()
        # Some file systems are slow with a hundred thousand files in one folder.
        return self.folder / name[:2] / f"{name}{_SUFFIX}"

    def boxes(self, image: Path) -> np.ndarray:
        """Return the proposals for an image.

        Args:
            image: The image file.

        Returns:
            [N, 4] float32 (x1, y1, x2, y2) in image pixels, filtered: the outer borders of the
            regions (:meth:`Regions.enclosing_boxes`), as models and RoI operators take boxes.

        Raises:
            UserError: There are none for this image and these settings, or the file is damaged.
        """
        return self.chosen(self.read(image))

    def chosen(self, found: CachedRegions) -> np.ndarray:
        """Return the boxes that :meth:`boxes` returns for the regions of an image."""
        return self.filters(found.regions, found.height, found.width).enclosing_boxes()

    def read(self, image: Path) -> CachedRegions:
        """Return all that the search found in an image.

        Raises:
            UserError: There is nothing for this image and these settings, or the file is damaged.
        """
        path = self.path_for(_content(image))
        if not path.is_file():
            raise UserError(
                f"{self.folder} has no proposals for {image} with "
                + ", ".join(f"{name} {value}" for name, value in self.settings.resolved().items())
                + f"; compute them with: {self._command()}"
            )
        return self._load(path)

    def has(self, content: bytes) -> bool:
        """Return whether the regions of an image are there and whole.

        Args:
            content: Bytes of the image file.
        """
        path = self.path_for(content)
        if not path.is_file():
            return False
        try:
            self._load(path)
        except UserError:
            return False
        return True

    def write(self, content: bytes, found: CachedRegions) -> Path:
        """Keep the regions of an image.

        Args:
            content: Bytes of the image file.
            found: What the search gave.

        Returns:
            The file.

        Raises:
            UserError: It cannot be written.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import save_file

        path = self.path_for(content)
        arrays: dict[str, np.ndarray] = {
            "boxes": np.ascontiguousarray(found.regions.boxes, dtype=np.int32),
            "sizes": np.ascontiguousarray(found.regions.sizes, dtype=np.int64),
        }
        strings = {
            "settings": self._settings_text,
            "height": str(found.height),
            "width": str(found.width),
        }
        strings["sha256"] = _checksum(arrays, strings)
        with files.replacing(path) as temporary:
            try:
                save_file(arrays, temporary, strings)
            except SafetensorError as error:
                raise UserError(f"cannot write {path}: {error}") from error
        return path

    def _command(self) -> str:
        """Return the command that computes proposals with these settings."""
        words = ["rcnn-ext", "selective-search", "IMAGES", "--out", str(self.folder)]
        for field in dataclasses.fields(self.settings):
            value = getattr(self.settings, field.name)
            if value != field.default:
                several = value if isinstance(value, tuple) else (value,)
                words += [f"--{field.name.replace('_', '-')}", *map(str, several)]
        return shlex.join(words)

    def _load(self, path: Path) -> CachedRegions:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="numpy") as opened:
                strings: dict[str, Any] = opened.metadata() or {}
                arrays = {name: opened.get_tensor(name) for name in ("boxes", "sizes")}
            checksum = strings.pop("sha256")
            if checksum != _checksum(arrays, strings):
                raise ValueError("another checksum than when they were written")
            height, width = int(strings["height"]), int(strings["width"])
        except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise UserError(
                f"the proposals in {path} are damaged ({reason}); delete the file and run "
                "rcnn-ext selective-search again"
            ) from error
        return CachedRegions(Regions(arrays["boxes"], arrays["sizes"]), height, width)


def _checksum(arrays: dict[str, np.ndarray], strings: dict[str, str]) -> str:
    """Return a hash of all that a file holds."""
    digest = hashlib.sha256(json.dumps(strings, sort_keys=True).encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}\0".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _content(image: Path) -> bytes:
    try:
        return Path(image).read_bytes()
    except FileNotFoundError:
        raise UserError(f"the image {image} does not exist") from None
