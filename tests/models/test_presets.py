"""Presets: torchvision's architectures and checkpoints, and the ones that it has not."""

from __future__ import annotations

import pytest
import torch
import torchvision.models.detection as tv
from torch import nn
from torchvision.models import get_model_weights, resnet50

from rcnn_ext import models
from rcnn_ext.errors import UserError

SHARED = (
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
    "fasterrcnn_mobilenet_v3_large_fpn",
    "fasterrcnn_mobilenet_v3_large_320_fpn",
)
OWN = (
    "fasterrcnn_resnet50_c4",
    "fasterrcnn_resnet50_c5_roipool",
    "fastrcnn_resnet50_fpn",
    "fastrcnn_resnet50_c4",
)
# Everything about a detector that is a plain number, and what torchvision calls it where we do.
NUMBERS = (
    "transform.min_size",
    "transform.max_size",
    "rpn._pre_nms_top_n",
    "rpn._post_nms_top_n",
    "rpn.nms_thresh",
    "rpn.score_thresh",
    "rpn.anchor_generator.sizes",
    "rpn.anchor_generator.aspect_ratios",
    "roi_heads.score_thresh",
    "roi_heads.nms_thresh",
    "roi_heads.detections_per_img",
)


def value(model, path):
    for name in path.split("."):
        model = getattr(model, name)
    return model


def on_meta(build, **options):
    """Build a model whose weights take neither time nor memory."""
    with torch.device("meta"):
        return build(weights_backbone=None, **options)


def shapes(model):
    return {name: (tuple(v.shape), v.dtype) for name, v in model.state_dict().items()}


@pytest.mark.parametrize("name", SHARED)
@pytest.mark.parametrize("num_classes", [None, 7])
def test_state_dict_is_torchvisions(name, num_classes):
    ours = on_meta(getattr(models, name), num_classes=num_classes)
    theirs = on_meta(getattr(tv, name), weights=None, num_classes=num_classes)
    assert shapes(ours) == shapes(theirs)
    # The state of an optimizer, in a checkpoint, goes by the order of the parameters.
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]
    for path in NUMBERS:
        assert value(ours, path) == value(theirs, path), path


@pytest.mark.parametrize("name", SHARED)
@pytest.mark.parametrize("trainable", [None, 0, 2])
def test_pretrained_detector_loads_and_freezes_as_torchvisions(monkeypatch, name, trainable):
    published = on_meta(getattr(tv, name), weights=None).state_dict()
    loaded = []

    def load(url, *args, **kwargs):
        loaded.append(url)
        # With torch.device("meta") around, loading copies shapes only; strictness stays.
        return dict(published)

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", load)
    options = {"weights": "DEFAULT", "trainable_backbone_layers": trainable}
    with torch.device("meta"):
        ours = getattr(models, name)(**options)
        kind = get_model_weights(name)
        theirs = getattr(tv, name)(**{**options, "weights": kind.DEFAULT})
    assert loaded[0] == loaded[1] == kind.DEFAULT.url
    assert [(n, p.requires_grad) for n, p in ours.named_parameters()] == [
        (n, p.requires_grad) for n, p in theirs.named_parameters()
    ]
    norms = [
        {
            type(m).__name__.removeprefix("Folded")
            for m in model.modules()
            if "BatchNorm" in type(m).__name__
        }
        for model in (ours, theirs)
    ]
    assert norms[0] == norms[1]


@pytest.mark.parametrize("name", SHARED)
def test_same_seed_makes_the_same_weights(name):
    # Down to the order in which the parts are initialized.
    models_made = []
    for library in (models, tv):
        torch.manual_seed(3)
        models_made.append(getattr(library, name)(weights=None, weights_backbone=None))
    ours, theirs = (model.state_dict() for model in models_made)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("name", SHARED)
def test_offline(monkeypatch, name):
    def fail(*args, **kwargs):
        raise OSError("Name or service not known")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fail)
    build = getattr(models, name)
    with pytest.raises(UserError, match="download of .*COCO.* failed .* or pass weights=None"):
        build(weights="DEFAULT")
    with pytest.raises(UserError, match="download of .*IMAGENET.* pass weights_backbone=None"):
        build()
    with pytest.raises(UserError) as caught:
        build(weights="COCO_V9")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", OWN)
def test_own_presets_say_what_they_are(name):
    model = on_meta(getattr(models, name), num_classes=5)
    assert isinstance(model, models.FasterRCNN if "faster" in name else models.FastRCNN)
    assert model.roi_heads.box_predictor.cls_score.out_features == 5
    pooler, head = model.roi_heads.box_roi_pool, model.roi_heads.box_head
    if "fpn" in name:
        assert pooler.featmap_names == ["0", "1", "2", "3"]
    elif "c4" in name:
        assert pooler.operator.spatial_scale == 1 / 16
        assert isinstance(head, models.Res5Head)
        assert pooler.output_size == (14, 14)
        # The stride of layer4 is back where He et al. have it: it works on 7x7.
        assert head.stage.layer4[0].downsample[0].stride == (2, 2)
    else:
        assert pooler.operator.spatial_scale == 1 / 32
        assert type(pooler.operator).__name__ == "RoIPool"
        assert head.fc6.in_features == 2048 * 49
    if hasattr(model, "rpn") and "fpn" not in name:
        assert model.rpn.anchor_generator.sizes == ((32, 64, 128, 256, 512),)
        assert model.rpn.pre_nms_top_n() == 12000


@pytest.mark.parametrize("name", OWN)
def test_own_presets_start_from_a_pretrained_backbone(monkeypatch, name):
    asked = []

    def load(url, *args, **kwargs):
        asked.append(url)
        with torch.device("meta"):
            return resnet50().state_dict()

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", load)
    with torch.device("meta"):
        model = getattr(models, name)(num_classes=3, trainable_backbone_layers=1)
    assert len(asked) == 1
    learning = {
        n.split(".")[2]
        for n, p in model.backbone.named_parameters(prefix="b")
        if p.requires_grad and ".body." in n
    }
    assert learning == (set() if "c4" in name else {"layer4"})
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())


def test_options_pass_through_presets():
    model = on_meta(
        models.fasterrcnn_resnet50_c5_roipool,
        num_classes=3,
        class_agnostic=True,
        dropout=0.5,
        rpn_post_nms_top_n_test=77,
        checkpoint_stages=("layer3",),
    )
    assert model.roi_heads.box_predictor.bbox_pred.out_features == 4
    assert model.roi_heads.box_head.dropout == 0.5
    assert model.rpn._post_nms_top_n["testing"] == 77


def test_unused_trainable_layers_warn():
    with pytest.warns(UserWarning, match="no effect without weights"):
        model = on_meta(models.fasterrcnn_resnet50_c4, trainable_backbone_layers=1)
    assert all(parameter.requires_grad for parameter in model.parameters())
