"""Run a trained detector on pictures and write what it finds to a folder, as it goes.

That of a checkpoint or a program needs the base installation only; ``.safetensors`` files, and
proposals that are kept in a folder, need the extra ``train``.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rcnn_ext.config import Recipe, with_data_overrides
from rcnn_ext.data.formats.csv_boxes import listed_images
from rcnn_ext.data.images import list_images
from rcnn_ext.errors import UserError
from rcnn_ext.predict.detect_record import ERRORS, Merged, Merger
from rcnn_ext.predict.detect_run import DetectFolder, loaded, weights_hash
from rcnn_ext.predict.detect_shard import Outcome, ShardDetector
from rcnn_ext.predict.predictor import Predictor
from rcnn_ext.predict.tiles import Tiling
from rcnn_ext.shards import Shard


def detect_to_folder(
    checkpoint: str | os.PathLike[str] | Predictor,
    sources: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    device_name: str = "auto",
    batch_size: int | None = None,
    min_score: float = 0.05,
    draw_score: float | None = 0.5,
    overrides: Sequence[str] = (),
    tiling: Tiling | None = None,
    shard: Shard | None = None,
    overwrite: bool = False,
) -> int | None:
    """Run a model on pictures and write ``detections.json``, ``pictures/`` and an overview.

    Each picture is a line of JSON in ``detect-shards`` when it is done. What is done there already
    is left out, and the last process to finish puts the results of all together. A localizer gives
    one detection per picture, with any score; all are in ``submission.csv``.

    Args:
        checkpoint: A checkpoint, an exported file, the folder of a training run, the name of a
            model with published weights, or ``hub:owner/name``; or a model that is loaded.
        sources: Pictures, folders of pictures, patterns, and CSV files that name pictures in a
            column that the recipe names, or that has a usual name. Results of ``detect`` among
            them are left out.
        out: The folder to write to.
        device_name: ``auto``, ``cpu`` or ``cuda``.
        batch_size: Number of pictures per batch; None takes that of the recipe's evaluation.
        min_score: Minimum score in the JSON.
        draw_score: Minimum score in pictures; None draws none.
        overrides: ``data.key=value`` or ``selective_search.key=value`` each, instead of the values
            in the recipe, such as ``data.csv.columns={image: photo}``.
        tiling: The division of large pictures into tiles, or None.
        shard: The part of this process; None means all.
        overwrite: Whether to do again what is done, with these or other settings.

    Returns:
        The number of detections in all pictures; None while other shards are not finished.

    Raises:
        UserError: The checkpoint or a source is wrong; ``out`` has results with other settings; or
            some pictures cannot be read or some files not be written, and then it is raised after
            all others are done.
    """
    out = Path(out)
    shard = shard or Shard()
    model = loaded(checkpoint, device_name, shard)
    recipe = with_data_overrides(model.recipe or Recipe(), overrides)
    model.recipe = recipe
    localizes = model.localizes
    folder = DetectFolder(
        out,
        {
            "weights": weights_hash(model),
            "min_score": min_score,
            "draw_score": draw_score,
            "tile": None if tiling is None else dataclasses.asdict(tiling),
            "overrides": sorted(overrides),
        },
        shard,
        overwrite,
    )
    folder.check()
    images = folder.own_pictures(
        list_images(
            [Path(source) for source in sources],
            lambda path: listed_images(path, config=recipe.data.csv),
        )
    )
    with folder.open(images) as run:
        detector = ShardDetector(
            model,
            images,
            folder,
            run,
            batch_size=batch_size or recipe.evaluation.batch_size,
            # Submissions of localizers have all scores.
            min_score=0.0 if localizes else min_score,
            draw_score=draw_score,
            tiling=tiling,
        )
        outcome = detector.detect()
        try:
            waiting = run.finish(complete=not outcome.lost)
        except UserError as error:
            outcome.lost.append(str(error))
            waiting = []
        if waiting:
            print("\n".join(map(str, waiting)))
            _end_shard(shard, outcome, out)
            return None
        merged = Merger(out, images, run, min_score, localizes).merge()
    print(f"{merged.detections} detections in {merged.images} images, written to {out}")
    _raise_errors(merged, outcome, out)
    return merged.detections


def _end_shard(shard: Shard, outcome: Outcome, out: Path) -> None:
    """Say how a shard ended that is not the last one.

    Raises:
        UserError: Some of its pictures have errors; only printed under torchrun, which would end
            the other processes, whose pictures are to be done.
    """
    print(f"{shard.name} is done; whoever is last writes detections.json to {out}")
    if not outcome.errors:
        return
    text = f"{_counted(outcome.first_error, outcome.errors)}; the others are done"
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        raise UserError(text)
    print(text, file=sys.stderr)


def _raise_errors(merged: Merged, outcome: Outcome, out: Path) -> None:
    """Raise one error for all that went wrong, if anything did.

    Raises:
        UserError: A picture could not be read, or a file not be written.
    """
    unwritten = [*outcome.lost[:1], *merged.unwritten]
    parts = []
    if merged.errors:
        others = "the others are done" if merged.images else "no picture could be done"
        parts.append(f"{_counted(merged.first_error, merged.errors)}; {others}")
        parts.append(f"{out / ERRORS} has all errors")
    if unwritten:
        parts = ["; ".join(unwritten), *parts, "run the command again to do the rest"]
    if parts:
        raise UserError("; ".join(parts))


def _counted(first: str, count: int) -> str:
    return f"{first} (and {count - 1} more)" if count > 1 else first
