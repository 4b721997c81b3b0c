"""Pictures of the worst errors of each category."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from rcnn_ext.data.annotations import AnnotationSet, ClassList, ImageRecord
from rcnn_ext.data.images import ImageReader
from rcnn_ext.errors import UserError
from rcnn_ext.metrics.errors import DetectionError, ErrorReport
from rcnn_ext.metrics.results import ImageResult
from rcnn_ext.viz import contact_sheet, draw_boxes, save_picture

ERRORS = "errors"

_CELL = 480
_MIN_VIEW = 96  # pixels; a smaller part of a picture shows too little around an error
_MAX_STEM = 80  # characters; file systems have a limit


def write_error_pictures(
    out: Path,
    annotations: AnnotationSet,
    images: Sequence[ImageResult],
    errors: ErrorReport,
    classes: ClassList,
) -> list[Path]:
    """Draw the worst errors, one picture per error in ``errors/<category>/NN_<image>.jpg``.

    A picture shows the surroundings of the error: on the left all objects, on the right the
    detection or, for a missed object, all confident detections. Pictures of an earlier evaluation
    in these folders are removed.

    Args:
        out: The folder of the evaluation.
        annotations: The images that the model was evaluated on.
        images: Ground truth and detections of these images.
        errors: The errors.
        classes: The classes of the model.

    Returns:
        The folders that have pictures.
    """
    folders = []
    for category, worst in errors.worst.items():
        folder = out / ERRORS / category
        for old in folder.glob("[0-9][0-9]_*.jpg"):
            old.unlink()
        drawn = 0
        for error in worst:
            record = annotations.images[error.image]
            picture = read_picture(record, annotations.reader)
            if picture is None:
                continue
            drawn += 1
            name = f"{drawn:02d}_{record.path.stem[:_MAX_STEM]}.jpg"
            sheet = _draw(picture, error, images[error.image], classes, errors.min_score)
            save_picture(sheet, folder / name)
        if drawn:
            folders.append(folder)
        elif folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    return folders


def read_picture(record: ImageRecord, reader: ImageReader) -> Image.Image | None:
    """Read the picture of a record for a report, or return None where that fails.

    It was readable during the evaluation, and one picture less in a report is no failure.
    """
    try:
        return reader.load_image(record.path, (record.width, record.height))
    except UserError:
        return None


def _draw(
    picture: Image.Image,
    error: DetectionError,
    image: ImageResult,
    classes: ClassList,
    min_score: float,
) -> Image.Image:
    """Return ground truth (left) and what was detected (right) around an error."""
    involved = []
    if error.object is not None:
        involved.append(image.boxes[error.object])
    if error.detection is not None:
        involved.append(image.found_boxes[error.detection])
    view = _surroundings(np.array(involved), picture.size)
    cut = picture.crop(view)
    if error.detection is None:
        shown = np.flatnonzero(image.scores >= min_score)
    else:
        shown = np.array([error.detection])
    objects, truth = _within(image.boxes, np.arange(len(image.boxes)), view)
    detections, found = _within(image.found_boxes, shown, view)
    left = draw_boxes(cut, truth, image.labels[objects].tolist(), classes)
    right = draw_boxes(
        cut,
        found,
        image.found_labels[detections].tolist(),
        classes,
        image.scores[detections].tolist(),
    )
    captions = _captions(error, image, classes)
    return contact_sheet([left, right], captions, columns=2, cell=_CELL)


def _captions(error: DetectionError, image: ImageResult, classes: ClassList) -> list[str]:
    objects = "no object here"
    if error.object is not None:
        objects = f"truth: {classes.name(int(image.labels[error.object]))}"
    if error.detection is None:
        return [objects, "missed"]
    name = classes.name(int(image.found_labels[error.detection]))
    found = f"{error.category}: {name} {image.scores[error.detection]:.2f}"
    return [objects, found if error.object is None else f"{found}, IoU {error.iou:.2f}"]


def _surroundings(boxes: np.ndarray, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the part of a picture that boxes [B, 4] are in the middle of, twice as large."""
    low, high = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
    half = np.maximum(high - low, _MIN_VIEW / 2)
    center = (low + high) / 2
    start = np.clip(np.floor(center - half), 0, np.array(size) - 1)
    end = np.clip(np.ceil(center + half), start + 1, size)
    x1, y1, x2, y2 = (int(value) for value in (*start, *end))
    return x1, y1, x2, y2


def _within(
    boxes: np.ndarray, indices: np.ndarray, view: tuple[int, int, int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of boxes that are seen in a part of a picture, and the boxes in it."""
    shifted = boxes[indices] - np.array([*view[:2], *view[:2]])
    size = np.array([view[2] - view[0], view[3] - view[1]])
    seen = (shifted[:, :2] < size).all(axis=1) & (shifted[:, 2:] > 0).all(axis=1)
    return indices[seen], shifted[seen]
