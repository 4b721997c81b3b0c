"""Behavior of Faster R-CNN beyond its parity with torchvision, and bad input."""

from __future__ import annotations

import contextlib
import copy
import pickle

import pytest
import torch
from torch import nn

from rcnn_ext import models, ops

OPTIONS = {
    "min_size": 96,
    "max_size": 128,
    "rpn_pre_nms_top_n_train": 300,
    "rpn_post_nms_top_n_train": 100,
    "rpn_pre_nms_top_n_test": 200,
    "rpn_post_nms_top_n_test": 50,
    "box_batch_size_per_image": 16,
}


@pytest.fixture(scope="module")
def shared_model():
    torch.manual_seed(0)
    return models.faster_rcnn("resnet18", num_classes=4, **OPTIONS)


@pytest.fixture
def model(shared_model):
    return copy.deepcopy(shared_model)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("neck", ["fpn", "c4"])
def test_bfloat16_autocast(make_batch, training, neck):
    model = models.faster_rcnn("resnet18", num_classes=4, neck=neck, **OPTIONS).train(training)
    model.roi_heads.score_thresh = 0.0
    images, targets = make_batch([(96, 120), (90, 96)], [2, 1], 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = model(images, targets)
    if training:
        assert all(loss.isfinite() and loss.dtype == torch.float32 for loss in result.values())
        sum(result.values()).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    else:
        for found in result:
            assert len(found["boxes"]) > 0
            assert all(value.isfinite().all() for value in found.values())
            assert found["boxes"].dtype == found["scores"].dtype == torch.float32


def test_whole_model_in_bfloat16(model, make_batch):
    images, _ = make_batch([(96, 120)], [0], 4)
    model.roi_heads.score_thresh = 0.0
    with torch.no_grad():
        (found,) = model.bfloat16().eval()([images[0].bfloat16()])
    assert len(found["boxes"]) > 0
    assert found["boxes"].dtype == torch.float32
    assert found["boxes"].isfinite().all()


def test_nothing_to_sample_is_a_loss_of_zero(model, make_batch):
    # Every anchor and proposal between the thresholds: neither positive nor negative.
    images, targets = make_batch([(96, 96)], [1], 4)
    for matcher in (model.rpn.proposal_matcher, model.roi_heads.proposal_matcher):
        matcher.high_threshold, matcher.low_threshold = 1.1, -1.0
        matcher.allow_low_quality_matches = False
    losses = model.train()(images, targets)
    assert {name: loss.item() for name, loss in losses.items()} == dict.fromkeys(losses, 0.0)
    sum(losses.values()).backward()
    assert all(p.grad is not None and (p.grad == 0).all() for p in model.parameters())


@pytest.mark.parametrize("part", ["rpn.head.bbox_pred", "rpn.head.cls_logits"])
def test_nan_proposals_are_dropped(model, make_batch, part):
    images, targets = make_batch([(96, 96)], [2], 4)
    model.get_submodule(part).bias.data.fill_(float("nan"))
    with torch.no_grad():
        (found,) = model.eval()(images)
    assert len(found["boxes"]) == 0
    # The second stage goes on with the objects alone; the RPN's own loss shows the fault.
    losses = model.train()(images, targets)
    assert losses["loss_classifier"].isfinite()
    assert losses["loss_box_reg"].isfinite()
    assert not (losses["loss_objectness"] + losses["loss_rpn_box_reg"]).isfinite()


def test_nan_detections_are_dropped(model, make_batch):
    images, _ = make_batch([(96, 96)], [0], 4)
    model.roi_heads.score_thresh = 0.0
    model.roi_heads.box_predictor.bbox_pred.bias.data[8] = float("nan")  # x of class 2
    with torch.no_grad():
        (found,) = model.eval()(images)
    assert set(found["labels"].tolist()) == {1, 3}
    assert found["boxes"].isfinite().all()


def test_detector_does_not_train_the_proposals(model, make_batch):
    images, targets = make_batch([(96, 96)], [2], 4)
    batch, targets = model.train().transform(images, targets)
    proposals, losses = model.rpn(batch, model.backbone(batch.tensors), targets)
    assert not proposals[0].requires_grad
    assert losses["loss_rpn_box_reg"].requires_grad


def test_images_of_a_batch_do_not_influence_each_other(model, make_batch):
    # The last one is so flat that its height says little about the strides.
    images, _ = make_batch([(96, 128), (96, 96), (30, 110)], [0, 0, 0], 4)
    model.eval()
    model.roi_heads.score_thresh = 0.0
    model.transform.size_divisible = 128  # One padded size, alone and together.
    with torch.no_grad():
        together = model(images)
        apart = [model([image])[0] for image in images]
    for one, other in zip(together, apart, strict=True):
        assert len(one["boxes"]) > 20
        torch.testing.assert_close(one["boxes"], other["boxes"], atol=1e-2, rtol=1e-4)
        torch.testing.assert_close(one["scores"], other["scores"], atol=1e-5, rtol=1e-4)


def test_overfits_one_image():
    torch.manual_seed(1)
    model = models.faster_rcnn(
        "resnet18",
        num_classes=3,
        anchor_sizes=(16, 32, 48, 64, 96),
        **{**OPTIONS, "box_batch_size_per_image": 32},
    ).train()
    image = torch.zeros(3, 96, 96)
    image[0, 8:48, 8:48] = 1
    image[2, 40:88, 56:88] = 1
    boxes = torch.tensor([[8.0, 8, 48, 48], [56, 40, 88, 88]])
    # Two different images, so that live batch norm has something to normalize.
    images = [image, image.flip(2)]
    flipped = torch.stack((96 - boxes[:, 2], boxes[:, 1], 96 - boxes[:, 0], boxes[:, 3]), dim=1)
    targets = [{"boxes": b, "labels": torch.tensor([1, 2])} for b in (boxes, flipped)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.005, momentum=0.9)
    losses = []
    for _ in range(14):
        loss = sum(model(images, targets).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-3:]) / 3 < 0.4 * losses[0]


