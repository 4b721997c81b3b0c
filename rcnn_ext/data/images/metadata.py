"""Copies of picture files without their metadata, for readers that broken metadata stop."""

from __future__ import annotations

import struct
import zlib

from rcnn_ext.data.images.orientation import exif_with, orientation_in_exif

_PNG = b"\x89PNG\r\n\x1a\n"

# Tags of TIFF that say where the pixels are and what they mean; with orientation.
_TIFF_TAGS = {
    *(254, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 292, 293, 317, 320),
    *(322, 323, 324, 325, 332, 338, 339, 347, 512, 513, 514, 529, 530, 531, 532),
}


def without_metadata(content: bytes) -> bytes | None:
    """Return a file with its pixels and orientation, but without other metadata.

    Args:
        content: A file in any format.

    Returns:
        The new file; None for formats other than JPEG, PNG and TIFF, and for files that are cut off
        before their pixels.
    """
    try:
        if content.startswith(b"\xff\xd8"):
            return _plain_jpeg(content)
        if content.startswith(_PNG):
            return _plain_png(content)
        if content.startswith((b"II*\0", b"MM\0*")):
            return _plain_tiff(content)
    except (struct.error, IndexError):
        pass
    return None


def _plain_jpeg(content: bytes) -> bytes:
    place, orientation = 2, 1
    kept: list[bytes] = []
    while True:
        while content[place + 1] == 0xFF:  # Fill bytes.
            place += 1
        marker, (length,) = content[place + 1], struct.unpack_from(">H", content, place + 2)
        if content[place] != 0xFF or length < 2:
            raise IndexError
        if marker == 0xDA:  # Start of scan: pixels follow.
            kept.append(content[place:])
            break
        segment = content[place : place + 2 + length]
        if marker == 0xE1 and segment[4:10] == b"Exif\0\0":
            orientation = orientation_in_exif(segment[4:])
        # All comments and applications' segments, but that of Adobe (APP14), which says what the
        # colors mean.
        if not (0xE0 <= marker <= 0xEF or marker == 0xFE) or (marker == 0xEE and length >= 14):
            kept.append(segment)
        place += 2 + length
    exif = exif_with(orientation)
    return b"".join([b"\xff\xd8\xff\xe1", struct.pack(">H", len(exif) + 2), exif, *kept])


def _plain_png(content: bytes) -> bytes:
    place, orientation = len(_PNG), 1
    kept: list[bytes] = []
    while place + 8 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, place)
        chunk = content[place : place + 12 + length]
        if kind == b"eXIf":
            orientation = orientation_in_exif(chunk[8:-4])
        # Chunks whose names begin with a capital are needed to show the picture.
        if kind[:1].isupper():
            kept.append(chunk)
        place += 12 + length
    body = b"eXIf" + exif_with(orientation).removeprefix(b"Exif\0\0")
    exif = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return b"".join([_PNG, kept[0], exif, *kept[1:]])


def _plain_tiff(content: bytes) -> bytes:
    order = "<" if content[:2] == b"II" else ">"
    (start,) = struct.unpack_from(f"{order}I", content, 4)
    (count,) = struct.unpack_from(f"{order}H", content, start)
    plain = bytearray(content)
    for index in range(count):
        place = start + 2 + 12 * index
        (tag,) = struct.unpack_from(f"{order}H", content, place)
        if tag not in _TIFF_TAGS:
            # A private tag with one byte, which nobody reads.
            struct.pack_into(f"{order}HHI4x", plain, place, 65000 + index % 500, 1, 1)
    return bytes(plain)
