"""Run a trained detector on videos, and write what it finds, and annotated copies, to a folder."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rcnn_ext.config import Recipe, with_data_overrides
from rcnn_ext.distributed import choose_device
from rcnn_ext.errors import UserError
from rcnn_ext.predict.detect_record import distinct_names
from rcnn_ext.predict.load import load
from rcnn_ext.predict.tiles import Tiling
from rcnn_ext.predict.video import open_video, stream_video
from rcnn_ext.predict.video_frames import FrameRange
from rcnn_ext.predict.video_results import VideoResults
from rcnn_ext.predict.video_sources import VideoSource
from rcnn_ext.progress import tracked
from rcnn_ext.shards import Shard

# Folder, below that of all results, of those in videos.
VIDEOS = "videos"


def detect_in_videos(
    checkpoint: str | os.PathLike[str],
    videos: Sequence[VideoSource],
    out: str | os.PathLike[str],
    *,
    device_name: str = "auto",
    batch_size: int | None = None,
    min_score: float = 0.05,
    draw_score: float | None = 0.5,
    overrides: Sequence[str] = (),
    tiling: Tiling | None = None,
    frames: FrameRange = FrameRange(),  # noqa: B008
    shard: Shard | None = None,
) -> int:
    """Run a model on videos and write ``videos/NAME.jsonl`` and ``videos/NAME.mp4``.

    A line of the JSON is an object for one frame: ``frame`` (from 0), ``time`` (seconds), ``width``
    and ``height`` (pixels), and ``detections``, entries as in a COCO result file. Lines are written
    as frames are done, so that memory does not grow with a video. A video that is interrupted from
    the keyboard keeps what is done, also in its annotated copy.

    Args:
        checkpoint: As for :func:`rcnn_ext.predict.detect.detect_to_folder`.
        videos: The videos.
        out: The folder to write to.
        device_name: ``auto``, ``cpu`` or ``cuda``.
        batch_size: Number of frames or tiles per batch; None takes that of the recipe's evaluation.
        min_score: Minimum score in the JSON.
        draw_score: Minimum score in annotated videos; None writes none.
        overrides: As for :func:`rcnn_ext.predict.detect.detect_to_folder`.
        tiling: The division of frames into tiles, or None.
        frames: The frames to search.
        shard: The part of this process, whole videos; None means all.

    Returns:
        The number of detections in the videos of this process.

    Raises:
        UserError: The checkpoint is wrong; a copy would replace its video; or a video cannot be
            read to its end, and then it is raised after all others are done. It is only printed
            under torchrun, which would end the other processes, whose videos are to be done.
    """
    shard = shard or Shard()
    targets = _targets(videos, Path(out) / VIDEOS)
    own = list(zip(videos, targets, strict=True))[shard.index :: shard.count]
    if not own:
        return 0
    model = load(checkpoint, device=choose_device(device_name, shard.processes))
    model.recipe = with_data_overrides(model.recipe or Recipe(), overrides)
    count = 0
    errors: list[UserError] = []
    for source, target in own:
        results = VideoResults(target, min_score=min_score, draw_score=draw_score)
        try:
            video = open_video(model, source, frames)
            with results.of(video):
                found = stream_video(
                    model,
                    video,
                    min_score=0.0 if model.localizes else min_score,
                    batch_size=batch_size,
                    tiling=tiling,
                    on_audio=results.add_audio,
                )
                for one in tracked(
                    found, f"Detecting in {source.name.name}", video.expected, "frame"
                ):
                    if isinstance(one, UserError):
                        errors.append(one)
                    else:
                        results.add(one)
        except UserError as error:
            errors.append(error)
        finally:
            if results.num_frames:
                print(results.summary(source.shown))
        errors += results.errors
        count += results.num_detections
    if errors:
        for other in errors[:-1]:
            print(f"rcnn-ext: {other}", file=sys.stderr)
        rest = "; the others are done" if len(own) > 1 else ""
        text = f"{errors[-1]}{rest}"
        if shard.count == 1 or "TORCHELASTIC_RUN_ID" not in os.environ:
            raise UserError(text)
        print(f"rcnn-ext: {text}", file=sys.stderr)
    return count


def _targets(videos: Sequence[VideoSource], folder: Path) -> list[Path]:
    """Return where the annotated copies go.

    Raises:
        UserError: One is the video itself, or another one.
    """
    targets = [folder / name for name in distinct_names([str(v.name) for v in videos], ".mp4")]
    taken = {target.resolve() for target in targets}
    for video in videos:
        if video.is_file and Path(video.target).resolve() in taken:
            raise UserError(f"{video.shown} is where results would be written: take another --out")
    return targets
