"""Validate a model during its training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from rcnn_ext.config import Recipe
from rcnn_ext.data.annotations import AnnotationSet, ClassList
from rcnn_ext.data.dataset import DetectionDataset
from rcnn_ext.data.splits import STREAMED, has_validation, open_evaluation
from rcnn_ext.distributed import Processes
from rcnn_ext.errors import UserError
from rcnn_ext.metrics.coco import EvaluationResult
from rcnn_ext.metrics.evaluate import evaluate
from rcnn_ext.metrics.tasks import compute_metrics
from rcnn_ext.selective_search.from_config import SearchedProposals


def open_validation(
    recipe: Recipe, data: Path, out: Path, classes: ClassList, processes: Processes
) -> AnnotationSet | None:
    """Open the images that validations use, or return None where the data have no such split.

    Raises:
        UserError: Something in them is wrong, or the recipe needs a validation split.
    """
    if not has_validation(recipe.data, data):
        _check_no_validation_needed(recipe)
        processes.print_once(
            "validation: the data have no validation split; best.ckpt will not be written"
        )
        return None
    limit = recipe.evaluation.max_images
    found = open_evaluation(recipe.data, data, "val", classes.names, out / STREAMED, limit)
    processes.print_once(f"validation: {found.summary()}")
    return found


class Validation:
    """Compute the metrics of a model on the validation images.

    Args:
        images: The validation images.
        proposals: The source of proposals for models that need them.
        recipe: The recipe of the run.
        classes: The classes of the model.
        processes: The processes that divide the images among themselves.
        device: The device of the model.
    """

    def __init__(
        self,
        images: AnnotationSet,
        proposals: SearchedProposals | None,
        recipe: Recipe,
        classes: ClassList,
        processes: Processes,
        device: torch.device,
    ) -> None:
        self.dataset = DetectionDataset(images, proposals)
        self.recipe = recipe
        self.classes = classes
        self.processes = processes
        self.device = device

    def __call__(
        self, model: nn.Module, after_batch: Callable[[], None]
    ) -> EvaluationResult | None:
        """Validate a model.

        Args:
            model: In evaluation mode.
            after_batch: Called after every batch.

        Returns:
            The metrics in the main process; None in the others.
        """
        results = evaluate(
            model,
            self.dataset,
            device=self.device,
            batch_size=self.recipe.evaluation.batch_size,
            workers=self.recipe.data.workers,
            max_detections=self.recipe.evaluation.max_detections,
            processes=self.processes,
            after_batch=after_batch,
        )
        if not self.processes.is_main_process:
            return None
        return compute_metrics(model, results, self.classes, self.recipe.evaluation.max_detections)


def _check_no_validation_needed(recipe: Recipe) -> None:
    phases = {"schedule": recipe.schedule}
    if recipe.refine is not None:
        phases["refine.schedule"] = recipe.refine.schedule
    for key, schedule in phases.items():
        if schedule.decay == "plateau":
            raise UserError(f"{key}.decay=plateau needs a validation split, and the data have none")
    if recipe.evaluation.patience is not None:
        raise UserError("evaluation.patience needs a validation split, and the data have none")
