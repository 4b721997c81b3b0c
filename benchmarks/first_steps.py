"""Train the first 20 steps of each recipe at full size, to see that losses are finite and fall.

Usage: python benchmarks/first_steps.py [--pictures FOLDER] DATA OUT.json [NAME ...]

DATA has ``VOCdevkit``, ``coco``, ``PennFudanPed`` and ``csv``. Recipes run unchanged, with two
exceptions for a machine without network and GPU: the backbone starts from random weights, with all
layers trainable; and training uses only as many images as five steps need, since the loss of a step
depends on its images more than on 20 steps of training. So the first and the last five steps see
equal images, and losses fall if the mean of the last five is below that of the first five. The JSON
file has every loss of every step.
"""

from __future__ import annotations

import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from recording import record

from rcnn_ext.config import load_recipe
from rcnn_ext.train.loggers import LOSSES, read_csv
from rcnn_ext.train.run import train
from rcnn_ext.viz import plot_losses

STEPS = 20
_ENDS = 5

_COMMON = (
    "model.weights_backbone=null",
    f"schedule.steps={STEPS}",
    "refine=null",
    "data.workers=0",
    # Validate on one image at the end, not on a whole split during training.
    "evaluation.val_every=0",
    "evaluation.max_images=1",
    "evaluation.patience=null",
    "runtime.device=cpu",
    # `auto` is mixed precision on a GPU; it halves the time on a CPU too.
    "runtime.precision=bf16",
    "runtime.log_every=1",
    "runtime.loggers=[csv]",
)
DATA = {
    "localizer_csv": "csv",
    "fast_rcnn_pennfudan": "PennFudanPed",
    "fast_rcnn_voc": "VOCdevkit",
    "faster_rcnn_coco": "coco",
    "faster_rcnn_roipool": "coco",
}


def first_steps(name: str, data: Path, pictures: Path | None) -> dict[str, Any]:
    """Train a recipe for 20 steps."""
    started = time.monotonic()
    # Four times all images; where there are fewer, as of the localizer's, as many as there are.
    overrides = [*_COMMON]
    batch = load_recipe(name, overrides).data.batch_size
    # Penn-Fudan: the images of one step only. With box_bg_iou_low the number of samples depends on
    # the image, so that the mean depends on which images share a step.
    images = batch if name == "fast_rcnn_pennfudan" else _ENDS * batch
    overrides.append(f"data.max_train_images={images}")
    recipe = load_recipe(name, overrides)
    with tempfile.TemporaryDirectory() as folder:
        train(recipe, data / DATA[name], Path(folder) / "run")
        rows = read_csv(Path(folder) / "run" / LOSSES)
    seconds = time.monotonic() - started
    if pictures is not None:
        plot_losses(rows, pictures / f"first_steps_{name}.png")
    curves = {key: [float(row[key]) for row in rows] for key in rows[0] if key.startswith("loss")}
    losses = curves["loss"]
    first, last = sum(losses[:_ENDS]) / _ENDS, sum(losses[-_ENDS:]) / _ENDS
    return {
        "passed": len(losses) == STEPS
        and all(math.isfinite(value) for curve in curves.values() for value in curve)
        and last < first,
        "steps": len(losses),
        "mean_of_first_5": round(first, 4),
        "mean_of_last_5": round(last, 4),
        "images_per_step": recipe.data.batch_size,
        "threads": torch.get_num_threads(),
        "seconds": round(seconds, 1),
        "overrides": overrides,
        "losses": curves,
    }


if __name__ == "__main__":
    sys.exit(record(__doc__, "first_steps", DATA, first_steps))
