"""Files of an evaluation: metrics, detections, curves and pictures."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rcnn_ext.data.annotations import AnnotationSet, ClassList, ImageRecord
from rcnn_ext.data.images import ImageReader
from rcnn_ext.files import write_json, write_text
from rcnn_ext.metrics.coco import EvaluationResult
from rcnn_ext.metrics.confusion import confusion_matrix, image_quality
from rcnn_ext.metrics.error_pictures import read_picture, write_error_pictures
from rcnn_ext.metrics.errors import ErrorReport
from rcnn_ext.metrics.results import ImageResult, box_ious
from rcnn_ext.viz import (
    contact_sheet,
    draw_boxes,
    plot_confusion,
    plot_precision_recall,
    save_picture,
)

METRICS, DETECTIONS = "metrics.json", "detections.json"

# Minimum score of detections in pictures; metrics count those with lower scores too.
DRAW_SCORE = 0.5
_PICTURES = 8
_IN_GRID = 24


def write_evaluation(
    out: Path,
    annotations: AnnotationSet,
    images: Sequence[ImageResult],
    result: EvaluationResult,
    classes: ClassList,
    *,
    checkpoint: Path,
    step: int,
    seconds: float,
    errors: ErrorReport | None = None,
    grid: bool = False,
    draw_score: float = DRAW_SCORE,
) -> list[Path]:
    """Write the files of an evaluation.

    ``metrics.json`` has the numbers and ``detections.json`` the detections in COCO's result format.
    ``precision_recall.png`` and ``confusion.png`` need matplotlib; ``best.jpg`` and ``worst.jpg``
    show ground truth (left) and detections (right) of the images with the best and worst
    detections.

    Args:
        out: The folder to write to.
        annotations: The images that the model was evaluated on.
        images: Ground truth and detections of these images.
        result: The metrics.
        classes: The classes of the model.
        checkpoint: The file of the model.
        step: Number of training steps of the model.
        seconds: Duration of the evaluation.
        errors: Errors of a detector; their numbers go into ``metrics.json``, and pictures of the
            worst into the folder ``errors``.
        grid: Whether to write ``grid.jpg`` too: ground truth and detections of the first images,
            with any score. It suits localizers, which give one detection per image.
        draw_score: Minimum score of detections in the confusion matrix and in pictures.

    Returns:
        The files, and the folders of ``errors``.
    """
    confusion = confusion_matrix(images, len(classes), draw_score)
    facts: dict[str, Any] = {
        "confusion": {
            "min_score": draw_score,
            "names": ["background", *classes.names],
            "rows_true_columns_found": confusion.tolist(),
        },
        "checkpoint": str(checkpoint),
        "step": step,
        "annotations": str(annotations.source),
        "seconds": round(seconds, 2),
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    if errors is not None:
        facts = {"errors": errors.as_dict(), **facts}
    write_json(out / METRICS, {**result.as_dict(), **facts})
    # An entry per line: with indentation Python's encoder takes ten times as long.
    encode = json.JSONEncoder(allow_nan=False).encode
    entries = ",\n".join(map(encode, _as_coco_results(annotations, images, classes)))
    write_text(out / DETECTIONS, f"[\n{entries}\n]\n" if entries else "[]\n")
    written = [out / METRICS, out / DETECTIONS]
    try:
        if result.precision is not None:
            plot_precision_recall(result.precision, classes.names, out / "precision_recall.png")
            written.append(out / "precision_recall.png")
        plot_confusion(confusion, ["background", *classes.names], out / "confusion.png")
        written.append(out / "confusion.png")
    except ModuleNotFoundError:
        pass  # matplotlib
    if grid:
        sheet = out / "grid.jpg"
        first = range(min(_IN_GRID, len(images)))
        draw_pairs(
            [annotations.images[i] for i in first],
            [images[i] for i in first],
            classes,
            sheet,
            0,
            annotations.reader,
        )
        written.append(sheet)
    best, worst = extremes(images, draw_score)
    for name, chosen in (("best", best), ("worst", worst)):
        if chosen:
            sheet = out / f"{name}.jpg"
            records = [annotations.images[index] for index in chosen]
            shown = [images[index] for index in chosen]
            draw_pairs(records, shown, classes, sheet, draw_score, annotations.reader)
            written.append(sheet)
    if errors is not None:
        written += write_error_pictures(out, annotations, images, errors, classes)
    return written


def extremes(
    images: Sequence[ImageResult], min_score: float, max_images: int = _PICTURES
) -> tuple[list[int], list[int]]:
    """Return the images with the best and with the worst detections; no image is both.

    Args:
        images: Ground truth and detections.
        min_score: Detections below it do not count.
        max_images: Number of images of each kind; half of all images at most.

    Returns:
        Indices into ``images``, best first and worst first.
    """
    qualities = [image_quality(image, min_score) for image in images]
    # An image without objects and detections is neither.
    busy = [
        i
        for i, quality in enumerate(qualities)
        if quality.true_positives + quality.false_positives + quality.false_negatives
    ]
    order = sorted(busy, key=lambda index: qualities[index].rank, reverse=True)
    best = order[: min(max_images, (len(order) + 1) // 2)]
    worst = order[::-1][: min(max_images, len(order) // 2)]
    return best, worst


def draw_pairs(
    records: Sequence[ImageRecord],
    images: Sequence[ImageResult],
    classes: ClassList,
    path: Path,
    min_score: float,
    reader: ImageReader | None = None,
) -> None:
    """Draw ground truth (left) and detections (right) of images on one sheet."""
    pictures, captions = [], []
    for record, image in zip(records, images, strict=True):
        picture = read_picture(record, reader or ImageReader())
        if picture is None:
            continue
        keep = image.scores >= min_score
        found = [image.found_boxes[keep], image.found_labels[keep].tolist()]
        scores = image.scores[keep].tolist()
        pictures.append(draw_boxes(picture, image.boxes, image.labels.tolist(), classes))
        pictures.append(draw_boxes(picture, found[0], found[1], classes, scores))
        quality = image_quality(image, min_score)
        fit = f"F1 {quality.f1:.2f}"
        if len(image.boxes) == len(image.found_boxes) == 1:
            fit = f"IoU {float(box_ious(image.found_boxes, image.boxes)[0, 0]):.2f}"
        captions += [f"{record.path.name}: truth", fit]
    if pictures:
        save_picture(contact_sheet(pictures, captions, columns=6), path)


def _as_coco_results(
    annotations: AnnotationSet, images: Sequence[ImageResult], classes: ClassList
) -> Iterator[dict[str, Any]]:
    """Yield the detections in COCO's result format, those of an image best first."""
    for record, image in zip(annotations.images, images, strict=True):
        order = np.argsort(-image.scores, kind="stable")
        boxes = image.found_boxes[order]
        boxes = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
        for box, label, score in zip(
            boxes.round(2).tolist(),
            image.found_labels[order].tolist(),
            image.scores[order].round(5).tolist(),
            strict=True,
        ):
            yield {
                "image_id": record.file_id,
                "file_name": record.path.name,
                "category_id": classes.category_id(label),
                "category_name": classes.name(label),
                "bbox": box,
                "score": score,
            }
