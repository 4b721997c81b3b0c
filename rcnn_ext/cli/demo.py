"""The command ``rcnn-ext demo``: the whole package on synthetic data, in minutes."""

from __future__ import annotations

import argparse
import shlex
import time
from pathlib import Path

SUMMARY = "make data, train, evaluate, draw and compare, in minutes"

_PICTURES = 12
_FILE_LABELS = {
    "metrics.json": "metrics",
    "detections.json": "detections",
    "precision_recall.png": "curves",
    "confusion.png": "confusion",
}
_MIN_AP50 = 0.9
_RECIPE = "faster_rcnn_synthetic"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``rcnn-ext demo``."""
    parser.description = (
        "Make a data set of textured shapes, train a small Faster R-CNN on it, evaluate it with "
        "the COCO metrics, draw its detections beside the truth, and compare the operators with "
        "torchvision's."
    )
    parser.add_argument(
        "overrides", metavar="key=value", nargs="*", help=f"values to replace in {_RECIPE}"
    )
    parser.add_argument(
        "--out", metavar="OUT", type=Path, required=True, help="folder for everything it writes"
    )
    parser.add_argument(
        "--resume", action="store_true", help="continue the training of an interrupted demo in OUT"
    )
    parser.add_argument("--no-bench", action="store_true", help="skip the comparison of operators")


def run(args: argparse.Namespace) -> int:
    """Run the demo.

    Args:
        args: The options that :func:`add_arguments` declares.

    Returns:
        0, or 1 where AP50 is below the 0.9 that this recipe should reach.

    Raises:
        UserError: A path or an override is wrong.
    """
    from rcnn_ext.config import load_recipe
    from rcnn_ext.data.dataset import DetectionDataset
    from rcnn_ext.data.splits import open_split
    from rcnn_ext.distributed import choose_device
    from rcnn_ext.metrics.evaluate import evaluate
    from rcnn_ext.metrics.report import DRAW_SCORE, draw_pairs, write_evaluation
    from rcnn_ext.metrics.tasks import compute_metrics
    from rcnn_ext.predict.checkpoint import LAST
    from rcnn_ext.predict.load import load_saved
    from rcnn_ext.train.run import Interrupted, train

    started = time.monotonic()
    recipe = load_recipe(_RECIPE, args.overrides)
    out: Path = args.out
    data, folder = out / "data", out / "run"

    _announce(1, f"textured shapes, as a COCO data set in {data}")
    validation = open_split(recipe.data, data, "val")

    _announce(2, f"training {_RECIPE}")
    try:
        result = train(recipe, data, folder, resume=args.resume, overwrite=not args.resume)
    except Interrupted as stop:
        words = ["rcnn-ext", "demo", "--out", str(out), "--resume"]
        words += ["--no-bench"] if args.no_bench else []
        command = shlex.join([*words, *args.overrides])
        raise Interrupted(stop.signal_number, folder / LAST, command) from None
    assert result is not None  # Only other processes than the main one get None.
    print(result.summary())

    _announce(3, f"COCO metrics on the {len(validation)} validation images")
    device = choose_device(recipe.runtime.device)
    saved = load_saved(folder / LAST)
    model = saved.build(device)
    before = time.monotonic()
    images = evaluate(
        model,
        DetectionDataset(validation),
        device=device,
        batch_size=recipe.evaluation.batch_size,
        workers=recipe.data.workers,
    )
    metrics = compute_metrics(model, images, saved.classes)
    written = write_evaluation(
        out,
        validation,
        images,
        metrics,
        saved.classes,
        checkpoint=saved.path,
        step=saved.step,
        seconds=time.monotonic() - before,
    )
    print(metrics.class_table())
    print()
    print(metrics.table())

    _announce(4, "pictures of truth and detections")
    sheet = out / "truth_and_detections.png"
    records = validation.images[:_PICTURES]
    draw_pairs(records, images[:_PICTURES], saved.classes, sheet, DRAW_SCORE, validation.reader)

    table = None
    if not args.no_bench:
        _announce(5, "the operators against torchvision's")
        from rcnn_ext.bench.comparison import run_quick

        table = run_quick(out / "operators")

    minutes, seconds = divmod(round(time.monotonic() - started), 60)
    print(f"\nDone in {minutes} min {seconds} s.")
    places = [
        ("data set", data),
        ("training run", folder),
        ("loss curve", folder / "losses.png"),
        *((_FILE_LABELS.get(path.name, "pictures"), path) for path in written),
        ("truth and detections", sheet),
        ("operators", table),
    ]
    for label, path in places:
        if path is not None and path.exists():
            print(f"  {label:<21} {path}")
    ap50 = metrics.summary["AP50"] or 0.0
    if ap50 < _MIN_AP50:
        print(f"AP50 is {ap50:.3f}, below the {_MIN_AP50} that this recipe should reach")
        return 1
    print(f"AP50 is {ap50:.3f}")
    return 0


def _announce(number: int, text: str) -> None:
    print(f"\n[{number}/5] {text}", flush=True)
