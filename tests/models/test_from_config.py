from __future__ import annotations

import dataclasses
import inspect

import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from rcnn_ext import models
from rcnn_ext.config import LocalizerConfig, ModelConfig
from rcnn_ext.errors import UserError
from rcnn_ext.models import backbones
from rcnn_ext.models.from_config import build_model

pytestmark = pytest.mark.usefixtures("one_thread")


def config(**changes):
    options = {"backbone": "resnet18", "pool_size": 2, "min_size": 64, "max_size": 64}
    return ModelConfig(**{**options, **changes})


def batch():
    generator = torch.Generator().manual_seed(0)
    images = [torch.rand(3, 64, 64, generator=generator) for _ in range(2)]
    target = {
        "boxes": torch.tensor([[5.0, 5.0, 40.0, 50.0], [30.0, 20.0, 60.0, 60.0]]),
        "labels": torch.tensor([1, 2]),
    }
    return images, [target, target]


def test_every_option_reaches_the_model():
    model = build_model(
        config(
            box_score_thresh=0.123,
            rpn_nms_thresh=0.456,
            rpn_pre_nms_top_n_test=77,
            box_batch_size_per_image=33,
            anchor_sizes=[8, 16, 32, 64, 128],
            aspect_ratios=[1.0],
            class_agnostic=True,
            image_mean=[0.1, 0.2, 0.3],
            fixed_size=(48, 96),
        ),
        num_classes=4,
    )
    assert model.roi_heads.score_thresh == 0.123
    assert model.rpn.nms_thresh == 0.456
    assert model.roi_heads.box_predictor.cls_score.out_features == 4
    assert model.roi_heads.box_predictor.bbox_pred.out_features == 4
    assert model.rpn.head.cls_logits.out_channels == 1
    assert list(model.transform.image_mean) == [0.1, 0.2, 0.3]
    transformed, _ = model.transform([torch.rand(3, 64, 64)])
    assert tuple(transformed.image_sizes[0]) == (96, 48)


def test_localizers_have_the_same_defaults_in_recipes_and_in_python():
    parameters = inspect.signature(models.Localizer).parameters
    defaults = dataclasses.asdict(LocalizerConfig())
    assert defaults == {name: parameters[name].default for name in defaults}


def fetched(monkeypatch):
    """Replaces the download by random weights of the right shapes."""
    asked = []

    def fetch(weights, **options):
        asked.append(weights)
        return backbones.torchvision.models.get_model("resnet18").state_dict()

    monkeypatch.setattr(backbones, "fetch_state_dict", fetch)
    return asked


def test_without_weights_everything_learns_whatever_the_recipe_freezes():
    model = build_model(config(trainable_layers=1), num_classes=2)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def test_with_weights_layers_freeze_and_a_checkpoint_needs_no_download(monkeypatch):
    asked = fetched(monkeypatch)
    wanted = config(weights_backbone="DEFAULT", trainable_layers=1)
    model = build_model(wanted, num_classes=2)
    assert len(asked) == 1
    learning = {
        name.split(".")[2]
        for name, parameter in model.named_parameters()
        if name.startswith("backbone.body") and parameter.requires_grad
    }
    assert learning == {"layer4"}
    assert any(isinstance(module, FrozenBatchNorm2d) for module in model.modules())

    again = build_model(wanted, num_classes=2, pretrained=False)
    assert len(asked) == 1
    again.load_state_dict(model.state_dict())


def test_a_failed_download_says_how_to_go_on_without(monkeypatch):
    def fetch(*arguments, **options):
        raise UserError("the download failed")

    monkeypatch.setattr(backbones, "fetch_state_dict", fetch)
    with pytest.raises(UserError, match=r"the download failed.*model\.weights_backbone=null"):
        build_model(config(weights_backbone="DEFAULT"), num_classes=2)
    with pytest.raises(UserError, match="there are no weights 'NICE'"):
        build_model(config(weights_backbone="NICE"), num_classes=2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "resnet19"}, "there is no backbone 'resnet19'"),
        ({"returned_layers": [9]}, "returned_layers of resnet18 must be"),
        ({"anchor_sizes": [8, 16]}, "anchor_sizes has 2 levels"),
        ({"checkpoint_stages": ["layer9"]}, "checkpoint_stages has 'layer9', but .* layer4"),
    ],
)
def test_options_that_do_not_fit_are_user_errors(changes, message):
    with pytest.raises(UserError, match=message):
        build_model(config(**changes), num_classes=2)


def losses_gradients_and_statistics(model):
    torch.manual_seed(1)
    images, targets = batch()
    losses = model.train()(images, targets)
    sum(losses.values()).backward()
    return (
        {name: value.detach() for name, value in losses.items()},
        {name: p.grad for name, p in model.named_parameters()},
        {name: value.clone() for name, value in model.named_buffers()},
    )


def test_checkpointed_stages_change_nothing_but_memory():
    plain = build_model(config(), num_classes=3)
    saving = build_model(config(checkpoint_stages=["layer3", "layer4"]), num_classes=3)
    saving.load_state_dict(plain.state_dict())
    runs = []
    handle = saving.backbone.body["layer3"][0].conv1.register_forward_hook(
        lambda *arguments: runs.append(1)
    )
    for expected, actual in zip(
        losses_gradients_and_statistics(plain),
        losses_gradients_and_statistics(saving),
        strict=True,
    ):
        torch.testing.assert_close(actual, expected)
    assert len(runs) == 2, "forward, and again in the backward pass"
    handle.remove()
    # Evaluation does not checkpoint, and both still agree.
    images, _ = batch()
    for expected, actual in zip(plain.eval()(images), saving.eval()(images), strict=True):
        torch.testing.assert_close(actual, expected)


def test_channels_last_changes_the_layout_only():
    plain = build_model(config(), num_classes=3).eval()
    other = build_model(config(channels_last=True), num_classes=3).eval()
    other.load_state_dict(plain.state_dict())
    weight = other.backbone.body["layer1"][0].conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    images, _ = batch()
    for expected, actual in zip(plain(images), other(images), strict=True):
        assert actual["boxes"].shape == expected["boxes"].shape
        torch.testing.assert_close(actual["scores"], expected["scores"], atol=1e-4, rtol=1e-3)


def test_a_localizer_takes_its_own_section_and_names_what_it_has_not():
    options = {"detector": "localizer", "backbone": "cnn", "fixed_size": (48, 32), "dropout": 0.1}
    model = build_model(ModelConfig(**options, pool_size=2), num_classes=3)
    assert (model.alpha, model.pool_size) == (0.5, 2)
    transformed, _ = model.transform([torch.rand(3, 64, 64)])
    assert tuple(transformed.image_sizes[0]) == (32, 48)
    with pytest.raises(UserError, match=r"a localizer has no model\.rpn_nms_thresh"):
        build_model(ModelConfig(**options, rpn_nms_thresh=0.5), num_classes=3)


def test_fast_rcnn_gets_its_options_and_refuses_those_of_the_rpn():
    options = {"detector": "fast_rcnn", "box_bg_iou_low": 0.1, "head": "mlp"}
    model = build_model(config(**options), num_classes=3)
    assert model.roi_heads.bg_iou_low == 0.1
    with pytest.raises(UserError, match="rpn_nms_thresh"):
        build_model(config(**options, rpn_nms_thresh=0.5), num_classes=3)
