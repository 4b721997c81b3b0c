"""The command ``rcnn-ext eval``."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rcnn_ext.cli.arguments import add_checkpoint, add_inference, add_shard, positive_int

if TYPE_CHECKING:
    from torch import nn

SUMMARY = "compute the metrics of a trained model"
EPILOG = """\
examples:
  rcnn-ext eval runs/first --data DATA
  rcnn-ext eval runs/first/last.ckpt --data DATA --annotations other.json --images pictures
  rcnn-ext eval runs/first --data DATA data.format=voc data.on_error=skip
  rcnn-ext eval runs/first --data DATA --max-detections 400
  torchrun --nproc-per-node 4 -m rcnn_ext eval runs/first --data DATA

Processes of torchrun, of srun or of a Slurm array divide the data; the last one to finish computes
the metrics, which are those of one process. An evaluation that is stopped goes on where it was.

The data are read as in training, unless data.key=value says otherwise.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``rcnn-ext eval``."""
    add_checkpoint(parser)
    parser.add_argument(
        "overrides",
        metavar="key=value",
        nargs="*",
        # Without it, argparse lists them among the arguments that are required.
        default=[],
        help="data.* and selective_search.* values to replace",
    )
    parser.add_argument(
        "--data",
        metavar="DATA",
        type=Path,
        required=True,
        help="folder of the data set, or an archive of it",
    )
    parser.add_argument(
        "--split",
        choices=("train", "val", "test"),
        default="val",
        help="split to evaluate (default: val)",
    )
    parser.add_argument(
        "--annotations", metavar="FILE", help="annotation file, if not found in DATA"
    )
    parser.add_argument("--images", metavar="FOLDER", help="folder of the images, if not found")
    parser.add_argument(
        "--out",
        metavar="OUT",
        type=Path,
        help="folder for metrics, detections, curves, pictures and errors (default: the run's)",
    )
    parser.add_argument(
        "--max-detections",
        metavar="N",
        type=positive_int,
        help="detections of a class in an image that COCO's metrics count, for images with more "
        "than 100 objects (default: the recipe's evaluation.max_detections, else 100)",
    )
    add_shard(parser)
    add_inference(parser)


def run(options: argparse.Namespace) -> int:
    """Evaluate a trained model, print its metrics and write them.

    Args:
        options: The options that :func:`add_arguments` declares.

    Returns:
        0.

    Raises:
        UserError: The checkpoint or the data is wrong.
    """
    from rcnn_ext.config import with_data_overrides
    from rcnn_ext.data.dataset import DetectionDataset
    from rcnn_ext.data.splits import STREAMED, open_evaluation
    from rcnn_ext.distributed import Processes, choose_device
    from rcnn_ext.errors import UserError
    from rcnn_ext.files import file_hash
    from rcnn_ext.hub import is_hub_id
    from rcnn_ext.metrics.coco import DEFAULT_MAX_DETECTIONS, crowded_images
    from rcnn_ext.metrics.errors import detection_errors
    from rcnn_ext.metrics.report import DRAW_SCORE, write_evaluation
    from rcnn_ext.metrics.results import require_finite
    from rcnn_ext.metrics.sharded import ShardedEvaluation
    from rcnn_ext.metrics.tasks import compute_metrics, is_localizer
    from rcnn_ext.predict.load import load_saved
    from rcnn_ext.selective_search.from_config import open_proposals
    from rcnn_ext.shards import Shard

    processes = Processes.from_environment()
    shard = Shard.of(options.shard)
    device = choose_device(options.device, shard.processes)
    if is_hub_id(options.checkpoint) and options.out is None:
        raise UserError(f"{options.checkpoint} has no folder to write to: add --out FOLDER")
    saved = load_saved(options.checkpoint, trust=options.trust)
    recipe = with_data_overrides(saved.recipe, options.overrides)
    config = recipe.data
    out = options.out or saved.path.parent
    for part in ("annotations", "images"):
        given = getattr(options, part)
        if given is not None:
            # Relative to the current folder, as on any command line, not to DATA.
            setattr(config, f"{options.split}_{part}", str(Path(given).absolute()))
    with processes.group(device):
        with processes.main_process_first():
            annotations = open_evaluation(
                config, options.data, options.split, saved.classes.names, out / STREAMED
            )
        processes.print_once(f"{saved.path}: step {saved.step}")
        processes.print_once(f"{annotations.source}: {annotations.summary()}")
        started = time.monotonic()
        proposals = open_proposals(recipe, saved.path.parent)
        if proposals is not None:
            proposals.prepare([annotations], processes)
        model = saved.build(device)
        if options.max_detections and is_localizer(model):
            raise UserError(
                f"--max-detections is for detectors, and {saved.path} is a localizer, which finds "
                "one object per image; leave the option out"
            )
        max_detections = options.max_detections or saved.recipe.evaluation.max_detections
        if max_detections:
            processes.print_once(_limit_note(model, max_detections))
        settings = {
            "weights": file_hash(saved.path),
            "split": options.split,
            "max_detections": max_detections,
            "overrides": sorted(options.overrides),
        }
        dataset = DetectionDataset(annotations, proposals)
        evaluation = ShardedEvaluation(dataset, out, shard, settings)
        images = evaluation.run(
            model,
            device=device,
            batch_size=options.batch_size or saved.recipe.evaluation.batch_size,
            workers=config.workers,
            max_detections=max_detections,
        )
    if images is None:
        return 0
    require_finite(annotations.images.paths(), images)
    result = compute_metrics(model, images, saved.classes, max_detections)
    seconds = time.monotonic() - started
    print(result.class_table())
    print()
    print(result.table())
    counted = max_detections or DEFAULT_MAX_DETECTIONS
    errors = None
    if not is_localizer(model):
        errors = detection_errors(
            images, saved.classes, min_score=DRAW_SCORE, max_detections=counted
        )
        print()
        print(errors.table())
    crowded = 0 if errors is None else crowded_images(images, counted)
    if crowded:
        print(
            f"note: {crowded} of {len(images)} images have more than {counted} objects of a class, "
            f"and COCO's metrics count {counted} detections of it; --max-detections counts more"
        )
    written = write_evaluation(
        out,
        annotations,
        images,
        result,
        saved.classes,
        checkpoint=saved.path,
        step=saved.step,
        seconds=seconds,
        errors=errors,
        grid=saved.recipe.model.detector == "localizer",
    )
    evaluation.remove()
    for path in written:
        print(f"wrote {path}")
    return 0


def _limit_note(model: nn.Module, max_detections: int) -> str:
    """Say how many detections per image are counted, and how many the model gives."""
    from rcnn_ext.metrics.evaluate import detections_limit
    from rcnn_ext.metrics.tasks import is_localizer

    counted = f"counting up to {max_detections} detections of a class in an image"
    limit = detections_limit(model)
    if limit is None:
        if is_localizer(model):
            return "a localizer finds one object per image: evaluation.max_detections has no use"
        return f"{counted}; this exported program gives as many as when it was exported"
    if limit < max_detections:
        return f"{counted}; the model's limit of {limit} per image is raised for this evaluation"
    return f"{counted}; the model gives up to {limit} per image"
