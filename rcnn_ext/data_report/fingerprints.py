"""Fingerprints of pictures, by which copies and near copies are found.

A picture has two: a hash of its file, which copies share, and a perceptual hash (pHash: the signs
of its lowest 63 frequencies, Zauner 2010), which hardly changes when it is compressed again,
resized or made brighter.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

SIDE = 16  # of the kept thumbnail, in pixels
_WORKING_SIDE = 32
_FREQUENCIES = 8

# Gray levels of 255. Below that, the signs of frequencies are those of noise.
_MIN_CONTRAST = 4.0


@dataclass(frozen=True)
class Fingerprint:
    """What is kept of a picture.

    Attributes:
        digest: Hash of its file, 16 bytes.
        hash: Its perceptual hash, 64 bits.
        mirrored: That of its mirror image.
        thumbnail: Its gray levels, ``SIDE`` x ``SIDE`` bytes.
        plain: Whether it has no contrast, so that its perceptual hash means nothing.
    """

    digest: bytes
    hash: int
    mirrored: int
    thumbnail: bytes
    plain: bool


class Fingerprints:
    """The fingerprints of the pictures of a split, taken while a check reads them.

    Threads may call :meth:`see` at the same time.
    """

    def __init__(self) -> None:
        self.by_path: dict[Path, Fingerprint] = {}

    def see(self, path: Path, content: bytes | None, picture: Image.Image | torch.Tensor) -> None:
        """Take the fingerprint of a picture.

        Args:
            path: Its path in the annotations.
            content: Its file; None reads it from ``path``.
            picture: The picture upright, or as a tensor [C, H, W], uint8 or floats in [0, 1].
        """
        self.by_path[path] = fingerprint(path if content is None else content, picture)


def fingerprint(content: bytes | Path, picture: Image.Image | torch.Tensor) -> Fingerprint:
    """Return the fingerprint of a picture.

    Args:
        content: Its file, or the path of that.
        picture: The picture upright, or as a tensor [C, H, W], uint8 or floats in [0, 1].
    """
    gray = _gray(picture)  # float32 [32, 32]
    transform = _cosines()
    low = transform @ gray @ transform.T  # [8, 8], rows are vertical frequencies.
    turned = low * np.where(np.arange(_FREQUENCIES) % 2, -1, 1)
    small = gray.reshape(SIDE, _WORKING_SIDE // SIDE, SIDE, -1).mean(axis=(1, 3))
    return Fingerprint(
        digest=_digest(content),
        hash=_bits(low),
        mirrored=_bits(turned),
        thumbnail=small.round().clip(0, 255).astype(np.uint8).tobytes(),
        plain=bool(gray.std() < _MIN_CONTRAST),
    )


def _digest(content: bytes | Path) -> bytes:
    found = hashlib.blake2b(digest_size=16)
    if isinstance(content, bytes):
        found.update(content)
        return found.digest()
    with content.open("rb") as file:
        # Scans may have gigabytes.
        while part := file.read(1 << 20):
            found.update(part)
    return found.digest()


def _gray(picture: Image.Image | torch.Tensor) -> np.ndarray:
    size = (_WORKING_SIDE, _WORKING_SIDE)
    if isinstance(picture, Image.Image):
        small = picture.convert("RGB") if picture.mode != "RGB" else picture
        # Shrunk first: converting all pixels to gray would take most of the time.
        small = small.resize(size, Image.Resampling.BOX)
        return np.asarray(small.convert("L"), dtype=np.float32)
    scale = 1.0 if picture.dtype == torch.uint8 else 255.0
    plane = picture.as_subclass(torch.Tensor).float().mean(dim=0).numpy() * scale
    small = Image.fromarray(plane).resize(size, Image.Resampling.BOX)
    return np.nan_to_num(np.asarray(small, dtype=np.float32), posinf=255, neginf=0)


@functools.cache
def _cosines() -> np.ndarray:
    """Return the lowest frequencies of the discrete cosine transform, float32 [8, 32]."""
    frequencies = np.arange(_FREQUENCIES)[:, None]
    places = np.arange(_WORKING_SIDE)[None] + 0.5
    return np.cos(np.pi / _WORKING_SIDE * frequencies * places).astype(np.float32)


def _bits(low: np.ndarray) -> int:
    values = low.reshape(-1)[1:]  # Without the mean, which is the brightness.
    return int.from_bytes(np.packbits(values > np.median(values)).tobytes(), "big")
