"""Run a trained detector on pictures and write what it finds to a folder.

That of a checkpoint or a program needs the base installation only; ``.safetensors`` files, and
proposals that are kept in a folder, need the extra ``train``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from rcnn_ext.config import Recipe, with_data_overrides
from rcnn_ext.data.formats.csv_boxes import listed_images
from rcnn_ext.data.images import find_images
from rcnn_ext.errors import UserError
from rcnn_ext.files import write_json
from rcnn_ext.predict.load import load
from rcnn_ext.predict.pictures import PictureFile
from rcnn_ext.predict.submission import SUBMISSION, submission_row, write_submission
from rcnn_ext.predict.tiles import Tiling
from rcnn_ext.progress import tracked
from rcnn_ext.viz import contact_sheet, save_picture

_MAX_IN_OVERVIEW = 16


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
    tiling: Tiling | None = None,
) -> int:
    """Run a model on pictures and write ``detections.json``, ``pictures/`` and an overview.

    A localizer gives one detection per picture, with any score; all are in ``submission.csv``.

    Args:
        checkpoint: A checkpoint, an exported file, the folder of a training run, the name of a
            model with published weights, or ``hub:owner/name``.
        sources: Pictures, folders of pictures, patterns, and CSV files that name pictures in a
            column that the recipe names, or that has a usual name.
        out: The folder to write to.
        device_name: ``auto``, ``cpu`` or ``cuda``.
        batch_size: Number of pictures per batch; None takes that of the recipe's evaluation.
        min_score: Minimum score in the JSON.
        draw_score: Minimum score in pictures; None draws none.
        overrides: ``data.key=value`` or ``selective_search.key=value`` each, instead of the values
            in the recipe, such as ``data.csv.columns={image: photo}``.
        tiling: The division of large pictures into tiles, or None.

    Returns:
        The number of detections.

    Raises:
        UserError: The checkpoint or a source is wrong; or some pictures cannot be read, and then it
            is raised after all others are done.
    """
    out = Path(out)
    model = load(checkpoint, device=device_name)
    recipe = with_data_overrides(model.recipe or Recipe(), overrides)
    model.recipe = recipe
    images = find_images(
        [Path(source) for source in sources],
        lambda path: listed_images(path, config=recipe.data.csv),
    )
    localizes = model.localizes
    found = model.stream(
        [PictureFile(path, name, model.reader) for path, name in images],
        min_score=0.0 if localizes else min_score,
        batch_size=batch_size,
        tiling=tiling,
        keep_pictures=draw_score is not None,
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
        rows = one.to_coco(image_id)
        results += [row for row in rows if row["score"] >= min_score] if localizes else rows
        if localizes:
            submission += [submission_row(row) for row in rows]
        if draw_score is not None and one.height * one.width > model.reader.max_pixels:
            print(f"{one.name} is {one.width}x{one.height} pixels: too large to be drawn")
        elif draw_score is not None:
            drawn = one.draw(draw_score)
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
