"""The command ``rcnn-ext eval``."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from rcnn_ext.cli.arguments import add_checkpoint, add_inference

SUMMARY = "compute the metrics of a trained model"
EPILOG = """\
examples:
  rcnn-ext eval runs/first --data DATA
  rcnn-ext eval runs/first/last.ckpt --data DATA --annotations other.json --images pictures
  rcnn-ext eval runs/first --data DATA data.format=voc data.on_error=skip

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
        "--data", metavar="DATA", type=Path, required=True, help="folder of the data set"
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
        help="folder for metrics, detections, curves and pictures (default: the run's)",
    )
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
    from rcnn_ext.metrics.evaluate import evaluate
    from rcnn_ext.metrics.report import write_evaluation
    from rcnn_ext.metrics.tasks import compute_metrics
    from rcnn_ext.predict.load import load_saved
    from rcnn_ext.selective_search.from_config import open_proposals

    processes = Processes.from_environment()
    device = choose_device(options.device, processes)
    saved = load_saved(options.checkpoint)
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
        images = evaluate(
            model,
            DetectionDataset(annotations, proposals),
            device=device,
            batch_size=options.batch_size or saved.recipe.evaluation.batch_size,
            workers=config.workers,
            processes=processes,
        )
    if not processes.is_main_process:
        return 0
    result = compute_metrics(model, images, saved.classes)
    seconds = time.monotonic() - started
    print(result.class_table())
    print()
    print(result.table())
    written = write_evaluation(
        out,
        annotations,
        images,
        result,
        saved.classes,
        checkpoint=saved.path,
        step=saved.step,
        seconds=seconds,
        grid=saved.recipe.model.detector == "localizer",
    )
    for path in written:
        print(f"wrote {path}")
    return 0
