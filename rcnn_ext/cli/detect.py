"""The command ``rcnn-ext detect``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from rcnn_ext.cli.arguments import (
    add_checkpoint,
    add_inference,
    add_shard,
    fraction,
    positive_int,
    seconds,
)
from rcnn_ext.errors import UserError

SUMMARY = "find objects in pictures"
EPILOG = """\
examples:
  rcnn-ext detect runs/first photo.jpg --out found
  rcnn-ext detect runs/first folder/ --out found --draw-score 0.3
  rcnn-ext detect runs/first 'film/frame_*.png' --out found
  rcnn-ext detect runs/first aerial.tif --tile 640 --overlap 0.2 --out found
  rcnn-ext detect runs/first street.mp4 --every 5 --start 60 --out found
  rcnn-ext detect hub:owner/name photo.jpg --out found
  rcnn-ext detect fasterrcnn_resnet50_fpn_v2 photo.jpg --out found
  rcnn-ext detect runs/masks csv/test.csv --out found
  rcnn-ext detect runs/masks list.csv 'data.csv.columns={image: photo}' --out found
  torchrun --nproc-per-node 4 -m rcnn_ext detect runs/first folder/ --out found
  rcnn-ext detect runs/first folder/ --out found --shard 2/4

Each picture is a line in OUT/detect-shards when it is done. Stop at any time, and run the command
again to continue. Processes of torchrun, of srun or of a Slurm array, and any with RANK and
WORLD_SIZE, divide the pictures among themselves; the last one to finish writes the results of all.

A CSV file lists pictures, relative to its folder or to images/ beside it. For a localizer, --out
also gets submission.csv, with one row per picture in that order, in pixels of the file on disk.
--out gets detections.json (COCO result format), pictures/ with boxes drawn, and overview.jpg;
errors.jsonl names what could not be done. Results of detect among the pictures are left out.
The id of an image is its file name if all names are numbers, as COCO's are; otherwise its position
in the list, counted from 1. Every entry also has file_name.

A video NAME.mp4 gives videos/NAME.jsonl in --out, one line per frame with its number, its time in
seconds and its detections, and videos/NAME.mp4, a copy with boxes drawn. Videos may be files, in
folders with or without pictures, URLs, cameras such as /dev/video0, and - for standard input. Of a
damaged video, what can be read is done; the error says where it ended. A video that is done is left
out when the command is run again. Needs the extra video.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``rcnn-ext detect``."""
    add_checkpoint(parser)
    parser.add_argument(
        "images",
        metavar="IMAGE",
        nargs="+",
        help="pictures, videos, folders of them, patterns in quotes, CSV lists, URLs of videos, or "
        "- for a video from standard input; also data.key=value, where these are read otherwise "
        "than in training",
    )
    # Words that argparse finds behind the options come here.
    parser.set_defaults(overrides=[])
    parser.add_argument(
        "--out", metavar="OUT", type=Path, required=True, help="folder for JSON and pictures"
    )
    parser.add_argument(
        "--min-score", type=fraction, default=0.05, help="minimum score in JSON (default: 0.05)"
    )
    parser.add_argument(
        "--draw-score", type=fraction, default=0.5, help="minimum score drawn (default: 0.5)"
    )
    parser.add_argument(
        "--max-pixels",
        metavar="N",
        type=int,
        help="maximum number of pixels of a picture that is read (default: the recipe's)",
    )
    parser.add_argument(
        "--tile",
        metavar="N",
        type=int,
        help="search larger pictures in tiles of NxN pixels and as a whole, and merge the results; "
        "8-bit TIFF files may have more than --max-pixels then, and are searched by tiles only",
    )
    parser.add_argument(
        "--overlap",
        type=fraction,
        default=0.2,
        help="fraction of a tile that its neighbor has too (default: 0.2)",
    )
    parser.add_argument(
        "--every",
        metavar="N",
        type=positive_int,
        default=1,
        help="search each n-th frame of videos",
    )
    parser.add_argument(
        "--start", metavar="TIME", type=seconds, help="begin videos at this time: 90, 1:30, 0:01:30"
    )
    parser.add_argument("--end", metavar="TIME", type=seconds, help="end videos at this time")
    parser.add_argument("--no-pictures", action="store_true", help="write JSON only")
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="do again what OUT has results of, also with other settings",
    )
    add_shard(parser)
    add_inference(parser)


def run(options: argparse.Namespace) -> int:
    """Detect objects and write them.

    Args:
        options: The options that :func:`add_arguments` declares.

    Returns:
        0.

    Raises:
        UserError: The checkpoint or an image is wrong.
    """
    from rcnn_ext.predict.detect import detect_to_folder
    from rcnn_ext.predict.detect_run import loaded
    from rcnn_ext.predict.detect_video import detect_in_videos
    from rcnn_ext.predict.tiles import Tiling
    from rcnn_ext.predict.video_frames import FrameRange
    from rcnn_ext.predict.video_sources import split_sources
    from rcnn_ext.shards import Shard

    words = [*options.images, *options.overrides]
    overrides = [word for word in words if _is_override(word)]
    sources = [word for word in words if word not in overrides]
    if options.max_pixels is not None:
        overrides.append(f"data.max_pixels={options.max_pixels}")
    frames = FrameRange(options.every, options.start, options.end)
    pictures, videos = split_sources(sources)
    settings: dict[str, Any] = {
        "overrides": overrides,
        "device_name": options.device,
        "batch_size": options.batch_size,
        "tiling": None if options.tile is None else Tiling.of(options.tile, options.overlap),
        "min_score": options.min_score,
        "draw_score": None if options.no_pictures else options.draw_score,
        "shard": Shard.of(options.shard),
        "overwrite": options.overwrite,
    }
    model = options.checkpoint
    if options.trust or (pictures and videos):
        # Once for both.
        model = loaded(model, options.device, settings["shard"], trust=options.trust)
    failed: UserError | None = None
    if pictures:
        try:
            detect_to_folder(
                model,
                pictures,
                options.out,
                **settings,
            )
        except UserError as error:
            if not videos:
                raise
            failed = error
    if videos:
        try:
            detect_in_videos(model, videos, options.out, frames=frames, **settings)
        except UserError as error:
            if failed is not None:
                print(f"rcnn-ext: {failed}", file=sys.stderr)
            failed = error
    if failed is not None:
        raise failed
    return 0


def _is_override(word: str) -> bool:
    return (
        "=" in word and word.startswith(("data.", "selective_search.")) and not Path(word).exists()
    )
