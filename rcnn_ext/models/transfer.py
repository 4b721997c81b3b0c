"""Weights of one detector in another: what fits is loaded, the rest starts new."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rcnn_ext.models.channels import adapt_channels

_PREDICTOR = "roi_heads.box_predictor."
_MAX_SHOWN = 4
# Counters, which are no weights; frozen batch norms have none.
_COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class SourceWeights:
    """The weights of a detector, by the names of the models here.

    Attributes:
        name: The source, for messages.
        tensors: The state dict.
        class_names: The class of each row of the classifier, the background first; "" for a row
            without a class; None where they are unknown.
        image_mean: Mean of each channel that the first convolution expects, of images in [0, 1];
            None where it is unknown.
        image_std: Standard deviation of each channel, likewise.
        options: Options of the model that the weights were trained with and that no tensor shows,
            by their keys in the section ``model`` of a recipe.
    """

    name: str
    tensors: Mapping[str, Tensor]
    class_names: Sequence[str] | None = None
    image_mean: Sequence[float] | None = None
    image_std: Sequence[float] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Transfer:
    """The result of loading weights into a model: tensors by name, with a line for each.

    Attributes:
        loaded: Tensors taken as they are.
        adapted: Tensors of which a part was taken, or in another form.
        new: Tensors that start new.
        unused: Tensors of the source that the model has no place for.
        classes: Names of the classes whose rows of the classifier were taken.
    """

    loaded: dict[str, str] = field(default_factory=dict)
    adapted: dict[str, str] = field(default_factory=dict)
    new: dict[str, str] = field(default_factory=dict)
    unused: dict[str, str] = field(default_factory=dict)
    classes: list[str] = field(default_factory=list)

    def summary(self) -> list[str]:
        """Return a few lines for people: the numbers, and the first tensors that do not fit."""
        lines = [
            f"{len(self.loaded)} tensors loaded, {len(self.adapted)} adapted, {len(self.new)} "
            f"new, {len(self.unused)} unused"
        ]
        if self.classes:
            lines.append(f"classes taken over by name: {', '.join(self.classes)}")
        for kind in ("adapted", "new", "unused"):
            texts = list(getattr(self, kind).values())
            more = f", and {len(texts) - _MAX_SHOWN} more" if len(texts) > _MAX_SHOWN else ""
            if texts:
                lines.append(f"{kind}: {', '.join(texts[:_MAX_SHOWN])}{more}")
        return lines

    def table(self) -> str:
        """Return all tensors, one per line."""
        return "".join(
            f"{kind:8}{text}\n"
            for kind in ("loaded", "adapted", "new", "unused")
            for text in getattr(self, kind).values()
        )


@torch.no_grad()
def load_fitting(
    model: nn.Module, source: SourceWeights, class_names: Sequence[str] | None = None
) -> Transfer:
    """Load the weights that fit into a model, in place; the others keep their initial values.

    The first convolution is adapted to other channels and to another normalization of the images.
    Where the names of the classes are known on both sides, the rows of the classifier and of the
    boxes are taken by name, whatever their order, and the others start new.

    Args:
        model: A detector.
        source: The weights.
        class_names: Names of the classes of the model, without the background.

    Returns:
        What became of each tensor.
    """
    tensors = dict(source.tensors)
    state = model.state_dict()
    first = next(
        (name for name, value in state.items() if name.startswith("backbone.") and value.ndim == 4),
        None,
    )
    if first is not None:
        _match_normalization(tensors, first, source, model)
    rows = _rows_by_name(source.class_names, class_names)
    report = Transfer()
    for name, target in state.items():
        value = tensors.pop(name, None)
        if name.endswith(_COUNTER):
            if value is not None:
                target.copy_(value)
            continue
        shape = list(target.shape)
        if value is None:
            report.new[name] = f"{name} {shape}"
            continue
        given = list(value.shape)
        difference = f"{name} {shape} from {given}"
        if name.startswith(_PREDICTOR) and rows is not None:
            if "bbox_pred" in name and given == shape and shape[0] == 4:  # for all classes
                target.copy_(value)
                report.loaded[name] = f"{name} {shape}"
            elif _copy_rows(target, value, rows, source.class_names, class_names):
                report.adapted[name] = difference
            else:
                report.new[name] = difference
        elif given == shape:
            target.copy_(value)
            report.loaded[name] = f"{name} {shape}"
        elif name == first and given[1] == 3 and [given[0], *given[2:]] == [shape[0], *shape[2:]]:
            target.copy_(adapt_channels(value, shape[1]))
            report.adapted[name] = difference
        else:
            report.new[name] = difference
    if rows and f"{_PREDICTOR}cls_score.weight" in report.adapted:
        assert class_names is not None
        report.classes = [class_names[target - 1] for target in rows if target > 0]
    if rows is not None and _is_identity(rows, source.class_names, class_names):
        # Nothing was left out or moved.
        for name in list(report.adapted):
            if name.startswith(_PREDICTOR):
                del report.adapted[name]
                report.loaded[name] = f"{name} {list(state[name].shape)}"
        report.classes = []
    report.unused = {
        name: f"{name} {list(value.shape)}"
        for name, value in tensors.items()
        if not name.endswith(_COUNTER)
    }
    return report


def _normalized(name: str) -> str:
    return " ".join(name.replace("_", " ").replace("-", " ").casefold().split())


def _rows_by_name(
    source: Sequence[str] | None, target: Sequence[str] | None
) -> dict[int, int] | None:
    """Return the source's row for each row that both have; None where names are unknown.

    The background, row 0, is among them where any class is.
    """
    if source is None or target is None:
        return None
    places = {_normalized(name): row for row, name in enumerate(source) if row > 0 and name}
    rows = {
        row: places[_normalized(name)]
        for row, name in enumerate(target, start=1)
        if _normalized(name) in places
    }
    return {0: 0, **rows} if rows else {}


def _is_identity(
    rows: dict[int, int], source: Sequence[str] | None, target: Sequence[str] | None
) -> bool:
    assert source is not None
    assert target is not None
    same = all(row == other for row, other in rows.items())
    return same and len(rows) == len(target) + 1 == len(source)


def _copy_rows(
    target: Tensor,
    value: Tensor,
    rows: dict[int, int],
    source_names: Sequence[str] | None,
    class_names: Sequence[str] | None,
) -> bool:
    """Copy the rows of some classes; return whether that was possible."""
    assert source_names is not None
    assert class_names is not None
    per_class, remainder = divmod(len(target), len(class_names) + 1)
    fits = (
        bool(rows)
        and remainder == 0
        and len(value) == per_class * len(source_names)
        and value.shape[1:] == target.shape[1:]
    )
    if fits:
        ours = target.unflatten(0, (-1, per_class))
        theirs = value.unflatten(0, (-1, per_class))
        for row, other in rows.items():
            ours[row] = theirs[other]
    return fits


def _match_normalization(
    tensors: dict[str, Tensor], first: str, source: SourceWeights, model: nn.Module
) -> None:
    """Let the first convolution expect images as the model normalizes them, in place.

    With x the image, it expects (x - mean) / std of the source, and gets (x - mean) / std of the
    model: another scale, which goes into the weights, and another shift, which goes into its bias
    or into the mean of the batch norm after it. At the border of an image the shift is that of
    zero padding, and differs.
    """
    transform: Any = getattr(model, "transform", None)
    weight = tensors.get(first)
    if weight is None or transform is None or source.image_mean is None or source.image_std is None:
        return
    mean, std = list(transform.image_mean), list(transform.image_std)
    if len(mean) != weight.shape[1] or len(source.image_mean) != len(mean):
        return
    if (mean, std) == (list(source.image_mean), list(source.image_std)):
        return
    wide = weight.double()
    ours = torch.tensor([mean, std], dtype=torch.float64)
    theirs = torch.tensor([list(source.image_mean), list(source.image_std)], dtype=torch.float64)
    tensors[first] = (wide * (ours[1] / theirs[1]).reshape(1, -1, 1, 1)).to(weight.dtype)
    # [C_out]: the response to what the source would have seen where the model sees 0.
    shift = wide.sum(dim=(2, 3)) @ ((ours[0] - theirs[0]) / theirs[1])
    bias = first.removesuffix("weight") + "bias"
    norm = _norm_after(first) + ".running_mean"
    for name, sign in ((bias, 1), (norm, -1)):
        if name in tensors:
            tensors[name] = (tensors[name].double() + sign * shift).to(tensors[name].dtype)
            return


def _norm_after(convolution: str) -> str:
    """Return the name of the batch norm after the first convolution of torchvision's networks."""
    parent, _, child = convolution.removesuffix(".weight").rpartition(".")
    return f"{parent}.{int(child) + 1}" if child.isdigit() else f"{parent}.bn1"
