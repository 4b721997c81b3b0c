"""The files of an evaluation: numbers, detections, curves and pictures."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rcnn_ext.data.annotations import AnnotationSet, ClassList, ImageRecord
from rcnn_ext.data.images import load_image
from rcnn_ext.errors import UserError
from rcnn_ext.files import write_json
from rcnn_ext.metrics.coco import EvaluationResult
from rcnn_ext.metrics.confusion import confusion_matrix, image_quality
from rcnn_ext.metrics.results import ImageResult, box_ious
from rcnn_ext.predict.checkpoint import SavedDetector
from rcnn_ext.viz import (
    contact_sheet,
    draw_boxes,
    plot_confusion,
    plot_precision_recall,
    save_picture,
)

METRICS, DETECTIONS = "metrics.json", "detections.json"

# Detections that are worth a picture; those in numbers go further down.
DRAW_SCORE = 0.5
_PICTURES = 8
_IN_GRID = 24


def write_evaluation(
    saved: SavedDetector,
    annotations: AnnotationSet,
    images: Sequence[ImageResult],
    result: EvaluationResult,
    seconds: float,
    out: Path,
    draw_score: float = DRAW_SCORE,
) -> list[Path]:
    """Writes what an evaluation gave.

    ``metrics.json`` has the numbers and ``detections.json`` the detections as COCO's result format
    has them. ``precision_recall.png`` and ``confusion.png`` need matplotlib; ``best.jpg`` and
    ``worst.jpg`` have the truth (left) and detections (right) of the images that fare best and
    worst. A localizer also has ``grid.jpg``, the same of the first images, whatever the score.

    Args:
        saved: The model.
        annotations: What it was evaluated on.
        images: Truth and detections of its images.
        result: The metrics.
        seconds: How long it took.
        out: The folder to write to.
        draw_score: Least score of detections in the confusion matrix and in pictures.

    Returns:
        The files.
    """
    classes = saved.classes
    confusion = confusion_matrix(images, len(classes), draw_score)
    facts = {
        "confusion": {
            "least_score": draw_score,
            "names": ["background", *classes.names],
            "rows_true_columns_found": confusion.tolist(),
        },
        "checkpoint": str(saved.path),
        "step": saved.step,
        "annotations": str(annotations.source),
        "seconds": round(seconds, 2),
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    write_json(out / METRICS, {**result.as_dict(), **facts})
    write_json(out / DETECTIONS, _as_coco_results(annotations, images, classes))
    written = [out / METRICS, out / DETECTIONS]
    try:
        if result.precision is not None:
            plot_precision_recall(result.precision, classes.names, out / "precision_recall.png")
            written.append(out / "precision_recall.png")
        plot_confusion(confusion, ["background", *classes.names], out / "confusion.png")
        written.append(out / "confusion.png")
    except ModuleNotFoundError:
        pass  # matplotlib
    if saved.recipe.model.detector == "localizer":
        sheet = out / "grid.jpg"
        first = range(min(_IN_GRID, len(images)))
        draw_pairs(
            [annotations.images[i] for i in first], [images[i] for i in first], classes, sheet, 0
        )
        written.append(sheet)
    best, worst = extremes(images, draw_score)
    for name, chosen in (("best", best), ("worst", worst)):
        if chosen:
            sheet = out / f"{name}.jpg"
            records = [annotations.images[index] for index in chosen]
            draw_pairs(records, [images[index] for index in chosen], classes, sheet, draw_score)
            written.append(sheet)
    return written


def extremes(
    images: Sequence[ImageResult], least_score: float, most: int = _PICTURES
) -> tuple[list[int], list[int]]:
    """The images that fare best and worst, best and worst first; no image is both.

    Args:
        images: Truth and detections.
        least_score: Detections below it do not count.
        most: Number of images of each kind; half of all images at most.

    Returns:
        Indices into ``images``.
    """
    qualities = [image_quality(image, least_score) for image in images]
    # An image without anything is neither.
    busy = [
        i for i, quality in enumerate(qualities) if quality.right + quality.wrong + quality.missed
    ]
    order = sorted(busy, key=lambda index: qualities[index].rank, reverse=True)
    best = order[: min(most, (len(order) + 1) // 2)]
    worst = order[::-1][: min(most, len(order) // 2)]
    return best, worst


def draw_pairs(
    records: Sequence[ImageRecord],
    images: Sequence[ImageResult],
    classes: ClassList,
    path: Path,
    least_score: float,
) -> None:
    """Draws truth (left) and detections (right) of images on one sheet."""
    pictures, captions = [], []
    for record, image in zip(records, images, strict=True):
        try:
            picture = load_image(record.path, (record.width, record.height))
        except UserError:
            continue  # It was readable a moment ago; a picture less is no reason to fail.
        keep = image.scores >= least_score
        found = [image.found_boxes[keep], image.found_labels[keep].tolist()]
        scores = image.scores[keep].tolist()
        pictures.append(draw_boxes(picture, image.boxes, image.labels.tolist(), classes))
        pictures.append(draw_boxes(picture, found[0], found[1], classes, scores))
        quality = image_quality(image, least_score)
        fit = f"F1 {quality.f1:.2f}"
        if len(image.boxes) == len(image.found_boxes) == 1:
            fit = f"IoU {float(box_ious(image.found_boxes, image.boxes)[0, 0]):.2f}"
        captions += [f"{record.path.name}: truth", fit]
    if pictures:
        save_picture(contact_sheet(pictures, captions, columns=6), path)


def _as_coco_results(
    annotations: AnnotationSet, images: Sequence[ImageResult], classes: ClassList
) -> list[dict[str, Any]]:
    return [
        {
            "image_id": record.image_id,
            "file_name": record.path.name,
            "category_id": classes.category_id(label),
            "category_name": classes.name(label),
            "bbox": [round(value, 2) for value in (x1, y1, x2 - x1, y2 - y1)],
            "score": round(score, 5),
        }
        for record, image in zip(annotations.images, images, strict=True)
        for (x1, y1, x2, y2), label, score in _found(image)
    ]


def _found(image: ImageResult) -> Any:
    order = np.argsort(-image.scores, kind="stable")
    return zip(
        image.found_boxes[order].tolist(),
        image.found_labels[order].tolist(),
        image.scores[order].tolist(),
        strict=True,
    )
