"""Options of the builders: necks, custom backbones, frozen stages, targets."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict

import pytest
import torch
from torch import nn

from rcnn_ext import models
from rcnn_ext.models import BoxCoder, presets
from rcnn_ext.models.backbones import build_c5_backbone
from rcnn_ext.models.feature_maps import measure_feature_maps

SIZES = {"min_size": 96, "max_size": 160}
PROPOSALS = {
    "rpn_pre_nms_top_n_train": 300,
    "rpn_post_nms_top_n_train": 100,
    "rpn_pre_nms_top_n_test": 200,
    "rpn_post_nms_top_n_test": 50,
    "box_batch_size_per_image": 16,
}


class TwoMaps(nn.Module):
    """A backbone of the user, which says nothing about itself."""

    def __init__(self, channels: tuple[int, int] = (8, 8)) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, channels[0], 3, stride=4, padding=1), nn.ReLU())
        self.next = nn.Sequential(nn.Conv2d(*channels, 3, stride=2, padding=1), nn.ReLU())

    def forward(self, images):
        fine = self.stem(images)
        return OrderedDict(fine=fine, coarse=self.next(fine))


def one_map() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 3, stride=8, padding=1), nn.ReLU())


@pytest.mark.parametrize(
    ("name", "channels"), [("resnet18", 512), ("resnet50", 2048), ("mobilenet_v3_large", 960)]
)
def test_c5_is_the_whole_network(name, channels):
    backbone = build_c5_backbone(name)
    assert measure_feature_maps(backbone) == {"0": (channels, 32.0)}
    assert backbone.out_channels == channels


@pytest.mark.parametrize(
    "options",
    [
        {"neck": "c5", "pooler": "pool", "pool_size": 3},
        {"neck": "c5", "pool_size": 3, "class_agnostic": True, "dropout": 0.3},
        {"backbone": one_map()},
        {"backbone": one_map(), "pooler": "pool", "pool_size": 3},
        {"backbone": TwoMaps()},
        {"backbone": TwoMaps((8, 12)), "neck": "fpn"},
    ],
    ids=["c5 pool", "c5 align", "one map", "one map, pool", "two maps", "two maps, pyramid"],
)
def test_detectors_run(options, make_batch, make_boxes):
    options = {"backbone": "resnet18", "num_classes": 3, **SIZES, **copy.deepcopy(options)}
    images, targets = make_batch([(96, 96), (64, 100)], [2, 1], 3)
    proposals = [make_boxes(20, 96, 96), make_boxes(9, 64, 100)]
    detectors = (
        (models.faster_rcnn(**options, **PROPOSALS), ()),
        (models.fast_rcnn(**copy.deepcopy(options), box_batch_size_per_image=8), (proposals,)),
    )
    for model, extra in detectors:
        losses = model.train()(images, *extra, targets)
        sum(losses.values()).backward()
        assert all(loss.isfinite() and loss > 0 for loss in losses.values())
        assert all(p.grad is not None for p in model.parameters())
        model.roi_heads.score_thresh = 0.0
        with torch.no_grad():
            found = model.eval()(images, *extra)
        assert all(0 < len(f["boxes"]) <= 100 and f["boxes"].isfinite().all() for f in found)


def test_anchors_and_scales_of_a_user_backbone_are_measured():
    model = models.faster_rcnn(one_map(), num_classes=2)
    assert model.roi_heads.box_roi_pool.operator.spatial_scale == 1 / 8
    assert model.backbone.out_channels == 6
    model = models.faster_rcnn(TwoMaps((8, 12)), num_classes=2, neck="fpn")
    assert model.rpn.anchor_generator.sizes == ((32,), (64,), (128,))
    assert model.roi_heads.box_roi_pool.featmap_names == ["fine", "coarse"]


@pytest.mark.parametrize(
    ("backbone", "options", "message"),
    [
        (one_map(), {"neck": "c4"}, "neck='c4' cuts a backbone by name"),
        (one_map(), {"trainable_layers": 2}, "are for backbones by name"),
        (one_map(), {"weights_backbone": "DEFAULT"}, "are for backbones by name"),
        (one_map(), {"head": "res5"}, "goes with a backbone by name"),
        (TwoMaps(), {"pooler": "pool"}, "goes with pooler='align', got pooler='pool'"),
        (TwoMaps((8, 12)), {}, r"have \[8, 12\] channels"),
    ],
)
def test_options_that_do_not_fit_a_user_backbone(backbone, options, message):
    for build in (models.fast_rcnn, models.faster_rcnn):
        with pytest.raises(ValueError, match=message):
            build(copy.deepcopy(backbone), num_classes=2, **options)


@pytest.mark.parametrize("frozen", [0, 3, 5])
def test_frozen_stages_get_no_gradient(frozen, make_batch):
    model = models.faster_rcnn(
        "resnet18",
        num_classes=3,
        trainable_layers=5 - frozen,
        norm_layer="frozen",
        **SIZES,
        **PROPOSALS,
    ).train()
    images, targets = make_batch([(96, 96)], [2], 3)
    sum(model(images, targets).values()).backward()
    stages = ["conv1", "layer1", "layer2", "layer3", "layer4"]
    learning = {
        name.split(".")[2]
        for name, parameter in model.named_parameters()
        if name.startswith("backbone.body") and parameter.grad is not None
    }
    assert learning == set(stages[frozen:])
    assert all(p.grad is not None for p in model.backbone.fpn.parameters())


class TestBoxTargets:
    def test_hand_computed_case(self):
        coder = BoxCoder((2.0, 1.0, 1.0, 4.0), means=(0.25, 0.5, 0.0, -1.0))
        anchor = torch.tensor([[0.0, 0.0, 20.0, 40.0]])
        gt = torch.tensor([[-5.0, 0.0, 35.0, 40.0]])
        # Plain deltas: 1/4, 0, log 2, 0.
        expected = torch.tensor([[0.0, -0.5, 2.0, 4.0]])
        expected[0, 2] = torch.tensor(2.0).log()
        torch.testing.assert_close(coder.encode(gt, anchor), expected)
        torch.testing.assert_close(coder.decode(expected, anchor), gt)

    def test_bad_means(self):
        with pytest.raises(ValueError, match="box target means must be four finite numbers"):
            BoxCoder(means=(0.0, float("nan"), 0.0, 0.0))

    @pytest.mark.parametrize("build", [models.fast_rcnn, models.faster_rcnn])
    def test_reach_the_second_stage_only(self, build):
        model = build(
            "resnet18",
            num_classes=2,
            bbox_target_means=(0.0, 0.1, 0.2, 0.3),
            bbox_target_stds=(0.5, 0.5, 0.25, 0.25),
        )
        assert model.roi_heads.box_coder.weights == (2.0, 2.0, 4.0, 4.0)
        assert model.roi_heads.box_coder.means == (0.0, 0.1, 0.2, 0.3)
        if hasattr(model, "rpn"):
            assert model.rpn.box_coder.means == (0.0,) * 4

    def test_normalized_targets_are_the_default(self):
        plain = models.fast_rcnn("resnet18", num_classes=2)
        named = models.fast_rcnn("resnet18", num_classes=2, bbox_target_stds=(0.1, 0.1, 0.2, 0.2))
        assert plain.roi_heads.box_coder.weights == named.roi_heads.box_coder.weights

    def test_zero_prediction_is_the_mean_target(self, make_boxes):
        model = models.fast_rcnn("resnet18", num_classes=2, bbox_target_means=(0.5, 0, 0, 0))
        proposals = [make_boxes(3, 96, 96)]
        logits = torch.tensor([[0.0, 1.0]]).expand(3, -1)
        model.roi_heads.nms_thresh = 1.0
        (found,) = model.roi_heads.postprocess_detections(
            logits, torch.zeros(3, 1, 4), proposals, [(1000, 1000)]
        )
        boxes = proposals[0].clone()
        boxes[:, [0, 2]] += 0.5 * (boxes[:, 2] - boxes[:, 0])[:, None]
        torch.testing.assert_close(found["boxes"], boxes)


class TestCheckpointing:
    STAGES = ("layer2", "layer4")

    def make(self, **options):
        torch.manual_seed(0)
        return models.fast_rcnn("resnet18", num_classes=3, box_batch_size_per_image=8, **options)

    def run(self, model, make_batch, make_boxes):
        images, targets = make_batch([(96, 96)], [2], 3)
        torch.manual_seed(5)
        losses = model.train()(images, [make_boxes(20, 96, 96)], targets)
        sum(losses.values()).backward()
        return losses, {n: p.grad for n, p in model.named_parameters()}, dict(model.named_buffers())

    def test_nothing_changes_but_memory(self, make_batch, make_boxes):
        # layer4 lies in the head of a c4 model.
        plain, saving = self.make(**SIZES), self.make(checkpoint_stages=self.STAGES, **SIZES)
        assert list(plain.state_dict()) == list(saving.state_dict())
        runs = []
        for stage in (saving.backbone.body.layer2, saving.roi_heads.box_head.stage.layer4):
            stage[0].conv1.register_forward_hook(lambda *_: runs.append(1))
        expected = self.run(plain, make_batch, make_boxes)
        torch.testing.assert_close(self.run(saving, make_batch, make_boxes), expected)
        assert len(runs) == 4, "forward, and again in the backward pass"

    def test_a_copy_runs_its_own_stages(self, make_batch, make_boxes):
        model = self.make(checkpoint_stages=self.STAGES, **SIZES)
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            self.run(other, make_batch, make_boxes)
            assert all(p.grad is not None for p in other.parameters())
        assert all(p.grad is None for p in model.parameters())


def test_options_make_torchvisions_second_version():
    options = {"weights_backbone": None, "num_classes": 91}
    preset = presets.fasterrcnn_resnet50_fpn_v2(**options)
    built = models.faster_rcnn(
        "resnet50",
        **options,
        norm_layer="batch",
        head="conv",
        fpn_batch_norm=True,
        rpn_conv_depth=2,
    )
    expected = {name: value.shape for name, value in preset.state_dict().items()}
    assert {name: value.shape for name, value in built.state_dict().items()} == expected


def test_heads_refuse_what_they_have_not():
    with pytest.raises(ValueError, match="head='conv' has no dropout"):
        models.faster_rcnn("resnet18", num_classes=2, head="conv", dropout=0.5)
    with pytest.raises(ValueError, match="fpn_batch_norm is for neck='fpn'"):
        models.faster_rcnn("resnet18", num_classes=2, neck="c4", fpn_batch_norm=True)
    with pytest.raises(TypeError, match="has no anchors, got rpn_conv_depth"):
        models.fast_rcnn("resnet18", num_classes=2, rpn_conv_depth=2)
