"""``rcnn-ext demo``: the whole package on data that it makes itself, in minutes."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass

_PICTURES = 12
_WHAT = {
    "metrics.json": "metrics",
    "detections.json": "detections",
    "precision_recall.png": "curves",
    "confusion.png": "confusion",
}
_WANTED_AP50 = 0.9
_RECIPE = "faster_rcnn_synthetic"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of ``rcnn-ext demo``."""
    parser.description = (
        "Makes a data set of textured shapes, trains a small Faster R-CNN on it, evaluates it "
        "with the COCO metrics, draws its detections beside the truth, and compares the operators "
        "with torchvision's."
    )
    parser.add_argument(
        "overrides", metavar="key=value", nargs="*", help=f"values to replace in {_RECIPE}"
    )
    parser.add_argument(
        "--out", metavar="OUT", type=Path, required=True, help="folder for everything it writes"
    )
    parser.add_argument("--no-bench", action="store_true", help="leave out the operators")


def run(args: argparse.Namespace) -> int:
    """Runs the demo.

    Args:
        args: What :func:`add_arguments` declared.

    Returns:
        0, or 1 where AP50 stays below what the recipe is known to reach.

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
    from rcnn_ext.predict.load import load_saved
    from rcnn_ext.train.run import train

    started = time.monotonic()
    recipe = load_recipe(_RECIPE, args.overrides)
    out: Path = args.out
    data, folder = out / "data", out / "run"

    _announce(1, f"textured shapes, as a COCO data set in {data}")
    validation = open_split(recipe.data, data, "val")

    _announce(2, f"training {_RECIPE}: {recipe.schedule.steps} steps")
    result = train(recipe, data, folder, overwrite=True)
    assert result is not None  # It is in the first process, and there is no other.
    print(result.summary())

    _announce(3, f"COCO metrics on the {len(validation)} validation images")
    device = choose_device(recipe.runtime.device)
    saved = load_saved(folder / "last.ckpt")
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
    draw_pairs(records, images[:_PICTURES], saved.classes, sheet, DRAW_SCORE)

    table = None
    if not args.no_bench:
        _announce(5, "the operators against torchvision's")
        from rcnn_ext.bench import run_quick

        table = run_quick(out / "operators")

    minutes, seconds = divmod(round(time.monotonic() - started), 60)
    print(f"\nDone in {minutes} min {seconds} s.")
    places = [
        ("data set", data),
        ("training run", folder),
        ("loss curve", folder / "losses.png"),
        *((_WHAT.get(path.name, "pictures"), path) for path in written),
        ("truth and detections", sheet),
        ("operators", table),
    ]
    for what, path in places:
        if path is not None and path.exists():
            print(f"  {what:<21} {path}")
    ap50 = metrics.summary["AP50"] or 0.0
    if ap50 < _WANTED_AP50:
        print(f"AP50 is {ap50:.3f}, below the {_WANTED_AP50} that this recipe should reach")
        return 1
    print(f"AP50 is {ap50:.3f}")
    return 0


def _announce(number: int, text: str) -> None:
    print(f"\n[{number}/5] {text}", flush=True)