def test_copies(model, make_batch):
    images, _ = make_batch([(96, 120)], [0], 4)
    model.eval()
    model.roi_heads.score_thresh = 0.0
    with torch.no_grad():
        (expected,) = model(images)
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            (found,) = other(images)
            assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_without_kernels_the_reference_gives_the_same(model, make_batch):
    images, targets = make_batch([(96, 120), (80, 96)], [2, 1], 4)
    model.roi_heads.score_thresh = 0.0
    results = []
    for context in (contextlib.nullcontext(), ops.use_backend("reference")):
        with context:
            torch.manual_seed(1)
            losses = copy.deepcopy(model).train()(images, targets)
            with torch.no_grad():
                results.append((losses, model.eval()(images)))
    (losses, found), (expected_losses, expected) = results
    torch.testing.assert_close(losses, expected_losses)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-4)


def test_inputs_are_not_changed(model, make_batch):
    images, targets = make_batch([(80, 120), (90, 70)], [2, 1], 4)
    targets[0]["masks"] = torch.ones(2, 80, 120)
    before = copy.deepcopy((images, targets))
    model.train()(images, targets)
    model.eval()(images, targets)
    for image, other in zip(images, before[0], strict=True):
        assert torch.equal(image, other)
    for target, other in zip(targets, before[1], strict=True):
        assert target.keys() == other.keys()
        assert all(torch.equal(target[name], other[name]) for name in target)


