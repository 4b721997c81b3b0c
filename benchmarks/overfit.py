"""Overfit each recipe's model to eight training images from scratch, to see that it learns.

Usage: python benchmarks/overfit.py [--pictures FOLDER] DATA OUT.json [NAME ...]

DATA has ``VOCdevkit``, ``coco``, ``PennFudanPed`` and ``csv``. A recipe is trained with a ResNet-18
(the localizer with its own CNN) from random weights, with all layers trainable, on small images
without augmentation, and evaluated on its training images. The JSON file has the metrics and the
overrides of each recipe; entries of other recipes stay.
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from recording import record

from rcnn_ext.config import load_recipe
from rcnn_ext.data.dataset import DetectionDataset
from rcnn_ext.data.splits import open_split
from rcnn_ext.metrics.evaluate import evaluate
from rcnn_ext.metrics.report import DRAW_SCORE, draw_pairs
from rcnn_ext.metrics.tasks import compute_metrics
from rcnn_ext.predict.load import load_saved
from rcnn_ext.selective_search.from_config import open_proposals
from rcnn_ext.train.run import train

# Images in a picture, each with its ground truth and its detections.
_DRAWN = 6

_COMMON = (
    "model.weights_backbone=null",
    "data.workers=0",
    "data.max_train_images=8",
    "data.val_fraction=0",
    "data.augment.horizontal_flip=0",
    "data.augment.color=0",
    "optimizer.name=adamw",
    "optimizer.weight_decay=0",
    "optimizer.lr_overrides={}",
    "schedule.decay=cosine",
    "schedule.warmup_steps=20",
    "evaluation.val_every=0",
    "evaluation.max_images=1",
    "evaluation.patience=null",
    "runtime.loggers=[csv]",
    "runtime.device=cpu",
    "runtime.precision=32",
)
_DETECTOR = (
    "model.backbone=resnet18",
    "model.min_size=192",
    "model.max_size=256",
    "model.box_detections_per_img=50",
    "data.batch_size=4",
    "optimizer.lr=0.0005",
    "schedule.steps=250",
)
_RPN = (
    "model.rpn_pre_nms_top_n_train=400",
    "model.rpn_pre_nms_top_n_test=400",
    "model.rpn_post_nms_top_n_train=200",
    "model.rpn_post_nms_top_n_test=200",
    "model.box_batch_size_per_image=64",
)
# Fast R-CNN finds no object that no proposal overlaps. In these images the search overlaps a few
# objects with an IoU of 0.4 to 0.5 only; such proposals count as positive, and are regressed.
_SEARCH = (
    "model.box_fg_iou_thresh=0.4",
    "model.box_bg_iou_thresh=0.4",
    "selective_search.min_side=8",
)


@dataclass(frozen=True)
class Case:
    """A recipe's data folder, the overrides that make it small, and the metrics it must reach."""

    data: str
    overrides: tuple[str, ...]
    goals: dict[str, float]


CASES = {
    "localizer_csv": Case(
        "csv",
        (
            "model.backbone=cnn",
            "model.fixed_size=[96, 96]",
            "model.dropout=0",
            "data.max_train_images=null",
            "data.batch_size=30",
            "optimizer.lr=0.002",
            "schedule.steps=400",
        ),
        {"accuracy": 0.95, "IoU": 0.7},
    ),
    "fast_rcnn_voc": Case(
        "VOCdevkit",
        (
            *_DETECTOR,
            *_SEARCH,
            "refine=null",
            "schedule.steps=160",
            # Otherwise layer4 on each RoI would dominate the time.
            "model.pool_size=4",
            "model.box_batch_size_per_image=32",
            "selective_search.mode=quality",
            "selective_search.max_boxes=2000",
        ),
        # AP at IoU 0.5 as VOC defines it: COCO's counts difficult objects, which training leaves
        # out, as missed, and could not be more than 0.89 here.
        {"VOC_AP": 0.9},
    ),
    "fast_rcnn_pennfudan": Case(
        "PennFudanPed",
        (
            *_DETECTOR,
            *_SEARCH,
            "model.dropout=0",
            "selective_search.max_boxes=2000",
            "selective_search.max_aspect_ratio=null",
        ),
        {"AP50": 0.9},
    ),
    "faster_rcnn_coco": Case(
        "coco",
        (
            *_DETECTOR,
            *_RPN,
            # Without P2, which would cost as much as all the rest.
            "model.returned_layers=[2, 3, 4]",
            "model.fixed_size=[192, 192]",
            "model.anchor_sizes=[16, 32, 64, 128]",
        ),
        {"AP50": 0.9},
    ),
    "faster_rcnn_roipool": Case(
        "coco",
        (
            *_DETECTOR,
            *_RPN,
            "model.anchor_sizes=[16, 32, 64, 128, 256]",
            "schedule.steps=200",
        ),
        {"AP50": 0.9},
    ),
}


def overfit(name: str, data: Path, pictures: Path | None) -> dict[str, Any]:
    """Train a recipe and evaluate it on its training images."""
    case = CASES[name]
    overrides = [*_COMMON, *case.overrides]
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "run"
        started = time.monotonic()
        training = train(load_recipe(name, overrides), data / case.data, folder)
        assert training is not None
        seconds = time.monotonic() - started
        saved = load_saved(folder / "last.ckpt")
        annotations = open_split(saved.recipe.data, data / case.data, "train", saved.classes.names)
        model = saved.build(torch.device("cpu"))
        images = evaluate(
            model,
            DetectionDataset(annotations, open_proposals(saved.recipe, folder)),
            device=torch.device("cpu"),
            batch_size=4,
            workers=0,
        )
    result = compute_metrics(model, images, saved.classes)
    if pictures is not None:
        sheet = pictures / f"overfit_{name}.jpg"
        first = slice(_DRAWN)
        draw_pairs(annotations.images[first], images[first], saved.classes, sheet, DRAW_SCORE)
    reached = {key: round(float(result.summary[key] or 0), 4) for key in case.goals}
    return {
        "reached": reached,
        "goals": case.goals,
        "metrics": {key: _rounded(value) for key, value in result.summary.items()},
        "passed": all(reached[key] >= goal for key, goal in case.goals.items()),
        "images": result.images,
        "objects": result.objects,
        "classes": len(saved.classes),
        "steps": training.steps,
        "first_loss": round(training.first_loss, 4),
        "last_loss": round(training.last_loss, 4),
        "seconds": round(seconds, 1),
        "overrides": overrides,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


if __name__ == "__main__":
    sys.exit(record(__doc__, "overfit", CASES, overfit))
