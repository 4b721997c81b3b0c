"""Frames of videos, one by one, from files, pipes, URLs and cameras. Needs the extra ``video``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rcnn_ext.errors import UserError
from rcnn_ext.predict.pictures import ArrayPicture
from rcnn_ext.predict.video_damage import Damage, file_is_cut
from rcnn_ext.predict.video_sources import VideoSource

# Seconds after which a server that sends nothing is given up.
_TIMEOUT = 30.0
# Number of frames that a decoder may hold back, in its threads and for their order.
_MAX_DELAYED = 64
_MAX_TICKS = 1_000_000  # per second
_USUAL_RATE = Fraction(25)


@dataclass(frozen=True)
class FrameRange:
    """The frames of a video to search.

    Attributes:
        every: Search each n-th frame only, beginning with the first.
        start: Time of the first frame in seconds; None means the beginning.
        end: Time in seconds before which the last frame is; None means the end.

    Raises:
        UserError: A value is out of range.
    """

    every: int = 1
    start: float | None = None
    end: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.every, int) or self.every < 1:
            raise UserError(f"every must be a whole number from 1 on, not {self.every!r}")
        for name, value in (("start", self.start), ("end", self.end)):
            if value is not None and not 0 <= value < float("inf"):
                raise UserError(f"{name} must be a time in seconds from 0 on, not {value!r}")
        if self.end is not None and self.end <= (self.start or 0):
            raise UserError(f"end ({self.end:g} s) must be after start ({self.start or 0:g} s)")

    @property
    def exact(self) -> tuple[Fraction, Fraction | None]:
        """Start and end, as exact as time stamps are: 0.4 s is not beyond 10 frames of 1/25 s."""
        start, end = (
            None if value is None else Fraction(value).limit_denominator(_MAX_TICKS)
            for value in (self.start, self.end)
        )
        return start or Fraction(0), end


class VideoFrame:
    """A frame of a video, which is converted to pixels when it is decoded for a model.

    Attributes:
        index: Its position among the frames that can be read, from 0.
        time: Its time in seconds, exact, from the beginning of the video.
        name: ``<video>/<index>``.
        path: None: it is in no file of its own.
    """

    path = None

    def __init__(self, frame: Any, index: int, time: Fraction, video: Path) -> None:
        self.index = index
        self.time = time
        self.name = video / f"{index:06d}"
        self._frame: Any = frame
        self._array: np.ndarray | None = None

    def array(self) -> np.ndarray:
        """Return the frame, upright, as uint8 [H, W, 3], RGB."""
        if self._array is None:
            pixels = self._frame.to_ndarray(format="rgb24")
            self._array = np.ascontiguousarray(_upright(pixels, _display_matrix(self._frame)))
            self._frame = None
        return self._array

    def decode(self, channels: int) -> tuple[Tensor, Image.Image | None]:
        """Convert the frame to uint8 [``channels``, H, W].

        Raises:
            UserError: The model takes other channels.
        """
        array = self.array()
        if channels == array.shape[2]:
            return torch.from_numpy(array).permute(2, 0, 1).contiguous(), None
        return ArrayPicture(array, False, self.name).decode(channels)

    def picture(self) -> Image.Image:
        """Return the frame, upright, RGB."""
        return Image.fromarray(self.array())


class Video:
    """A video that is open for reading.

    Args:
        source: The video.
        frames: The frames to read.
        max_pixels: Maximum number of pixels of a frame.

    Attributes:
        source: The video.
        rate: Frames per second, on average.
        time_base: Unit of the time stamps in seconds.
        pixel_aspect: Width of a pixel divided by its height, upright.
        audio: The first audio stream, or None.
        expected: Number of frames to read, as far as the video says; None for a live stream.

    Raises:
        UserError: It cannot be opened, or has no video that can be decoded.
    """

    def __init__(self, source: VideoSource, frames: FrameRange, max_pixels: int) -> None:
        self.source = source
        self.frames = frames
        self._av = pyav()
        self._container = self._open()
        try:
            self._stream = self._video_stream(max_pixels)
        except BaseException:
            self._container.close()
            raise
        self.rate = Fraction(self._stream.average_rate or self._stream.guessed_rate or _USUAL_RATE)
        self.time_base = Fraction(self._stream.time_base or 1 / self.rate)
        self.pixel_aspect = Fraction(self._stream.sample_aspect_ratio or 1)
        self.audio = next(iter(self._container.streams.audio), None)
        self.expected = self._expected_frames()

    def read(
        self, on_audio: Callable[[Any, Fraction], None] | None = None
    ) -> Iterator[VideoFrame | UserError]:
        """Yield the frames as they are decoded; a damaged video ends with the error.

        Args:
            on_audio: Called with each packet of :attr:`audio`, and the time, in seconds of its time
                stamps, at which the video begins.
        """
        damage = Damage(self.source, self.rate)
        origin = _origin(self._container)
        start, end = self.frames.exact
        wanted = 0
        try:
            for packet in self._packets(damage):
                if packet.stream is self.audio and on_audio is not None:
                    on_audio(packet, origin or Fraction(0))
                if packet.stream is not self._stream:
                    continue
                for frame in self._decoded(packet, damage):
                    time = self._time(frame)
                    if origin is None:
                        origin = time or Fraction(0)
                    time = damage.next_time if time is None else time - origin
                    if end is not None and time >= end:
                        return
                    index = damage.count(time, corrupt=frame.is_corrupt)
                    if time < start:
                        continue
                    if wanted % self.frames.every == 0:
                        yield VideoFrame(frame, index, time, self.source.name)
                    wanted += 1
            error = damage.error(self._container, origin or Fraction(0), self._stream)
            if error is None and wanted == 0:
                error = UserError(f"{self.source.shown} has no frame in the chosen time")
            if error is not None:
                yield error
        finally:
            self._container.close()

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    def _time(self, frame: Any) -> Fraction | None:
        return None if frame.pts is None else frame.pts * Fraction(frame.time_base)

    def _packets(self, damage: Damage) -> Iterator[Any]:
        """Yield the packets of all streams until the end, or until no more can be read."""
        packets = self._container.demux()
        while True:
            try:
                packet = next(packets, None)
            except (self._av.FFmpegError, OSError) as error:
                damage.stopped(error)
                return
            if packet is None:
                return
            damage.reach(packet)
            yield packet

    def _decoded(self, packet: Any, damage: Damage) -> list[Any]:
        """Return the frames of a packet; none if it is damaged: those after it may be fine."""
        for attempt in range(_MAX_DELAYED):
            try:
                return packet.decode() if attempt == 0 else self._stream.decode(None)
            except self._av.EOFError:
                break
            except (self._av.FFmpegError, ValueError):
                damage.lose()
                if packet.size > 0:
                    break
                # At the end, the frames in other threads of the decoder may be fine.
        return []

    def _open(self) -> Any:
        target: Any = self.source.target
        options: dict[str, Any] = {}
        if self.source.is_standard_input:
            if sys.stdin.isatty():
                raise UserError(
                    "- reads a video from standard input, which is a terminal: pipe one"
                )
            target = sys.stdin.buffer
        elif self.source.is_camera:
            options["format"] = "v4l2"
        elif self.source.is_url:
            options["timeout"] = (_TIMEOUT, _TIMEOUT)
        else:
            target = str(target)
        try:
            return self._av.open(target, **options)
        except (self._av.FFmpegError, OSError, ValueError) as error:
            raise UserError(self._why_not(error)) from None

    def _why_not(self, error: Exception) -> str:
        """Return why the video cannot be opened, in one line."""
        source, reason = self.source, getattr(error, "strerror", None) or str(error)
        if not isinstance(error, self._av.InvalidDataError):
            return f"cannot open {source.shown}: {reason}"
        if source.is_file:
            path = Path(source.target)
            if path.stat().st_size == 0:
                return f"{source.shown} is empty; expected a video"
            if file_is_cut(path):
                return f"{source.shown} is cut off before its index: no frame can be read"
        elif source.is_standard_input:
            return (
                f"{source.shown} is no video that can be read from a pipe, as MP4 files with their "
                "index at the end are not: name the file"
            )
        return f"{source.shown} is no video that FFmpeg can read, or its beginning is damaged"

    def _video_stream(self, max_pixels: int) -> Any:
        shown, streams = self.source.shown, self._container.streams
        found = [stream for stream in streams.video if not _is_cover(stream)]
        if not found:
            audio = " (audio only)" if streams.audio else ""
            raise UserError(f"{shown} has no video stream{audio}")
        decodable = [stream for stream in found if stream.codec_context is not None]
        if not decodable:
            raise UserError(
                f"{shown} has a video codec that this FFmpeg cannot decode: convert it to H.264"
            )
        stream = max(decodable, key=lambda one: one.codec_context.width * one.codec_context.height)
        context = stream.codec_context
        if context.width * context.height > max_pixels:
            raise UserError(
                f"the frames of {shown} are {context.width}x{context.height} pixels; more than "
                f"{max_pixels:,} are not read: set data.max_pixels"
            )
        stream.thread_type = "AUTO"
        return stream

    def _expected_frames(self) -> int | None:
        duration = self._container.duration
        if duration is None or duration <= 0:
            return None
        whole = Fraction(duration, self._av.time_base)
        start, end = self.frames.exact
        end = whole if end is None else min(whole, end)
        count = round(max(Fraction(0), end - start) * self.rate)
        if self._stream.frames and self.frames.start is None and self.frames.end is None:
            count = self._stream.frames
        return -(-count // self.frames.every)


def pyav() -> Any:
    """Import PyAV.

    Raises:
        UserError: It is not installed.
    """
    try:
        import av
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "av":
            raise
        raise UserError(
            "videos need av (PyAV), which is not installed: pip install 'rcnn-ext[video]'"
        ) from None
    return av


def _is_cover(stream: Any) -> bool:
    """Return whether a stream is the picture on the cover of an audio file."""
    flags = getattr(stream, "disposition", None)
    return flags is not None and bool(flags & type(flags).attached_pic)


def _origin(container: Any) -> Fraction | None:
    """Return the time stamp, in seconds, at which a video begins, where it is known."""
    return None if container.start_time is None else Fraction(container.start_time, 1_000_000)


def _display_matrix(frame: Any) -> np.ndarray | None:
    """Return the matrix [2, 2] by which a player turns a frame, or None."""
    data = frame.side_data.get("DISPLAYMATRIX")
    return None if data is None else np.frombuffer(bytes(data), np.int32)[[[0, 1], [3, 4]]]


def _upright(pixels: np.ndarray, matrix: np.ndarray | None) -> np.ndarray:
    """Turn and mirror pixels [H, W, C] as a display matrix says, by multiples of 90 degrees.

    A point (x, y) is shown at (x, y) @ ``matrix``.
    """
    if matrix is None or not matrix.any():
        return pixels
    (to_x, to_y), (from_y_to_x, from_y_to_y) = matrix.tolist()
    if abs(to_y) > abs(to_x):
        pixels = pixels.transpose(1, 0, 2)
        horizontal, vertical = from_y_to_x, to_y
    else:
        horizontal, vertical = to_x, from_y_to_y
    if horizontal < 0:
        pixels = pixels[:, ::-1]
    if vertical < 0:
        pixels = pixels[::-1]
    return pixels