class TestBuilder:
    def test_default_anchors_are_8_strides(self):
        model = models.faster_rcnn("resnet18", num_classes=2)
        assert model.rpn.anchor_generator.sizes == ((32,), (64,), (128,), (256,), (512,))

    @pytest.mark.parametrize(
        ("options", "sizes"),
        [
            ({"anchor_sizes": (8, 16, 32, 64, 128)}, ((8,), (16,), (32,), (64,), (128,))),
            ({"anchor_sizes": ((8, 10),) * 5}, ((8, 10),) * 5),
            ({"neck": "c4"}, ((32, 64, 128, 256, 512),)),
            ({"neck": "c4", "anchor_sizes": (16, 64)}, ((16, 64),)),
            ({"returned_layers": (2, 3, 4)}, ((64,), (128,), (256,), (512,))),
        ],
        ids=str,
    )
    def test_anchor_sizes(self, options, sizes):
        model = models.faster_rcnn("resnet18", num_classes=2, **options)
        assert model.rpn.anchor_generator.sizes == sizes

    @pytest.mark.parametrize(
        "options",
        [
            {"neck": "c4"},
            {"neck": "c4", "head": "mlp", "pooler": "pool", "class_agnostic": True},
            {"backbone": "mobilenet_v3_large", "returned_layers": (1, 2, 3, 5)},
            {"dropout": 0.5, "norm_layer": "frozen", "trainable_layers": 2},
            {"aspect_ratios": (1.0,), "pool_size": 5, "sampling_ratio": 0},
        ],
        ids=str,
    )
    def test_builds_run(self, options, make_batch):
        torch.manual_seed(0)
        options = {"backbone": "resnet18", **OPTIONS, **options}
        model = models.faster_rcnn(num_classes=3, **options)
        images, targets = make_batch([(96, 96), (64, 100)], [2, 1], 3)
        losses = model.train()(images, targets)
        sum(losses.values()).backward()
        assert all(loss.isfinite() and loss > 0 for loss in losses.values())
        model.roi_heads.score_thresh = 0.0
        with torch.no_grad():
            found = model.eval()(images)
        assert all(0 < len(f["boxes"]) <= 100 and f["boxes"].isfinite().all() for f in found)

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"neck": "c6"}, ValueError, "neck must be"),
            ({"anchor_sizes": (32, 64)}, ValueError, r"2 levels, the backbone 5 \(strides 4, 8"),
            ({"anchor_sizes": ()}, ValueError, "0 levels"),
            ({"anchor_sizes": ((8,), (8,), (8, 9), (8,), (8,))}, ValueError, "same number"),
            ({"backbone": "vgg16"}, ValueError, "no backbone 'vgg16'"),
            ({"num_classes": 1}, ValueError, "at least 2"),
            ({"rpn_nms_threshold": 0.5}, TypeError, "no option 'rpn_nms_threshold'"),
            ({"rpn_fg_iou_thresh": 0.2}, ValueError, "must not exceed the foreground"),
        ],
        ids=str,
    )
    def test_bad_options(self, options, error, message):
        with pytest.raises(error, match=message):
            models.faster_rcnn(**{"backbone": "resnet18", "num_classes": 3, **options})

    def test_classes_and_predictor_exclude_each_other(self, model):
        predictor = models.FastRCNNPredictor(1024, 3)
        with pytest.raises(ValueError, match="either num_classes or box_predictor"):
            models.FasterRCNN(model.backbone, 3, box_predictor=predictor)
        with pytest.raises(ValueError, match="either num_classes or box_predictor"):
            models.FasterRCNN(model.backbone)
        models.FasterRCNN(model.backbone, box_predictor=predictor)


GOOD = {"boxes": torch.tensor([[1.0, 2.0, 30.0, 40.0]]), "labels": torch.tensor([1])}


