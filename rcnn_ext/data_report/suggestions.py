"""Settings that suit a data set, as overrides of a recipe."""

from __future__ import annotations

import dataclasses
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rcnn_ext.config.model import ANCHOR_SIZES, ModelConfig
from rcnn_ext.config.recipe import Recipe
from rcnn_ext.data.annotations import AnnotationSet
from rcnn_ext.data_report.anchors import fit_anchors

DEFAULT_RECIPE = "faster_rcnn_finetune"

# Pixels. A tenth of the objects may be smaller than this in what the network sees.
_MIN_OBJECT_SIDE = 16
# Multiples of this fit every stride up to P5.
_STEP = 32
_MIN_SIZE, _USUAL_MAX_SIZE, _MAX_SIZE = 64, 800, 1024

# A GPU with 16 GB trains a ResNet-50 with a pyramid on 8 pictures of this size in mixed precision.
_PIXELS_OF_BATCH = 8 * 800 * 1066
# Of 1, batch normalization of a localizer has nothing to normalize over.
_MIN_BATCH, _MAX_BATCH = 2, 16
# Fewer batches per epoch would make the steps of small data sets few and large.
_MIN_BATCHES = 16

# COCO's shortest usual schedule ("1x"); below that, training has not converged.
_MIN_EPOCHS = 12
_MAX_EPOCHS = 60
_STEPS_OF_PICTURES = 16_000  # pictures, about 4,000 steps of 4

_VAL_FRACTION = 0.15
_MAX_IMBALANCE = 50


@dataclass(frozen=True)
class Suggestion:
    """One override, and why.

    Attributes:
        override: ``section.key=value``.
        reason: The reason, in a few words.
    """

    override: str
    reason: str


@dataclass(frozen=True)
class Suggestions:
    """Overrides for a recipe, and what else to think of.

    Attributes:
        recipe: Name or file of the recipe.
        overrides: What to replace in it.
        advice: Sentences about the data.
        pasted: The overrides on one line, quoted for a shell.
    """

    recipe: str
    overrides: tuple[Suggestion, ...]
    advice: tuple[str, ...] = ()

    @property
    def pasted(self) -> str:
        """The overrides on one line, quoted for a shell."""
        return shlex.join(one.override for one in self.overrides)

    def command(self, data: Path | str, data_overrides: Sequence[str] = ()) -> str:
        """Return the command that trains with them.

        Args:
            data: The data folder.
            data_overrides: Other overrides, about how the data are read.
        """
        words = ["rcnn-ext", "train", self.recipe, "--data", str(data), "--out", "runs/first"]
        overrides = [*data_overrides, *(one.override for one in self.overrides)]
        return shlex.join([*words, *overrides])


def suggest(
    annotations: AnnotationSet,
    *,
    recipe_name: str | None = None,
    recipe: Recipe | None = None,
    default_sizes: Sequence[Sequence[float]] | None = None,
    has_validation: bool = True,
    stream: bool = False,
) -> Suggestions | None:
    """Return settings that suit the images of training.

    Args:
        annotations: The images.
        recipe_name: The recipe that is to be changed; None means ``faster_rcnn_finetune``, and
            overrides that fit every recipe with a pyramid on a ResNet.
        recipe: That recipe, read; None where ``recipe_name`` is.
        default_sizes: The default anchor sizes of each level of its model; None means those of a
            pyramid from P2 to P6.
        has_validation: Whether the data have a validation split of their own.
        stream: Whether the images are streamed, so that they have epochs only if they are counted.

    Returns:
        The settings; None where there are no objects to learn.
    """
    images = annotations.images
    learned = ~images.crowd
    if not learned.any():
        return None
    model = ModelConfig() if recipe is None else recipe.model
    sizes = images.sizes.astype(np.float64)
    sides = (images.boxes[:, 2:] - images.boxes[:, :2]).astype(np.float64)[learned]
    image_of = images.object_images()[learned]
    found: list[Suggestion] = []
    advice: list[str] = []
    if model.detector == "localizer":
        side = _rounded(float(np.clip(np.median(sizes.min(axis=1)), 128, 448)))
        found.append(Suggestion(f"model.fixed_size=[{side},{side}]", "near the median picture"))
        pixels = side * side
    else:
        min_size, max_size = _network_size(sizes, sides, image_of, found, advice)
        pixels = min_size * max_size
        if recipe is None or model.fixed_size is not None:
            found.append(Suggestion("model.fixed_size=null", "pictures keep their shape"))
    if model.detector == "faster_rcnn":
        scale = np.minimum(min_size / sizes.min(axis=1), max_size / sizes.max(axis=1))[image_of]
        levels = default_sizes or [(size,) for size in ANCHOR_SIZES]
        found += _anchors(sides * scale[:, None], levels)
        if recipe is None:
            found.append(Suggestion("model.returned_layers=null", "levels P2 to P6, one size each"))
    found += _batch_and_length(len(images), pixels, recipe, stream=stream)
    if not has_validation and not stream:
        found.append(
            Suggestion(f"data.val_fraction={_VAL_FRACTION}", "the data have no validation split")
        )
    _imbalance(annotations, model.detector, advice)
    return Suggestions(recipe_name or DEFAULT_RECIPE, tuple(found), tuple(advice))


def _rounded(value: float) -> int:
    return max(_STEP, round(value / _STEP) * _STEP)


