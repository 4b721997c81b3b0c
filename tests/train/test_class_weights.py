"""Weights of rare classes in the classification loss of the box head."""

from __future__ import annotations

import copy
import csv
import dataclasses
import types

import numpy as np
import pytest
import torch
from torch.nn import functional as F

pytest.importorskip("lightning", reason="lightning comes with the extra train")

from rcnn_ext import models
from rcnn_ext.cli import main
from rcnn_ext.config import load_recipe
from rcnn_ext.data.splits import open_split
from rcnn_ext.errors import UserError
from rcnn_ext.models.roi_heads import set_class_weights
from rcnn_ext.train.resolve import with_class_weights


@pytest.fixture
def annotations(tiny_run):
    recipe = load_recipe("faster_rcnn_synthetic", tiny_run.overrides)
    return open_split(recipe.data, tiny_run.data, "train")


def resolved(annotations, weights, **model):
    recipe = load_recipe("faster_rcnn_synthetic")
    recipe.training.class_weights = weights
    recipe.model = dataclasses.replace(recipe.model, **model)
    lines = []
    weights = with_class_weights(recipe, annotations, lines.append).training.class_weights
    return weights, lines


def test_loss():
    model = models.faster_rcnn("resnet18", num_classes=3, min_size=64, max_size=64, pool_size=2)
    logits, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 2, 1])
    deltas, targets = torch.zeros(6, 3, 4), torch.zeros(6, 4)
    names = set(model.state_dict())
    plain = model.roi_heads.compute_loss(logits, deltas, labels, targets)["loss_classifier"]
    torch.testing.assert_close(plain, F.cross_entropy(logits, labels))
    set_class_weights(model, [0.5, 4.0])
    found = model.roi_heads.compute_loss(logits, deltas, labels, targets)["loss_classifier"]
    each = F.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(found, (each * torch.tensor([1, 0.5, 4, 1, 4, 0.5])).mean())
    assert set(model.state_dict()) == names, "checkpoints stay what they were"
    with pytest.raises(ValueError, match="above 0"):
        set_class_weights(model, [0.0, 1.0])


def test_automatic_weights(annotations):
    weights, (line,) = resolved(annotations, "auto")
    counts = np.bincount(annotations.images.labels, minlength=4)[1:]
    assert (weights * counts).sum() / counts.sum() == pytest.approx(1, abs=1e-5)
    assert weights[0] / weights[1] == pytest.approx((counts[1] / counts[0]) ** 0.5, rel=1e-4)
    assert line.startswith("training.class_weights=auto: circle ")


def test_automatic_weights_are_limited_and_classes_without_objects_are_harmless(annotations):
    changed = copy.copy(annotations)
    labels = np.repeat([1, 2], [100_000, 1])
    object.__setattr__(changed, "images", types.SimpleNamespace(labels=labels))
    weights, _ = resolved(changed, "auto")
    assert weights[1] / weights[0] == pytest.approx(10, rel=1e-3)
    assert weights[2] == 1


def test_given_weights(annotations):
    assert resolved(annotations, {"square": 3.0})[0] == [1.0, 3.0, 1.0]
    assert resolved(annotations, [1.0, 2.0, 3.0])[0] == [1.0, 2.0, 3.0]
    assert resolved(annotations, None)[0] is None
    with pytest.raises(UserError, match="has 2 weights for 3 classes: circle, square, triangle"):
        resolved(annotations, [1.0, 2.0])
    with pytest.raises(UserError, match="has 'squares'; the classes are circle"):
        resolved(annotations, {"squares": 3.0})
    with pytest.raises(UserError, match=r"a localizer has model\.localizer\.class_weights"):
        resolved(annotations, "auto", detector="localizer")
    for bad in ("[0, 1, 1]", "{square: -1}"):
        with pytest.raises(UserError, match=r"training\.class_weights must be greater than 0"):
            load_recipe("faster_rcnn_synthetic", [f"training.class_weights={bad}"])
    with pytest.raises(UserError, match=r"class_weights must be a list .* or auto or null"):
        load_recipe("faster_rcnn_synthetic", ["training.class_weights=often"])


def test_a_run_uses_and_stores_them(tiny_run, tmp_path):
    out = tmp_path / "out"
    arguments = ["train", "faster_rcnn_synthetic", "--data", str(tiny_run.data), "--out", str(out)]
    arguments += ["--max-steps", "1", *tiny_run.overrides, "evaluation.val_every=0"]
    assert main([*arguments, "training.class_weights=[50, 50, 60]"]) == 0
    assert load_recipe(str(out / "recipe.yaml")).training.class_weights == [50, 50, 60]
    weighted, plain = (
        next(csv.DictReader((folder / "losses.csv").open())) for folder in (out, tiny_run.out)
    )
    assert float(weighted["loss_classifier"]) > 2 * float(plain["loss_classifier"])
    assert weighted["loss_box_reg"] == plain["loss_box_reg"]
