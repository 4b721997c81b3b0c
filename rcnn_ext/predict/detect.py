"""Run a trained detector on pictures.

That of a checkpoint or a program needs the base installation only; ``.safetensors`` files, and
proposals that are kept in a folder, need the extra ``train``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn
from torchvision.transforms.v2 import functional as F

from rcnn_ext.config import with_data_overrides
from rcnn_ext.data.annotations import ClassList
from rcnn_ext.data.formats.csv_boxes import listed_images
from rcnn_ext.data.images import find_images, load_image
from rcnn_ext.distributed import choose_device
from rcnn_ext.errors import UserError
from rcnn_ext.files import write_json
from rcnn_ext.predict.load import load_saved
from rcnn_ext.predict.submission import SUBMISSION, submission_row, write_submission
from rcnn_ext.progress import tracked
from rcnn_ext.selective_search.from_config import SearchedProposals, open_proposals
from rcnn_ext.viz import contact_sheet, draw_boxes, save_picture

_MAX_IN_OVERVIEW = 16


@dataclass(frozen=True, eq=False)
class Detections:
    """Detections in one picture.

    Attributes:
        path: The picture's file.
        name: Path relative to the folder that was given, under which results are stored.
        picture: The picture, upright, RGB.
        boxes: float32 [D, 4] (x1, y1, x2, y2), pixels of ``picture``.
        labels: int64 [D], from 1.
        scores: float32 [D], descending.
    """

    path: Path
    name: Path
    picture: Image.Image
    boxes: torch.Tensor
    labels: torch.Tensor
    scores: torch.Tensor


@torch.inference_mode()
def detect(
    model: nn.Module,
    images: list[tuple[Path, Path]],
    *,
    device: torch.device,
    batch_size: int,
    min_score: float,
    proposals: SearchedProposals | None = None,
) -> Iterator[Detections | UserError]:
    """Run a detector on batches of pictures.

    Args:
        model: The detector, in evaluation mode and on ``device``.
        images: Paths and names, as :func:`rcnn_ext.data.find_images` gives them.
        device: The device of the model.
        batch_size: Number of pictures per batch.
        min_score: Minimum score of a detection.
        proposals: The source of proposals for a model that needs them.

    Yields:
        For each picture, in order, its detections, or the error why it cannot be read.
    """
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        pictures = [_load(path) for path, _ in batch]
        readable = [
            (path, picture)
            for (path, _), picture in zip(batch, pictures, strict=True)
            if isinstance(picture, Image.Image)
        ]
        tensors = [_to_tensor(picture).to(device) for _, picture in readable]
        arguments: list[Any] = [tensors]
        if proposals is not None:
            boxes = [proposals.boxes_in(path, picture) for path, picture in readable]
            arguments.append([torch.from_numpy(in_image).to(device) for in_image in boxes])
        found = iter(model(*arguments) if readable else [])
        for (path, name), picture in zip(batch, pictures, strict=True):
            if isinstance(picture, UserError):
                yield picture
                continue
            detections = {key: value.cpu() for key, value in next(found).items()}
            keep = detections["scores"] >= min_score
            yield Detections(
                path,
                name,
                picture,
                detections["boxes"][keep],
                detections["labels"][keep],
                detections["scores"][keep],
            )


def coco_results(found: Detections, image_id: int, classes: ClassList) -> list[dict[str, Any]]:
    """Return the detections of a picture as entries of a COCO result file.

    https://cocodataset.org/#format-results; ``file_name`` and ``category_name`` are additions that
    readers of the format ignore.
    """
    rows = zip(found.boxes.tolist(), found.labels.tolist(), found.scores.tolist(), strict=True)
    return [
        {
            "image_id": image_id,
            "file_name": found.name.as_posix(),
            "category_id": classes.category_id(label),
            "category_name": classes.name(label),
            "bbox": [round(value, 2) for value in (x1, y1, x2 - x1, y2 - y1)],
            "score": round(score, 5),
        }
        for (x1, y1, x2, y2), label, score in rows
    ]


def image_ids(names: list[Path]) -> list[int]:
    """Return ids for a result file: COCO's, where file names are numbers, else 1, 2, ..."""
    stems = [name.stem for name in names]
    if all(stem.isascii() and stem.isdigit() for stem in stems):
        numbers = [int(stem) for stem in stems]
        if len(set(numbers)) == len(numbers):
            return numbers
    return list(range(1, len(names) + 1))


