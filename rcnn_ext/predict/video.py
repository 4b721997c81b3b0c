"""Detections in videos, frame by frame. Needs the extra ``video``."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from rcnn_ext.errors import UserError
from rcnn_ext.predict.detections import Detections
from rcnn_ext.predict.tiles import Tiling
from rcnn_ext.predict.video_frames import FrameRange, Video, VideoFrame
from rcnn_ext.predict.video_sources import VideoSource

if TYPE_CHECKING:
    from rcnn_ext.predict.predictor import Predictor


@dataclass(frozen=True, eq=False, repr=False)
class FrameDetections(Detections):
    """Detections in one frame of a video.

    Attributes:
        frame: Position of the frame in the video, from 0.
        time: Its time in seconds, from the beginning of the video.
    """

    frame: int = 0
    time: float = 0.0


def open_video(
    model: Predictor, source: VideoSource | str | os.PathLike[str], frames: FrameRange
) -> Video:
    """Open a video for a model, whose recipe limits the size of frames.

    Args:
        model: The model.
        source: The video: a path, a URL, a device, or ``-`` for standard input.
        frames: The frames to read.

    Raises:
        UserError: It cannot be opened, or has no video that can be decoded.
    """
    source = source if isinstance(source, VideoSource) else VideoSource.of(source)
    return Video(source, frames, model.reader.max_pixels)


def stream_video(
    model: Predictor,
    video: Video,
    *,
    min_score: float | None = None,
    batch_size: int | None = None,
    tiling: Tiling | None = None,
    keep_frames: bool = True,
    threads: int | None = None,
    on_audio: Callable[[Any, Fraction], None] | None = None,
) -> Iterator[FrameDetections | UserError]:
    """Return the detections in each frame of a video, and then the error, where there is one.

    Args:
        model: The model.
        video: The video, which is closed at the end.
        min_score: As for :meth:`rcnn_ext.predict.predictor.Predictor.predict`.
        batch_size: Number of frames or tiles per batch.
        tiling: The division of frames into tiles, or None.
        keep_frames: Whether results hold the pixels of their frames, for drawing.
        threads: Number of threads that convert frames.
        on_audio: As for :meth:`rcnn_ext.predict.video_frames.Video.read`.

    Raises:
        UserError: The model is in training mode, or an option does not fit it.
    """
    results = model.stream(
        video.read(on_audio),
        min_score=min_score,
        batch_size=batch_size,
        tiling=tiling,
        threads=threads,
    )
    return _in_frames(results, video, keep_frames)


def _in_frames(
    results: Iterator[Detections | UserError], video: Video, keep_frames: bool
) -> Iterator[FrameDetections | UserError]:
    try:
        for one in results:
            if isinstance(one, UserError):
                yield one
                return
            frame = one.source
            assert isinstance(frame, VideoFrame)
            values = {field.name: getattr(one, field.name) for field in dataclasses.fields(one)}
            values["source"] = frame if keep_frames else None
            yield FrameDetections(**values, frame=frame.index, time=float(frame.time))
    finally:
        video.close()
