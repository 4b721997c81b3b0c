"""Tiny videos, made by PyAV."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

SIZE = (64, 48)  # width, height
RATE = 25


def frame_pixels(index: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Return frame ``index``, [H, W, 3]: a white square in the upper left corner, on gray."""
    pixels = np.full((size[1], size[0], 3), 40 + 3 * (index % 50), np.uint8)
    pixels[:16, :16] = 255
    return pixels


def make_video(
    path: Path,
    count: int = 10,
    *,
    size: tuple[int, int] = SIZE,
    codec: str = "libx264",
    rate: int | Fraction = RATE,
    times: list[Fraction] | None = None,
    audio: str | None = None,
    **options: str,
) -> Path:
    """Write a video.

    Args:
        path: The file; its suffix says the format.
        count: Number of frames.
        size: Width and height.
        codec: The encoder.
        rate: Frames per second.
        times: Times of the frames in seconds, instead of equal distances.
        audio: The encoder of a sound of the same length, or None.
        **options: Options of the format, such as ``movflags``.

    Returns:
        The file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=options) as out:
        video = out.add_stream(codec, rate=rate)
        video.width, video.height = size
        even = size[0] % 2 == 0 and size[1] % 2 == 0
        video.pix_fmt = "yuv420p" if even or codec != "libx264" else "yuv444p"
        video.codec_context.gop_size = 5
        unit = Fraction(1, 1000) if times is not None else 1 / Fraction(rate)
        video.codec_context.time_base = unit
        sound = None if audio is None else out.add_stream(audio, rate=48_000, layout="mono")
        for index in range(count):
            frame = av.VideoFrame.from_ndarray(frame_pixels(index, size), format="rgb24")
            frame.pts = index if times is None else round(times[index] / unit)
            frame.time_base = unit
            out.mux(video.encode(frame))
        out.mux(video.encode())
        if sound is not None:
            _add_sound(out, sound, count / rate)
    return path


def make_sound(path: Path, *, cover: bool = False) -> Path:
    """Write a file with sound, and maybe a picture on its cover."""
    with av.open(str(path), "w", format="mp4") as out:
        sound = out.add_stream("aac", rate=48_000, layout="mono")
        picture = None
        if cover:
            picture = out.add_stream("mjpeg", rate=1)
            picture.width, picture.height = SIZE
            picture.pix_fmt = "yuvj420p"
            picture.disposition = av.stream.Disposition.attached_pic
        _add_sound(out, sound, 1)
        if picture is not None:
            out.mux(picture.encode(av.VideoFrame.from_ndarray(frame_pixels(0), format="rgb24")))
            out.mux(picture.encode())
    return path


def _add_sound(out: Any, stream: Any, seconds: Any) -> None:
    pcm = stream.codec_context.name == "pcm_s16le"
    for index in range(max(1, round(seconds * 48_000 / 1024))):
        wave = np.zeros((1, 1024), np.int16 if pcm else np.float32)
        chunk = av.AudioFrame.from_ndarray(wave, "s16" if pcm else "fltp", "mono")
        chunk.sample_rate, chunk.pts = 48_000, 1024 * index
        out.mux(stream.encode(chunk))
    out.mux(stream.encode())


def read_frames(path: Path) -> list[tuple[float, np.ndarray]]:
    """Return time and pixels [H, W, 3] of each frame of a video."""
    with av.open(str(path)) as container:
        return [
            (float(frame.time), frame.to_ndarray(format="rgb24"))
            for frame in container.decode(video=0)
        ]


def set_display_matrix(path: Path, a: int, b: int, c: int, d: int) -> None:
    """Change how players turn the frames of an MP4 file: (x, y) is shown at (ax + cy, bx + dy)."""
    content = bytearray(path.read_bytes())
    place = content.index(b"tkhd") + 4 + 40  # behind version, times, id, duration, layer, volume
    for index, value in ((0, a), (1, b), (3, c), (4, d)):
        content[place + 4 * index : place + 4 * index + 4] = (value << 16).to_bytes(
            4, "big", signed=True
        )
    path.write_bytes(content)
