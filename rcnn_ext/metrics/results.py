"""Ground truth and detections of each image, the input of every metric."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from rcnn_ext import ops
from rcnn_ext.distributed import Processes
from rcnn_ext.errors import UserError

_TRUTH_COLUMNS = 9  # image, x1, y1, x2, y2, label, area, crowd, difficult
_FOUND_COLUMNS = 7  # image, x1, y1, x2, y2, label, score


@dataclass(frozen=True, eq=False)
class ImageResult:
    """Ground truth and detections of an image. Boxes are (x1, y1, x2, y2) in pixels.

    Attributes:
        boxes: float64 [N, 4] of the objects.
        labels: int64 [N], from 1.
        areas: float64 [N], square pixels.
        crowd: bool [N]; a box around a group, which metrics ignore.
        difficult: bool [N]; an object that VOC's metrics ignore.
        found_boxes: float64 [D, 4].
        found_labels: int64 [D], from 1.
        scores: float64 [D].
    """

    boxes: np.ndarray
    labels: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray
    difficult: np.ndarray
    found_boxes: np.ndarray
    found_labels: np.ndarray
    scores: np.ndarray

    @property
    def ignored(self) -> np.ndarray:
        """Bool [N]: objects that detections need not match."""
        return self.crowd | self.difficult


def require_finite(paths: Iterable[Path], images: Sequence[ImageResult]) -> None:
    """Refuse detections that are not finite, which no metric can rank.

    Args:
        paths: The files of the images.
        images: Their results.

    Raises:
        UserError: There are such.
    """
    for path, image in zip(paths, images, strict=True):
        if not (np.isfinite(image.found_boxes).all() and np.isfinite(image.scores).all()):
            raise UserError(
                f"{path}: the model gives numbers that are not finite: its weights are damaged, or "
                "its training did not converge"
            )


def result_rows(
    image: int, detections: dict[str, torch.Tensor], target: dict[str, torch.Tensor]
) -> tuple[np.ndarray, np.ndarray]:
    """Return ground truth and detections of an image as rows of numbers.

    Args:
        image: As of :meth:`Results.add`, like the others.
        detections: Detections.
        target: Ground truth.

    Returns:
        float64 [N, 9] and [D, 7].
    """
    boxes = target["boxes"]
    sides = boxes[:, 2:] - boxes[:, :2]
    none = torch.zeros(len(boxes))
    truth = _rows(
        image,
        boxes,
        target["labels"],
        target.get("areas", sides.prod(1)),
        target.get("crowd", none),
        target.get("difficult", none),
    )
    found = _rows(image, detections["boxes"], detections["labels"], detections["scores"])
    return truth, found


class Results:
    """Collect ground truth and detections, in one process or in several."""

    def __init__(self) -> None:
        self._images: list[int] = []
        self._truth: list[np.ndarray] = []
        self._found: list[np.ndarray] = []

    def __len__(self) -> int:
        """Return the number of images so far."""
        return len(self._images)

    def add(
        self,
        image: int,
        detections: dict[str, torch.Tensor],
        target: dict[str, torch.Tensor],
    ) -> None:
        """Add an image.

        Args:
            image: Its index in the data set.
            detections: ``boxes`` [D, 4] (x1, y1, x2, y2), ``labels`` [D] from 1, ``scores`` [D].
            target: ``boxes`` [N, 4] in the same pixels and ``labels`` [N]; optionally ``areas``
                [N], ``crowd`` [N] and ``difficult`` [N].
        """
        self.add_rows(image, *result_rows(image, detections, target))

    def add_rows(self, image: int, truth: np.ndarray, found: np.ndarray) -> None:
        """Add an image by what :func:`result_rows` gives for it."""
        self._images.append(image)
        self._truth.append(truth.reshape(-1, _TRUTH_COLUMNS))
        self._found.append(found.reshape(-1, _FOUND_COLUMNS))

    def all_gather(self, processes: Processes, device: torch.device) -> list[ImageResult]:
        """Return the images of all processes, in the order of the data set."""
        images = np.array(self._images, dtype=np.float64).reshape(-1, 1)
        images = processes.all_gather(images, device)[:, 0]
        truth = processes.all_gather(_concatenate(self._truth, _TRUTH_COLUMNS), device)
        found = processes.all_gather(_concatenate(self._found, _FOUND_COLUMNS), device)
        order = np.sort(images)
        return [
            ImageResult(
                boxes=of_truth[:, 1:5],
                labels=of_truth[:, 5].astype(np.int64),
                areas=of_truth[:, 6],
                crowd=of_truth[:, 7] > 0,
                difficult=of_truth[:, 8] > 0,
                found_boxes=of_found[:, 1:5],
                found_labels=of_found[:, 5].astype(np.int64),
                scores=of_found[:, 6],
            )
            for of_truth, of_found in zip(
                _by_image(truth, order), _by_image(found, order), strict=True
            )
        ]


def box_ious(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the IoU of boxes [N, 4] and [M, 4] as float64 [N, M]; 0 where neither has an area."""
    ious = ops.box_iou(torch.tensor(first), torch.tensor(second)).numpy()
    ious[np.isnan(ious)] = 0
    return ious


def overlap_of_first(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the fraction of boxes [N, 4] that lies in others [M, 4], as float64 [N, M].

    It is 0 for boxes without an area.
    """
    low = np.maximum(first[:, None, :2], second[None, :, :2])  # [N, M, 2]
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])  # [N, M, 2]
    common = (high - low).clip(0).prod(axis=2)  # [N, M]
    areas = (first[:, 2:] - first[:, :2]).prod(axis=1)[:, None]
    return np.divide(common, areas, out=np.zeros_like(common), where=areas > 0)


def _rows(image: int, boxes: torch.Tensor, *columns: torch.Tensor) -> np.ndarray:
    number = torch.full((len(boxes),), image)
    parts = [number, *boxes.double().cpu().unbind(1), *columns]
    return torch.stack([part.double().cpu() for part in parts], dim=1).numpy()


def _concatenate(tables: list[np.ndarray], columns: int) -> np.ndarray:
    return np.concatenate([np.zeros((0, columns)), *tables])


def _by_image(rows: np.ndarray, images: np.ndarray) -> list[np.ndarray]:
    """Split rows by image, in the order of ``images``, which are sorted."""
    rows = rows[rows[:, 0].argsort(kind="stable")]
    edges = np.searchsorted(rows[:, 0], images, side="left")
    ends = np.searchsorted(rows[:, 0], images, side="right")
    return [rows[start:end] for start, end in zip(edges, ends, strict=True)]
