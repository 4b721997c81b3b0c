"""torchvision's five families of detectors: equal answers with and without acceleration."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import rcnn_ext
from rcnn_ext.bench.model_cases import detection_error
from rcnn_ext.errors import UserError
from tests.accelerate import detectors


@pytest.fixture(scope="module", params=sorted(detectors.MAKERS))
def plain(request: pytest.FixtureRequest) -> tuple[Any, Any, Any, Any]:
    """A detector, its detections, losses and gradients by torchvision alone."""
    model = detectors.make(request.param)
    found = detectors.detect(model)
    assert all(len(image["boxes"]) >= 5 for image in found)
    losses, gradients = detectors.losses_and_gradients(model)
    # Batch norm has learned meanwhile.
    return request.param, found, losses, gradients


def test_operators_leave_detections(plain: Any) -> None:
    name, found, _, _ = plain
    with rcnn_ext.accelerate():
        again = detectors.detect(detectors.make(name))
    for mine, other in zip(again, found, strict=True):
        assert torch.equal(mine["labels"], other["labels"])
        torch.testing.assert_close(mine["scores"], other["scores"], atol=1e-5, rtol=0)
        torch.testing.assert_close(mine["boxes"], other["boxes"], atol=1e-3, rtol=0)
        if "masks" in other:
            torch.testing.assert_close(mine["masks"], other["masks"], atol=1e-4, rtol=0)


def test_operators_leave_a_training_step(plain: Any) -> None:
    name, _, losses, gradients = plain
    model = detectors.make(name)
    detectors.detect(model)
    with rcnn_ext.accelerate():
        mine, my_gradients = detectors.losses_and_gradients(model)
    assert mine == pytest.approx(losses, rel=1e-4)
    assert my_gradients.keys() == gradients.keys()
    for parameter, gradient in gradients.items():
        error = (my_gradients[parameter] - gradient).norm() / gradient.norm().clamp(min=1e-6)
        assert error < 1e-2, parameter


def test_models_find_the_same(plain: Any) -> None:
    name, found, losses, _ = plain
    model = detectors.make(name)
    with rcnn_ext.accelerate(level="models"):
        again = detectors.detect(model)
        mine, gradients = detectors.losses_and_gradients(model)
    assert detection_error(again, found) < 1e-3
    assert [len(image["boxes"]) for image in again] == [len(image["boxes"]) for image in found]
    # Another order of equal scores draws another random sample.
    assert mine == pytest.approx(losses, rel=0.1)
    assert all(gradient.isfinite().all() for gradient in gradients.values())


def test_a_model_is_fused_in_place() -> None:
    model = detectors.make("retinanet")
    found = detectors.detect(model)
    report = rcnn_ext.accelerate(model)
    assert "Conv2d" in str(report)
    again = detectors.detect(model)
    assert detection_error(again, found) < 1e-3
    assert rcnn_ext.accelerate.status().level is None


@pytest.mark.parametrize("options", [{"level": "models"}, {"exact": False}])
def test_options_of_operators_are_not_for_models(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="level and exact are for torchvision's operators"):
        rcnn_ext.accelerate(torch.nn.Linear(2, 2), **options)
