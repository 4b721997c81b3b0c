"""Pictures whose pixels, orientation or metadata are of a chosen kind."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

_T = Image.Transpose

# What stores an upright picture so that the value of the tag Orientation brings it back.
STORE = {
    2: _T.FLIP_LEFT_RIGHT,
    3: _T.ROTATE_180,
    4: _T.FLIP_TOP_BOTTOM,
    5: _T.TRANSPOSE,
    6: _T.ROTATE_90,
    7: _T.TRANSVERSE,
    8: _T.ROTATE_270,
}


def upright_picture(size=(40, 20)):
    """A black picture with a white object, and the object's box (x1, y1, x2, y2)."""
    width, height = size
    box = (width // 8, height // 8, width // 2, height // 2)
    picture = Image.new("RGB", size)
    picture.paste((255, 255, 255), box)
    return picture, box


def save_turned(path, upright, orientation):
    """Store a picture in the way of a camera that was held in some orientation."""
    stored = upright.transpose(STORE[orientation]) if orientation in STORE else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95} if path.suffix in (".jpg", ".webp", ".avif") else {}
    if path.suffix == ".tif":
        options = {"compression": "tiff_lzw", "tiffinfo": {0x0112: orientation}}
    stored.save(path, exif=exif, **options)
    return stored


def exif_block(entries, count=None):
    """A block of EXIF with entries (tag, type, number of values, four bytes)."""
    body = b"".join(struct.pack("<HHI", *entry[:3]) + entry[3] for entry in entries)
    head = struct.pack("<IH", 8, len(entries) if count is None else count)
    return b"Exif\0\0II*\0" + head + body + bytes(4)


def with_jpeg_segment(picture, marker, payload):
    """A JPEG file that begins with a segment of one's own."""
    content = _encoded(picture, "JPEG", quality=95)
    head = bytes([0xFF, marker]) + struct.pack(">H", len(payload) + 2)
    return content[:2] + head + payload + content[2:]


def png_chunk(kind, data, crc=None):
    """A chunk of a PNG file, perhaps with a wrong checksum."""
    crc = zlib.crc32(kind + data) if crc is None else crc
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)


def with_png_chunk(picture, chunk, *, last=False):
    """A PNG file with one more chunk before its pixels or, if ``last``, behind them."""
    content = _encoded(picture, "PNG")
    place = len(content) - 12 if last else 33
    return content[:place] + chunk + content[place:]


def save_deep_png(path, values):
    """Save uint16 [H, W, 3], which Pillow cannot."""
    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks))


def png_header(width, height):
    """A PNG file that has a header, and no pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IEND", b"")


def gray_ramp(levels=240, height=6):
    """uint8 [height, levels]: each column has its own value, from 0."""
    return np.tile(np.arange(levels, dtype=np.uint8), (height, 1))


def _encoded(picture, form, **options):
    stream = io.BytesIO()
    picture.save(stream, form, **options)
    return stream.getvalue()
