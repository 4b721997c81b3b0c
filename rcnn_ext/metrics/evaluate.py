"""Run a model on annotated images, in one process or in several."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.data import Subset

from rcnn_ext.data.dataset import DetectionDataset, evaluation_loader
from rcnn_ext.data.workers import named_worker_death
from rcnn_ext.distributed import Processes
from rcnn_ext.metrics.results import ImageResult, Results
from rcnn_ext.metrics.tasks import call_model
from rcnn_ext.progress import Progress
from rcnn_ext.shards import Shard

# Its index in the data set, its detections and its ground truth.
EvaluatedImage = tuple[int, dict[str, torch.Tensor], dict[str, torch.Tensor]]


def evaluate(
    model: nn.Module,
    dataset: DetectionDataset,
    *,
    device: torch.device,
    batch_size: int,
    workers: int,
    max_detections: int | None = None,
    processes: Processes | None = None,
    after_batch: Callable[[], None] = lambda: None,
) -> list[ImageResult]:
    """Run a model on annotated images, each process on its part of them.

    Args:
        model: In evaluation mode and on ``device``.
        dataset: Images and ground truth.
        device: The device of the model.
        batch_size: Number of images per batch.
        workers: Number of worker processes that read images.
        max_detections: Number of detections per image that the model may give at least; where
            its own limit is lower, it is raised for this evaluation. None keeps its limit.
        processes: The processes that divide the images among themselves; None means this one
            alone.
        after_batch: Called after every batch.

    Returns:
        Ground truth and detections of all images, in every process.

    Raises:
        UserError: A picture is missing or damaged.
    """
    processes = processes or Processes()
    batches = Shard(processes.rank, processes.count).batches(len(dataset), batch_size)
    results = Results()
    progress: AbstractContextManager[Progress | None] = (
        Progress("Evaluating", len(batches), "batch")
        if processes.is_main_process
        else nullcontext()
    )
    with progress as bar:
        for found in evaluate_batches(
            model,
            dataset,
            batches,
            device=device,
            batch_size=batch_size,
            workers=workers,
            max_detections=max_detections,
        ):
            for index, detections, target in found:
                results.add(index, detections, target)
            after_batch()
            if bar is not None:
                bar.advance()
    return results.all_gather(processes, device)


def evaluate_batches(
    model: nn.Module,
    dataset: DetectionDataset,
    batches: Sequence[range],
    *,
    device: torch.device,
    batch_size: int,
    workers: int,
    max_detections: int | None = None,
) -> Iterator[list[EvaluatedImage]]:
    """Run a model on batches of annotated images.

    Args:
        model: In evaluation mode and on ``device``.
        dataset: Images and ground truth.
        batches: Indices of the images of each batch. All but the last one are full, so that the
            results of an image do not depend on which other batches there are.
        device: The device of the model.
        batch_size: Number of images per batch.
        workers: Number of worker processes that read images.
        max_detections: As of :func:`evaluate`.

    Yields:
        For each batch its images: index, detections and ground truth.

    Raises:
        UserError: A picture is missing or damaged, or a worker was killed.
    """
    indices = [index for batch in batches for index in batch]
    loader: Any = evaluation_loader(
        Subset(dataset, indices),  # type: ignore[arg-type]
        batch_size,
        workers,
        device.type == "cuda",
    )
    with named_worker_death(), torch.inference_mode(), _at_least(model, max_detections):
        for batch, (images, targets) in zip(batches, loader, strict=True):
            found = call_model(
                model,
                [image.to(device) for image in images],
                [_to_device(target, device) for target in targets],
            )
            yield list(zip(batch, found, targets, strict=True))


def detections_limit(model: nn.Module) -> int | None:
    """Return the maximum number of detections per image of a model, or None where it is fixed.

    Exported programs cannot be changed, and a localizer gives one detection per image.
    """
    heads = getattr(model, "roi_heads", None)
    return getattr(heads, "detections_per_img", None)


@contextmanager
def _at_least(model: nn.Module, max_detections: int | None) -> Iterator[None]:
    """Raise the maximum number of detections per image of a model for a while."""
    limit = detections_limit(model)
    if limit is None or max_detections is None or limit >= max_detections:
        yield
        return
    heads: Any = model.roi_heads
    heads.detections_per_img = max_detections
    try:
        yield
    finally:
        heads.detections_per_img = limit


def _to_device(target: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {
        name: value.to(device) if isinstance(value, torch.Tensor) else value
        for name, value in target.items()
    }
