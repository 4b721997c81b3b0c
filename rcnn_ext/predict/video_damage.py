"""Damaged videos: where they end, and what could be read."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

from rcnn_ext.errors import UserError
from rcnn_ext.predict.video_sources import VideoSource

# Formats whose headers give the duration of the whole, so that a missing end shows.
_DURATION_IN_HEADER = frozenset({"matroska", "avi", "flv", "asf"})
# Headers may round the duration, and count the last frame or not.
_MIN_MISSING = Fraction(1, 5)
# Types of the boxes that an MP4 file consists of.
_BOXES = frozenset(
    {b"ftyp", b"moov", b"mdat", b"moof", b"mfra", b"sidx", b"ssix", b"styp", b"free", b"skip"}
    | {b"wide", b"udta", b"uuid", b"meta", b"emsg", b"prft", b"pnot"}
)
_TRANSPORT_PACKETS = (188, 192, 204)  # bytes


class Damage:
    """Notice what is missing in a video while it is read.

    Args:
        source: The video.
        rate: Its frames per second.

    Attributes:
        next_time: Time, in seconds, at which the next frame is expected.
    """

    def __init__(self, source: VideoSource, rate: Fraction) -> None:
        self.source = source
        self.rate = rate
        self.next_time = Fraction(0)
        self._frames = 0
        self._first: tuple[int, Fraction] | None = None
        self._reached = Fraction(0)
        self._packets = 0
        self._stop: str | None = None

    def count(self, time: Fraction, *, corrupt: bool) -> int:
        """Count a frame, and return its index.

        Args:
            time: Its time in seconds.
            corrupt: Whether parts of it could not be decoded.
        """
        if corrupt:
            self.lose()
        self._frames += 1
        self.next_time = time + 1 / self.rate
        return self._frames - 1

    def lose(self) -> None:
        """Note that a packet could not be decoded."""
        self._first = self._first or (self._frames, self.next_time)

    def reach(self, packet: Any) -> None:
        """Note how far packets of any stream go."""
        self._packets += packet.stream.type == "video" and packet.size > 0
        if packet.pts is not None and packet.time_base is not None:
            end = (packet.pts + (packet.duration or 0)) * Fraction(packet.time_base)
            self._reached = max(self._reached, end)

    def stopped(self, error: Exception) -> None:
        """Note that no more packets can be read."""
        self._stop = getattr(error, "strerror", None) or str(error)

    def error(self, container: Any, origin: Fraction, stream: Any) -> UserError | None:
        """Return what is wrong with a video that was read to its end, or None.

        Args:
            container: The open video.
            origin: Its first time stamp in seconds.
            stream: The stream that was decoded.
        """
        shown, read = self.source.shown, _place(self._frames, self.next_time)
        if self._frames == 0:
            why = f": {self._stop}" if self._stop else ", or it is damaged"
            return UserError(f"{shown} has no frame that can be read{why}")
        if self._stop is not None:
            return UserError(f"{shown} ends early, after {read}: {self._stop}")
        expected = Fraction(container.duration or 0, 1_000_000)
        if self._is_cut(container, expected, origin, stream):
            whole = f", of {float(expected):.2f} s" if expected > self.next_time else ""
            return UserError(f"{shown} is cut off: it ends after {read}{whole}")
        if self._first is not None:
            index, time = self._first
            return UserError(
                f"{shown} is damaged from frame {index} ({float(time):.2f} s) on; {read} could be "
                "read"
            )
        return None

    def _is_cut(self, container: Any, expected: Fraction, origin: Fraction, stream: Any) -> bool:
        source, names = self.source, set(container.format.name.split(","))
        missing = expected - (self._reached - origin)
        ends_early = missing > max(_MIN_MISSING, 2 / self.rate)
        if names & _DURATION_IN_HEADER:
            return ends_early
        if "mov" in names and ends_early and self._packets < stream.frames:
            return True
        return source.is_file and file_is_cut(Path(source.target))


def file_is_cut(path: Path) -> bool:
    """Return whether a file of the MP4 family, or a transport stream, lacks its end."""
    size = path.stat().st_size
    with path.open("rb") as file:
        begin = file.read(12)
        if begin[4:8] in _BOXES:
            return _boxes_end_beyond(file, size)
    if any(_is_transport_stream(path, length) for length in _TRANSPORT_PACKETS):
        return all(size % length for length in _TRANSPORT_PACKETS)
    return False


def _boxes_end_beyond(file: Any, size: int) -> bool:
    """Return whether the last box of an MP4 file is longer than what is left of the file."""
    position = 0
    while position < size:
        file.seek(position)
        header = file.read(16)
        length = int.from_bytes(header[:4], "big")
        if length == 1:
            length = int.from_bytes(header[8:16], "big")
        if len(header) < 8:
            return any(header)  # Some writers pad with zeros.
        # A length of 0 means up to the end of the file. Behind the last box there may be anything.
        if length < 8 or header[4:8] not in _BOXES:
            return False
        position += length
    return position > size


def _is_transport_stream(path: Path, length: int) -> bool:
    """Return whether a file has the sync bytes of packets of some length."""
    offset = 4 if length == 192 else 0
    with path.open("rb") as file:
        begin = file.read(4 * length)
    marks = begin[offset::length]
    return len(marks) >= 2 and set(marks) == {0x47}


def _place(frames: int, time: Fraction) -> str:
    return f"{frames} frame{'s' * (frames != 1)} ({float(time):.2f} s)"
