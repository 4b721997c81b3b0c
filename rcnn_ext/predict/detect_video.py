"""Run a trained detector on videos, and write what it finds, and annotated copies, to a folder."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rcnn_ext.config import Recipe, with_data_overrides
from rcnn_ext.errors import UserError
from rcnn_ext.predict.detect_record import distinct_names
from rcnn_ext.predict.detect_run import loaded, weights_hash
from rcnn_ext.predict.predictor import Predictor
from rcnn_ext.predict.tiles import Tiling
from rcnn_ext.predict.video import open_video, stream_video
from rcnn_ext.predict.video_frames import FrameRange
from rcnn_ext.predict.video_results import VideoResults
from rcnn_ext.predict.video_run import VIDEOS, VideoFolder, VideoTask, latest_records
from rcnn_ext.predict.video_sources import VideoSource
from rcnn_ext.progress import tracked
from rcnn_ext.shards import Shard, ShardState


def detect_in_videos(
    checkpoint: str | os.PathLike[str] | Predictor,
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
    overwrite: bool = False,
) -> int:
    """Run a model on videos and write ``videos/NAME.jsonl`` and ``videos/NAME.mp4``.

    A line of the JSON is an object for one frame: ``frame`` (from 0), ``time`` (seconds), ``width``
    and ``height`` (pixels), and ``detections``, entries as in a COCO result file. Lines are written
    as frames are done, so that memory does not grow with a video. A video that is interrupted from
    the keyboard keeps what is done, also in its annotated copy. Files that are done, by
    ``detect-shards/videos``, are left out when the run is started again; one that is not is done
    from its beginning.

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
        overwrite: Whether to do again what is done, with these or other settings.

    Returns:
        The number of detections in the videos of this process.

    Raises:
        UserError: The checkpoint is wrong; a copy would replace its video; ``out`` has results
            with other settings; or a video cannot be read to its end, and then it is raised after
            all others are done. Under torchrun, which would end the other processes, whose videos
            are to be done, it is only printed, and raised by the last process to finish.
    """
    shard = shard or Shard()
    tasks = _tasks(videos, Path(out) / VIDEOS)
    own = tasks[shard.index :: shard.count]
    model = loaded(checkpoint, device_name, shard)
    model.recipe = with_data_overrides(model.recipe or Recipe(), overrides)
    folder = VideoFolder(
        Path(out),
        {
            "weights": weights_hash(model),
            "min_score": min_score,
            "draw_score": draw_score,
            "tile": None if tiling is None else dataclasses.asdict(tiling),
            "frames": dataclasses.asdict(frames),
            "overrides": sorted(overrides),
        },
        shard,
        overwrite,
    )
    count = 0
    errors: list[str] = []
    with folder.open(tasks) as run:
        done = latest_records(run)
        left = [task for task in own if not task.is_done(done.get(task.path, {}))]
        if len(left) < len(own):
            print(f"{len(own) - len(left)} of {len(own)} videos are done already")
        for task in own:
            if task not in left:
                count += done[task.path]["detections"]
                continue
            results = VideoResults(task.target, min_score=min_score, draw_score=draw_score)
            problems = _detect(model, task.source, results, frames, batch_size, tiling)
            count += results.num_detections
            errors += problems
            run.write(task.record(results.num_detections, results.written, "; ".join(problems)))
        waiting = run.finish()
        if not waiting:
            records = latest_records(run)
            found = [records.get(task.path, {}).get("error", "") for task in tasks]
            errors = [error for error in found if error]
    _end(errors, waiting, shard, len(tasks))
    return count


def _detect(
    model: Predictor,
    source: VideoSource,
    results: VideoResults,
    frames: FrameRange,
    batch_size: int | None,
    tiling: Tiling | None,
) -> list[str]:
    """Write the results for one video, and return what went wrong."""
    errors: list[UserError] = []
    try:
        video = open_video(model, source, frames)
        with results.of(video):
            found = stream_video(
                model,
                video,
                min_score=0.0 if model.localizes else results.min_score,
                batch_size=batch_size,
                tiling=tiling,
                on_audio=results.add_audio,
            )
            for one in tracked(found, f"Detecting in {source.name.name}", video.expected, "frame"):
                if isinstance(one, UserError):
                    errors.append(one)
                else:
                    results.add(one)
    except UserError as error:
        errors.append(error)
    finally:
        if results.num_frames:
            print(results.summary(source.shown))
    return [str(error) for error in (*errors, *results.errors)]


def _end(errors: Sequence[str], waiting: Sequence[ShardState], shard: Shard, count: int) -> None:
    """Say how a shard ended, and with the last one how all did.

    Raises:
        UserError: There are errors; while other processes of torchrun, which would end them, are at
            work, they are only printed.
    """
    for state in waiting:
        print(state)
    if not errors:
        return
    for error in errors[:-1]:
        print(f"rcnn-ext: {error}", file=sys.stderr)
    text = f"{errors[-1]}{'; the others are done' if count > 1 else ''}"
    if not waiting or "TORCHELASTIC_RUN_ID" not in os.environ:
        raise UserError(text)
    print(f"rcnn-ext: {text}", file=sys.stderr)


def _tasks(videos: Sequence[VideoSource], folder: Path) -> list[VideoTask]:
    """Return the videos with the places of their annotated copies.

    Raises:
        UserError: One is the video itself, or another one.
    """
    targets = [folder / name for name in distinct_names([str(v.name) for v in videos], ".mp4")]
    taken = {target.resolve() for target in targets}
    for video in videos:
        if video.is_file and Path(video.target).resolve() in taken:
            raise UserError(f"{video.shown} is where results would be written: take another --out")
    return [VideoTask(video, target) for video, target in zip(videos, targets, strict=True)]
