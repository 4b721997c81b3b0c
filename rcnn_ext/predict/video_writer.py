"""Annotated videos: frames are encoded, with their times, as they come; sound is copied."""

from __future__ import annotations

from collections import deque
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import Any

from PIL import Image

from rcnn_ext.errors import UserError
from rcnn_ext.files import replacing
from rcnn_ext.predict.video_frames import Video, pyav

# The first that the installation has. Encoders in hardware may be listed and not work.
_ENCODERS = ("libx264", "libopenh264", "mpeg4")
# What MP4 files hold that players expect; others would have to be encoded again.
_AUDIO_CODECS = frozenset({"aac", "mp3", "ac3", "eac3", "opus", "flac", "alac"})
# MPEG-4 part 2 has 16 bits for the number of ticks per second.
_MAX_MPEG4_TICKS = 65535
_BT709, _LIMITED_RANGE = 1, 1


class VideoWriter:
    """Write an annotated copy of a video as MP4.

    Frames keep their times and their size. The codec is H.264, or MPEG-4 part 2 where there is no
    encoder for it. Frames with an odd number of pixels per row or column have color at full
    resolution, since H.264 halves even numbers only.

    Args:
        path: The file, which has the suffix ``.mp4``. It is there once the video is complete, and
            only if there was a frame.
        video: The video that the frames are of.

    Attributes:
        without_audio: Name of the codec of sound that is left out, or None.
        codec: Name of the encoder, once there is a frame.
        resized: Whether frames had to be resized to the size of the first.
    """

    def __init__(self, path: Path, video: Video) -> None:
        self.video = video
        self.path = path
        self.codec = ""
        self.resized = False
        self._av = pyav()
        self._shift = video.frames.exact[0]
        self._audio: Any = None
        self._last_pts = -1
        self._files = ExitStack()
        self._container: Any = None
        self._waiting: deque[tuple[Any, Fraction]] = deque()
        codec = None if video.audio is None else video.audio.codec_context
        name = "unknown" if codec is None else codec.name
        self._copies_audio = video.audio is not None and name in _AUDIO_CODECS
        self.without_audio = None if video.audio is None or self._copies_audio else name

    def add_audio(self, packet: Any, origin: Fraction) -> None:
        """Copy a packet of sound.

        Args:
            packet: The packet.
            origin: The time, in seconds of its time stamps, at which the video begins.
        """
        if not self._copies_audio or packet.pts is None or packet.size == 0:
            return
        if self._container is None:
            # All streams are declared at once, when the size of the first frame is known.
            self._waiting.append((packet, origin))
            return
        unit = Fraction(packet.time_base)
        offset = round((origin + self._shift) / unit)
        _, end = self.video.frames.exact
        late = end is not None and (packet.pts * unit - origin) >= end
        if packet.pts < offset or late:
            return
        packet.pts -= offset
        packet.dts = packet.pts  # as in all codecs for sound
        packet.stream = self._audio
        self._write(packet)

    def add_frame(self, picture: Image.Image, time: Fraction) -> None:
        """Encode a frame.

        Args:
            picture: The frame, RGB.
            time: Its time in the video, in seconds.

        Raises:
            UserError: It cannot be written.
        """
        if self._container is None:
            self._open(picture.size)
        context = self._stream.codec_context
        if picture.size != (context.width, context.height):
            self.resized = True
            picture = picture.resize((context.width, context.height))
        frame = self._av.VideoFrame.from_image(picture).reformat(
            format=context.pix_fmt, dst_colorspace="ITU709"
        )
        # Times of damaged videos go back; those in a file may not.
        frame.pts = max(round((time - self._shift) / self._unit), self._last_pts + 1)
        frame.time_base = self._unit
        self._last_pts = frame.pts
        try:
            packets = self._stream.encode(frame)
        except (self._av.FFmpegError, ValueError) as error:
            raise self._failure(error) from error
        self._write(packets)

    def close(self, error: BaseException | None = None) -> None:
        """Finish the file, or remove it.

        Args:
            error: Why it is not complete; None: it is.

        Raises:
            UserError: It cannot be written.
        """
        if error is not None:
            self._close(quietly=True)
            self._files.__exit__(type(error), error, error.__traceback__)
            return
        try:
            with self._files:
                try:
                    if self._container is not None:
                        self._write(self._stream.encode())
                finally:
                    self._close(quietly=False)
        except OSError as failure:
            raise self._failure(failure) from failure

    def _close(self, *, quietly: bool) -> None:
        container, self._container = self._container, None
        if container is not None:
            try:
                container.close()  # It writes the index.
            except (self._av.FFmpegError, OSError, ValueError) as error:
                if not quietly:
                    raise self._failure(error) from error

    def _open(self, size: tuple[int, int]) -> None:
        name = next(filter(self._has_encoder, _ENCODERS), None)
        if name is None:
            raise UserError(f"cannot write {self.path}: this FFmpeg has no encoder for video")
        self.codec = name
        self._unit = self.video.time_base
        if name == "mpeg4":
            ticks = self.video.rate.numerator
            self._unit = Fraction(1, ticks * max(1, _MAX_MPEG4_TICKS // ticks))
        try:
            temporary = self._files.enter_context(replacing(self.path))
            self._container = self._av.open(str(temporary), "w", format="mp4")
            self._stream = self._container.add_stream(name, rate=self.video.rate)
            context = self._stream.codec_context
            context.width, context.height = size
            even = size[0] % 2 == 0 and size[1] % 2 == 0
            context.pix_fmt = "yuv420p" if even or name != "libx264" else "yuv444p"
            context.time_base = self._unit
            context.sample_aspect_ratio = self.video.pixel_aspect
            context.colorspace = context.color_primaries = context.color_trc = _BT709
            context.color_range = _LIMITED_RANGE
            if name == "mpeg4":
                context.qmin, context.qmax = 2, 6  # else its bit rate is that of a thumbnail
            if self._copies_audio:
                self._audio = self._container.add_stream_from_template(self.video.audio)
            self._container.start_encoding()
        except (self._av.FFmpegError, OSError, ValueError) as error:
            raise self._failure(error) from error
        while self._waiting:
            self.add_audio(*self._waiting.popleft())

    def _has_encoder(self, name: str) -> bool:
        try:
            self._av.codec.Codec(name, "w")
        except ValueError:  # as all errors about unknown codecs are
            return False
        return True

    def _write(self, packets: Any) -> None:
        try:
            self._container.mux(packets)
        except (self._av.FFmpegError, OSError, ValueError) as error:
            raise self._failure(error) from error

    def _failure(self, error: Exception) -> UserError:
        reason = getattr(error, "strerror", None) or str(error)
        return UserError(f"cannot write {self.path}: {reason}")