class TestBadInput:
    @pytest.mark.parametrize(
        "box",
        [
            [10.0, 10.0, 10.0, 20.0],
            [10.0, 10.0, 20.0, 5.0],
            [10.0, float("nan"), 20.0, 25.0],
            [10.0, 10.0, float("inf"), 25.0],
        ],
    )
    @pytest.mark.parametrize("training", [True, False])
    def test_degenerate_box_is_named(self, model, box, training):
        images = [torch.rand(3, 50, 60)] * 3  # Resized, but named as it was given.
        bad = {"boxes": torch.tensor([[1.0, 2.0, 30.0, 40.0], box]), "labels": torch.tensor([1, 1])}
        with pytest.raises(ValueError, match=r"targets\[2\]\['boxes'\]\[1\] is \[10.0, ") as caught:
            model.train(training)(images, [GOOD, GOOD, bad])
        assert str(torch.tensor(box).tolist()) in str(caught.value)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"boxes": torch.zeros(0)}, r"\['boxes'\] has shape \[0\]; expected \[number of"),
            ({"boxes": torch.zeros(1, 5)}, r"\['boxes'\] has shape \[1, 5\]"),
            ({"boxes": torch.ones(1, 4, dtype=torch.int64)}, r"\['boxes'\] has dtype torch.int64"),
            ({"boxes": [[0.0, 0.0, 1.0, 1.0]]}, r"\['boxes'\] is a list; expected a tensor"),
            ({"labels": torch.tensor([1, 2])}, r"\['labels'\] has shape \[2\]; expected \[1\]"),
            ({"labels": torch.tensor([1.0])}, r"\['labels'\] has dtype torch.float32"),
            ({"labels": torch.tensor([1], dtype=torch.int32)}, "dtype torch.int32; expected int64"),
            ({"labels": torch.tensor([0])}, r"contains 0; labels of a model with 4 classes run"),
            ({"labels": torch.tensor([4])}, r"contains 4; .* from 1 to 3"),
            ({"labels": torch.tensor([-1])}, "contains -1"),
        ],
    )
    def test_malformed_target_is_named(self, model, change, message):
        images = [torch.rand(3, 50, 60)] * 2
        with pytest.raises(ValueError, match=r"targets\[1\]" + ".*" + message):
            model.train()(images, [GOOD, {**GOOD, **change}])

    def test_missing_entries(self, model):
        images = [torch.rand(3, 50, 60)]
        with pytest.raises(ValueError, match=r"targets\[0\] has no 'labels'"):
            model.train()(images, [{"boxes": GOOD["boxes"]}])
        with pytest.raises(ValueError, match="targets must be given in training mode"):
            model.train()(images)
        with pytest.raises(ValueError, match="1 images but 2 targets"):
            model.train()(images, [GOOD, GOOD])

    @pytest.mark.parametrize(
        ("image", "message"),
        [
            (torch.rand(50, 60), r"images\[1\] has shape \[50, 60\]; expected \[3, height, width"),
            (torch.rand(1, 50, 60), r"images\[1\] has shape \[1, 50, 60\]"),
            (torch.rand(3, 0, 60), r"images\[1\] has shape \[3, 0, 60\]"),
            (torch.zeros(3, 50, 60, dtype=torch.uint8), r"images\[1\] has dtype torch.uint8"),
            ("image.jpg", r"images\[1\] is a str"),
        ],
        ids=("no channels", "gray", "no height", "bytes", "a path"),
    )
    def test_malformed_image_is_named(self, model, image, message):
        with pytest.raises(ValueError, match=message):
            model.eval()([torch.rand(3, 50, 60), image])

    def test_no_images(self, model):
        with pytest.raises(ValueError, match="images is empty"):
            model.eval()([])

    def test_predictor_with_a_wrong_number_of_boxes(self, model):
        class Odd(nn.Module):
            def forward(self, x):
                return x[:, :4], x[:, :12]

        model.roi_heads.box_predictor = Odd()
        with pytest.raises(ValueError, match="4 classes and 3 boxes per RoI"):
            model.eval()([torch.rand(3, 50, 60)])

    def test_rpn_head_that_does_not_fit_the_anchors(self, model):
        model.rpn.head = models.RPNHead(256, num_anchors=2)
        with pytest.raises(ValueError, match="numbers of anchors per position differ"):
            model.eval()([torch.rand(3, 50, 60)])