def distinct_names(names: list[Path]) -> list[Path]:
    """Return names for pictures of results, with numbers where they would be equal."""
    taken: set[Path] = set()
    result = []
    for name in names:
        candidate, number = name.with_suffix(".jpg"), 2
        while candidate in taken:
            candidate = name.with_name(f"{name.stem}-{number}.jpg")
            number += 1
        taken.add(candidate)
        result.append(candidate)
    return result


def detect_to_folder(
    checkpoint: str | os.PathLike[str],
    sources: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    device_name: str = "auto",
    batch_size: int | None = None,
    min_score: float = 0.05,
    draw_score: float | None = 0.5,
    overrides: Sequence[str] = (),
) -> int:
    """Run a model on pictures and write ``detections.json``, ``pictures/`` and an overview.

    A localizer gives one detection per picture, with any score; all are in ``submission.csv``.

    Args:
        checkpoint: A checkpoint, an exported file or the folder of a training run.
        sources: Pictures, folders of pictures, patterns, and CSV files that name pictures in a
            column that the recipe names, or that has a usual name.
        out: The folder to write to.
        device_name: ``auto``, ``cpu`` or ``cuda``.
        batch_size: Number of pictures per batch; None takes that of the recipe's evaluation.
        min_score: Minimum score in the JSON.
        draw_score: Minimum score in pictures; None draws none.
        overrides: ``data.key=value`` or ``selective_search.key=value`` each, instead of the values
            in the recipe, such as ``data.csv.columns={image: photo}``.

    Returns:
        The number of detections.

    Raises:
        UserError: The checkpoint or a source is wrong; or some pictures cannot be read, and then it
            is raised after all others are done.
    """
    out = Path(out)
    device = choose_device(device_name)
    saved = load_saved(checkpoint)
    recipe = with_data_overrides(saved.recipe, overrides)
    csv = recipe.data.csv
    images = find_images(
        [Path(source) for source in sources], lambda path: listed_images(path, config=csv)
    )
    localizes = saved.recipe.model.detector == "localizer"
    found = detect(
        saved.build(device),
        images,
        device=device,
        batch_size=batch_size or saved.recipe.evaluation.batch_size,
        min_score=0.0 if localizes else min_score,
        proposals=open_proposals(recipe, saved.path.parent),
    )
    ids = image_ids([name for _, name in images])
    names = distinct_names([name for _, name in images])
    results: list[dict[str, Any]] = []
    overview: list[Image.Image] = []
    unreadable: list[UserError] = []
    submission: list[list[Any]] = []
    for image_id, name, one in zip(
        ids, names, tracked(found, "Detecting", len(images)), strict=True
    ):
        if isinstance(one, UserError):
            unreadable.append(one)
            continue
        rows = coco_results(one, image_id, saved.classes)
        results += [row for row in rows if row["score"] >= min_score] if localizes else rows
        if localizes:
            submission += [submission_row(row) for row in rows]
        if draw_score is not None:
            drawn = _draw(one, saved.classes, draw_score)
            save_picture(drawn, out / "pictures" / name)
            if len(overview) < _MAX_IN_OVERVIEW:
                overview.append(drawn)
    write_json(out / "detections.json", results)
    if localizes:
        write_submission(out / SUBMISSION, submission)
    if overview:
        save_picture(contact_sheet(overview), out / "overview.jpg")
    readable = len(images) - len(unreadable)
    print(f"{len(results)} detections in {readable} images, written to {out}")
    if unreadable:
        more = f" (and {len(unreadable) - 1} more)" if len(unreadable) > 1 else ""
        raise UserError(f"{unreadable[0]}{more}; the others are done")
    return len(results)


def _draw(found: Detections, classes: ClassList, min_score: float) -> Image.Image:
    keep = found.scores >= min_score
    return draw_boxes(
        found.picture,
        found.boxes[keep],
        found.labels[keep].tolist(),
        classes,
        found.scores[keep].tolist(),
    )


def _load(path: Path) -> Image.Image | UserError:
    try:
        return load_image(path)
    except UserError as error:
        return error


def _to_tensor(picture: Image.Image) -> torch.Tensor:  # [3, H, W], float32 in [0, 1]
    return F.to_dtype(F.pil_to_tensor(picture), torch.float32, scale=True)
