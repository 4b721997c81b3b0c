"""A trained model as a repository of the Hugging Face Hub holds it. Needs the extra ``hf``.

Imported only where a model is published or fetched, since ``huggingface_hub`` is an extra.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData, ModelHubMixin, hf_hub_download
from typing_extensions import Self

from rcnn_ext import __version__
from rcnn_ext.config import recipe_to_yaml
from rcnn_ext.errors import UserError
from rcnn_ext.files import read_json, write_json, write_text
from rcnn_ext.predict.checkpoint import PRETRAINED as WEIGHTS
from rcnn_ext.predict.checkpoint import SavedDetector
from rcnn_ext.predict.exported import load_exported
from rcnn_ext.predict.exported.weights import write_weights

RECIPE, CONFIG, CARD = "recipe.yaml", "config.json", "README.md"
LIBRARY = "rcnn_ext"
_METRICS = "metrics.json"
_TASK, _TASK_NAME = "object-detection", "Object Detection"
_REPOSITORY = "https://github.com/rcnn-ext/rcnn-ext"
_DOCS = "https://rcnn-ext.github.io/rcnn-ext"
# Numbers in metrics.json that say how a model was evaluated rather than how good it is.
_FACTS = ("images", "objects", "detections", "step", "seconds")


class HubModel(
    ModelHubMixin,
    library_name=LIBRARY,
    pipeline_tag=_TASK,
    tags=["object-detection", "r-cnn", "pytorch"],
    repo_url=_REPOSITORY,
    docs_url=_DOCS,
):
    """A saved model with the methods of ``huggingface_hub``'s mixin.

    A folder or repository has ``model.safetensors`` (weights, recipe and classes, as ``rcnn-ext
    export`` writes them), ``recipe.yaml``, ``config.json`` with the names of the classes, and the
    model card ``README.md``.

    Attributes:
        saved: The model.
        license: Identifier of the license of the weights, or None.
    """

    saved: SavedDetector
    license: str | None = None

    @classmethod
    def of(cls, saved: SavedDetector, license: str | None = None) -> Self:
        """Wrap a saved model. The mixin would copy the weights of an argument of ``__init__``."""
        model = cls()
        model.saved, model.license = saved, license
        return model

    def _save_pretrained(self, save_directory: Path) -> None:
        """Write all but the card, which the mixin writes."""
        classes, recipe = self.saved.classes, self.saved.recipe
        write_weights(self.saved, save_directory / WEIGHTS)
        write_text(save_directory / RECIPE, recipe_to_yaml(recipe))
        write_json(
            save_directory / CONFIG,
            {
                "library_name": LIBRARY,
                "library_version": __version__,
                "architecture": recipe.model.detector,
                "backbone": recipe.model.backbone,
                "id2label": {str(i): name for i, name in enumerate(classes.names, start=1)},
                "label2id": {name: i for i, name in enumerate(classes.names, start=1)},
                "category_ids": list(classes.category_ids),
            },
        )

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        **_: Any,
    ) -> Self:
        """Read a folder, or fetch the weights of a repository."""
        if Path(model_id).is_dir():
            path = Path(model_id) / WEIGHTS
            if not path.is_file():
                raise UserError(f"{model_id} has no {WEIGHTS}")
        else:
            path = Path(
                hf_hub_download(
                    model_id,
                    WEIGHTS,
                    revision=revision,
                    cache_dir=cache_dir,
                    force_download=force_download,
                    local_files_only=local_files_only,
                    token=token,
                )
            )
        return cls.of(load_exported(path))

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """Return the card: what the model is, how to use it, and the metrics of ``rcnn-ext eval``.

        Args:
            *args: Unused; of the mixin.
            **kwargs: ``repo_id`` is how the example names the model.
        """
        saved, repo_id = self.saved, kwargs.get("repo_id") or "owner/name"
        name = repo_id.rpartition("/")[2]
        metrics = read_metrics(saved)
        data: dict[str, Any] = self._hub_mixin_info.model_card_data.to_dict()
        data["license"] = self.license
        if metrics:
            data["model_name"] = name
            data["eval_results"] = [
                EvalResult(
                    task_type=_TASK,
                    task_name=_TASK_NAME,
                    dataset_type="custom",
                    dataset_name=Path(str(metrics.get("annotations", "custom"))).stem,
                    metric_type=metric,
                    metric_value=round(value, 5),
                )
                for metric, value in _scores(metrics)
            ]
        card_data = ModelCardData(**{key: value for key, value in data.items() if value})
        text = "\n\n".join(_sections(saved, name, repo_id, metrics))
        return ModelCard(f"---\n{card_data.to_yaml()}\n---\n\n{text}\n")


def read_metrics(saved: SavedDetector) -> dict[str, Any]:
    """Return the metrics that ``rcnn-ext eval`` wrote for a model beside its file.

    Returns:
        The content of ``metrics.json``; empty where there is none, or it is of another training
        step.
    """
    path = saved.path.parent / _METRICS
    if not path.is_file():
        return {}
    metrics = read_json(path)
    if not isinstance(metrics, dict) or metrics.get("step") != saved.step:
        return {}
    return metrics


def _scores(metrics: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield the metrics that are numbers."""
    for name, value in metrics.items():
        if isinstance(value, int | float) and not isinstance(value, bool) and name not in _FACTS:
            yield name, float(value)


def _sections(
    saved: SavedDetector, name: str, repo_id: str, metrics: Mapping[str, Any]
) -> Iterator[str]:
    """Yield the parts of a card's text."""
    model = saved.recipe.model
    classes = ", ".join(saved.classes.names)
    yield f"# {name}"
    yield (
        f"A {model.detector} with the backbone {model.backbone}, trained with "
        f"[rcnn_ext]({_REPOSITORY}) for {saved.step} steps. `{RECIPE}` has all of its settings."
    )
    yield f"Classes ({len(saved.classes)}): {classes}."
    yield "## Use"
    yield (
        "```python\nimport rcnn_ext\n\n"
        f'model = rcnn_ext.load("hub:{repo_id}")\n'
        'found = model.predict("photo.jpg", min_score=0.5)\n'
        "found.draw()\n```"
    )
    yield f"On the command line: `rcnn-ext detect hub:{repo_id} photo.jpg --out found`."
    scores = list(_scores(metrics))
    if not scores:
        return
    yield "## Evaluation"
    yield f"{metrics.get('images', 0)} images with {metrics.get('objects', 0)} objects."
    rows = [f"| {metric} | {value:.3f} |" for metric, value in scores]
    yield "\n".join(["| metric | value |", "|---|---|", *rows])
    per_class = metrics.get("per_class")
    if isinstance(per_class, dict) and per_class:
        columns = list(next(iter(per_class.values())))
        lines = [f"| class | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
        for class_name, row in per_class.items():
            values = " | ".join(_cell(row.get(column)) for column in columns)
            lines.append(f"| {class_name.replace('|', chr(92) + '|')} | {values} |")
        yield "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
