"""Publication of a loaded model on the Hugging Face Hub."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import nn

from rcnn_ext.errors import UserError
from rcnn_ext.models import Detector
from rcnn_ext.predict import publish
from rcnn_ext.predict.checkpoint import SavedDetector
from rcnn_ext.predict.saved import load_saved


class Publishable:
    """Methods that write a model for the Hub.

    Attributes:
        detector: The model itself.
        path: The file it was loaded from, or None.
    """

    detector: nn.Module
    path: Path | None

    def save_pretrained(self, folder: str | os.PathLike[str], **options: Any) -> list[Path]:
        """Write the model as a repository of the Hugging Face Hub. Needs the extra ``hf``.

        Args:
            folder: The folder; a ``README.md`` in it is kept.
            **options: See :func:`rcnn_ext.predict.publish.save_pretrained`.

        Returns:
            The files: weights with recipe and classes, ``recipe.yaml``, ``config.json``, and a
            model card with the metrics that ``rcnn-ext eval`` wrote.

        Raises:
            UserError: The model has no recipe, or the folder cannot be written.
        """
        return publish.save_pretrained(self._saved(), folder, **options)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Write the model to a repository of the Hugging Face Hub. Needs the extra ``hf``.

        Args:
            repo_id: ``owner/name``; it is created where it is missing.
            **options: See :func:`rcnn_ext.predict.publish.push_to_hub`.

        Returns:
            The URL of the commit.

        Raises:
            UserError: The model has no recipe, there is no network, or you may not write there.
        """
        return publish.push_to_hub(self._saved(), repo_id, **options)

    def _saved(self) -> SavedDetector:
        """Return the model with its recipe; with its present weights unless it was prepared.

        Raises:
            UserError: It was not trained by a recipe.
        """
        if self.path is None:
            raise UserError(
                "only a model that was trained by a recipe can be published: its recipe says how "
                "to build it; load the run or its checkpoint"
            )
        saved = load_saved(self.path)
        if isinstance(self.detector, Detector) and not self.detector.is_prepared:
            saved = publish.with_weights_of(saved, self.detector)
        return saved