def _network_size(
    sizes: np.ndarray,
    sides: np.ndarray,
    image_of: np.ndarray,
    found: list[Suggestion],
    advice: list[str],
) -> tuple[int, int]:
    """Suggest min_size and max_size, and return them."""
    shorter = sizes.min(axis=1)
    parts = np.sqrt(sides.prod(axis=1)) / shorter[image_of]
    tenth = float(np.percentile(parts, 10))
    median = float(np.median(shorter))
    needed = _MIN_OBJECT_SIDE / tenth
    # More than twice enlarged, pictures gain time and no detail.
    wanted = min(max(median, needed), 2 * median)
    most = _USUAL_MAX_SIZE if needed <= _USUAL_MAX_SIZE else _MAX_SIZE
    min_size = _rounded(float(np.clip(wanted, _MIN_SIZE, most)))
    ratio = float(np.percentile(sizes.max(axis=1) / shorter, 95))
    max_size = math.ceil(min_size * min(ratio, 4.0) / _STEP - 1e-9) * _STEP
    seen = tenth * min_size
    found += [
        Suggestion(
            f"model.min_size={min_size}",
            f"the median shorter side is {median:.0f}; 90 % of the objects are then at least "
            f"{seen:.0f} pixels (square root of their area)",
        ),
        Suggestion(f"model.max_size={max_size}", f"95 % of the pictures are at most 1:{ratio:.2f}"),
    ]
    if seen < _MIN_OBJECT_SIDE / 2:
        advice.append(
            f"A tenth of the objects are below {seen:.0f} pixels as the network sees them: cut "
            "large pictures into tiles before training, and use rcnn-ext detect --tile for them."
        )
    return min_size, max_size


def _anchors(sides: np.ndarray, levels: Sequence[Sequence[float]]) -> list[Suggestion]:
    single = all(len(level) == 1 for level in levels)
    default = [level[0] for level in levels] if single else list(levels[0])
    fitted = fit_anchors(sides, default)
    chosen: list[int] | list[list[int]] = list(fitted.sizes)
    if not single and len(levels) > 1:
        chosen = [list(fitted.sizes) for _ in levels]
    ratios = ",".join(f"{ratio:g}" for ratio in fitted.ratios)
    reason = (
        f"k-means on the boxes: mean IoU with the nearest anchor {fitted.iou:.2f}, with the "
        f"default {fitted.default_iou:.2f}"
    )
    return [
        Suggestion(f"model.anchor_sizes={chosen}".replace(" ", ""), reason),
        Suggestion(f"model.aspect_ratios=[{ratios}]", "height to width, by the same k-means"),
    ]


def _batch_and_length(
    num_images: int, pixels: float, recipe: Recipe | None, *, stream: bool
) -> list[Suggestion]:
    most = min(_PIXELS_OF_BATCH / pixels, num_images / _MIN_BATCHES, _MAX_BATCH)
    batch = max(_MIN_BATCH, 2 ** math.floor(math.log2(most)))
    epochs = min(max(math.ceil(_STEPS_OF_PICTURES / num_images), _MIN_EPOCHS), _MAX_EPOCHS)
    steps = math.ceil(epochs * num_images / batch)
    length = f"schedule.steps={steps}" if stream else f"schedule.epochs={epochs}"
    found = [
        Suggestion(f"data.batch_size={batch}", f"for one GPU with 16 GB, {num_images} images"),
        Suggestion(length, f"{steps} steps" if not stream else f"{epochs} epochs"),
    ]
    if recipe is not None and recipe.optimizer.name == "sgd" and batch != recipe.data.batch_size:
        rate = recipe.optimizer.lr * batch / recipe.data.batch_size
        reason = f"that of the recipe times {batch}/{recipe.data.batch_size}, as the batch"
        found.append(Suggestion(f"optimizer.lr={rate:.3g}", reason))
    return found


def _imbalance(annotations: AnnotationSet, detector: str, advice: list[str]) -> None:
    labels = annotations.images.labels
    counts = np.bincount(labels, minlength=len(annotations.classes) + 1)[1:]
    missing = [n for n, count in zip(annotations.classes.names, counts, strict=True) if not count]
    if missing:
        shown = ", ".join(missing[:5])
        shown += f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        advice.append(f"Classes without an object in training: {shown}.")
    used = counts[counts > 0]
    if len(used) and used.max() >= _MAX_IMBALANCE * used.min():
        key = "model.localizer.class_weights=balanced"
        key = key if detector == "localizer" else "training.class_weights=auto"
        advice.append(
            f"The most frequent class has {used.max() / used.min():.0f} times the objects of the "
            f"rarest: {key} gives rare ones more weight."
        )


def levels_of(recipe: Recipe) -> list[tuple[float, ...]] | None:
    """Return the default anchor sizes of each level of a recipe's model.

    Args:
        recipe: The recipe.

    Returns:
        The sizes in pixels; None for models without anchors.

    Raises:
        UserError: The model section contradicts itself.
    """
    if recipe.model.detector != "faster_rcnn":
        return None
    from rcnn_ext.models.from_config import build_model

    config = dataclasses.replace(recipe.model, anchor_sizes=None, aspect_ratios=None)
    model: Any = build_model(config, 2, pretrained=False)
    return list(model.rpn.anchor_generator.sizes)
