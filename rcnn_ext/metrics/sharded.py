"""Evaluation that any number of processes divide, and that goes on where it stopped."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from rcnn_ext.data.dataset import DetectionDataset
from rcnn_ext.distributed import Processes
from rcnn_ext.files import file_key
from rcnn_ext.metrics.evaluate import evaluate_batches
from rcnn_ext.metrics.results import ImageResult, Results, result_rows
from rcnn_ext.progress import Progress
from rcnn_ext.shards import Shard, ShardedRun, fingerprint_of

_FOLDER = "eval-shards"


class ShardedEvaluation:
    """Evaluate a shard of a data set, each image a line of JSON when it is done.

    What is done is left out when the evaluation is started again with equal settings. Whole batches
    are divided, so that the results are those of one process, bit for bit.

    Args:
        dataset: Images and ground truth.
        out: The folder of the evaluation.
        shard: The part of this process.
        settings: What results depend on, of plain types.
    """

    def __init__(
        self, dataset: DetectionDataset, out: Path, shard: Shard, settings: dict[str, Any]
    ) -> None:
        self.dataset = dataset
        self.folder = out / _FOLDER
        self.shard = shard
        self.work = dataset.annotations.images.sha256()
        self.fingerprint = fingerprint_of({**settings, "images": self.work})

    def run(
        self,
        model: nn.Module,
        *,
        device: torch.device,
        batch_size: int,
        workers: int,
        max_detections: int | None = None,
    ) -> list[ImageResult] | None:
        """Do the images of this shard that are not done.

        Args:
            model: In evaluation mode and on ``device``.
            device: The device of the model.
            batch_size: Number of images per batch.
            workers: Number of worker processes that read images.
            max_detections: As of :func:`rcnn_ext.metrics.evaluate.evaluate`.

        Returns:
            Ground truth and detections of all images; None while other shards are not finished,
            which are then named.

        Raises:
            UserError: A picture is missing or damaged, or a result cannot be written.
        """
        total = len(self.dataset)
        batches = self.shard.batches(total, batch_size)
        with ShardedRun(self.folder, self.fingerprint, self.shard, work=self.work) as run:
            done = {index for index, _ in self._results(run)}
            todo = [batch for batch in batches if not done.issuperset(batch)]
            if self.shard.count > 1:
                count = sum(map(len, batches))
                print(f"{self.shard.name} (by {self.shard.origin}): {count} of {total} images")
            if len(todo) < len(batches):
                print(f"{len(batches) - len(todo)} of {len(batches)} batches are done already")
            with Progress("Evaluating", len(batches), "batch", len(batches) - len(todo)) as bar:
                for found in evaluate_batches(
                    model,
                    self.dataset,
                    todo,
                    device=device,
                    batch_size=batch_size,
                    workers=workers,
                    max_detections=max_detections,
                ):
                    for index, detections, target in found:
                        self._write(run, index, *result_rows(index, detections, target))
                    bar.advance()
            waiting = run.finish()
            if waiting:
                print("\n".join(map(str, waiting)))
                print(f"{self.shard.name} is done; whoever is last writes the metrics")
                return None
            return self._gather(run)

    def remove(self) -> None:
        """Remove the lines, when the evaluation is written."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _key(self, index: int) -> list[int]:
        return list(file_key(self.dataset.annotations.images[index].path))

    def _write(self, run: ShardedRun, index: int, truth: np.ndarray, found: np.ndarray) -> None:
        record = {"image": index, "file": self._key(index)}
        rows = {"truth": truth.tolist(), "found": found.tolist()}
        run.write({**record, **rows}, allow_nan=True)

    def _results(self, run: ShardedRun) -> Any:
        """Yield the images that are done, and their rows; those whose files changed are not."""
        for path in run.files():
            for _, record in run.results(path):
                if record["file"] == self._key(record["image"]):
                    yield record["image"], record

    def _gather(self, run: ShardedRun) -> list[ImageResult]:
        rows = dict(self._results(run))
        results = Results()
        for index in sorted(rows):
            truth, found = (np.array(rows[index][name], np.float64) for name in ("truth", "found"))
            results.add_rows(index, truth, found)
        return results.all_gather(Processes(), torch.device("cpu"))
