"""Equal weights and seeds give torchvision's losses, gradients and detections."""

from __future__ import annotations

import copy

import pytest
import torch
import torchvision.models.detection as tv
from torch import nn
from torchvision.models import ResNet50_Weights, resnet50
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.rpn import AnchorGenerator as TorchvisionAnchors
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops import MultiScaleRoIAlign as TorchvisionRoIAlign

from rcnn_ext import models

NUM_CLASSES = 5
OPTIONS = {
    "min_size": 96,
    "max_size": 128,
    "rpn_pre_nms_top_n_train": 400,
    "rpn_post_nms_top_n_train": 200,
    "rpn_pre_nms_top_n_test": 300,
    "rpn_post_nms_top_n_test": 100,
    "box_batch_size_per_image": 64,
    "box_detections_per_img": 40,
}
FEW_PROPOSALS = {"rpn_post_nms_top_n_train": 50, "rpn_post_nms_top_n_test": 20}
# Images of one batch: sizes and numbers of objects.
BATCHES = {
    "one image": ([(96, 96)], [3]),
    "mixed sizes, one image without objects": ([(100, 150), (140, 128), (60, 70)], [2, 0, 9]),
    "no objects at all": ([(96, 80), (90, 128)], [0, 0]),
}


def make_decided(model: nn.Module) -> None:
    """Set a new model to varied predictions and batch norm statistics that suit evaluation.

    A new model gives every box nearly the same scores and deltas: then whether suppression, score
    threshold and order are right would not show.
    """
    generator = torch.Generator().manual_seed(7)
    images = [torch.rand(3, 96, 96, generator=generator) for _ in range(2)]
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    outputs: dict[nn.Module, list[torch.Tensor]] = {}
    predictor = model.roi_heads.box_predictor
    with torch.no_grad():
        for norm in norms:
            norm.momentum = 1.0
        model.backbone.train()(torch.stack(images))
        for norm in norms:
            norm.momentum = 0.1
        model.eval()
        for layers, spread in (
            ((model.rpn.head.cls_logits, model.rpn.head.bbox_pred), (1.5, 0.3)),
            ((predictor.cls_score, predictor.bbox_pred), (2.5, 1.0)),
        ):
            # The detector's predictions depend on the proposals, so the RPN comes first.
            outputs.clear()
            hooks = [
                layer.register_forward_hook(
                    lambda layer, _, output: outputs.setdefault(layer, []).append(output)
                )
                for layer in layers
            ]
            model(images)
            for hook in hooks:
                hook.remove()
            for layer, deviation in zip(layers, spread, strict=True):
                channels = [out.transpose(0, 1).flatten(1) for out in outputs[layer]]
                values = torch.cat(channels, dim=1)  # [channels, positions]
                gain = deviation / values.std(dim=1)
                layer.bias.copy_((layer.bias - values.mean(dim=1)) * gain)
                layer.weight.mul_(gain.view(-1, *[1] * (layer.weight.dim() - 1)))


def assert_same_detections(ours, theirs, *, least: int = 0):
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.keys() == other.keys()
        assert len(mine["boxes"]) >= least
        assert torch.equal(mine["labels"], other["labels"])
        torch.testing.assert_close(mine["scores"], other["scores"], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(mine["boxes"], other["boxes"], rtol=1e-4, atol=1e-3)


def assert_same_losses(ours, theirs):
    assert list(ours) == list(theirs)
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-7)


def assert_same_training(ours, theirs, images, targets):
    """Losses and the gradients of all parameters, with one seed for what is drawn."""
    results = []
    for model in (ours, theirs):
        model.train()
        torch.manual_seed(11)
        losses = model(images, targets)
        sum(losses.values()).backward()
        # torchvision's loss_objectness is float32 whatever the model is.
        results.append({name: loss.double() for name, loss in losses.items()})
    assert_same_losses(*results)
    assert all(torch.isfinite(loss) for loss in results[0].values())
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        gradient, other = parameter.grad, expected[name].grad
        scale = other.abs().max().item()
        torch.testing.assert_close(
            gradient, other, rtol=1e-3, atol=1e-4 * scale + 1e-9, msg=lambda m, n=name: f"{n}: {m}"
        )
    return results[0]


@pytest.fixture(scope="module")
def new_pair():
    """Both libraries' ResNet-18 FPN detectors, newly made from one seed."""

    def make(**changes):
        options = {**OPTIONS, **changes}
        torch.manual_seed(3)
        theirs = tv.FasterRCNN(
            resnet_fpn_backbone(
                backbone_name="resnet18",
                weights=None,
                norm_layer=nn.BatchNorm2d,
                trainable_layers=5,
            ),
            NUM_CLASSES,
            **options,
        )
        ours = models.faster_rcnn("resnet18", num_classes=NUM_CLASSES, **options)
        ours.load_state_dict(theirs.state_dict(), strict=True)
        return ours, theirs

    return make


@pytest.mark.parametrize("batch", BATCHES)
def test_training(new_pair, make_batch, batch):
    images, targets = make_batch(*BATCHES[batch], NUM_CLASSES)
    losses = assert_same_training(*new_pair(), images, targets)
    if any(BATCHES[batch][1]):
        assert all(loss > 0 for loss in losses.values())


@pytest.mark.parametrize(
    ("batch", "score_thresh"),
    [("one image", 0.05), *((batch, 0.4) for batch in list(BATCHES)[1:])],
)
def test_evaluation(new_pair, make_batch, batch, score_thresh):
    images, targets = make_batch(*BATCHES[batch], NUM_CLASSES)
    ours, theirs = new_pair(box_score_thresh=score_thresh)
    make_decided(theirs)
    ours.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        actual, expected = ours.eval()(images), theirs.eval()(images)
        assert_same_detections(actual, expected, least=3)
        # Targets are allowed in evaluation, and ignored.
        assert_same_detections(ours(images, targets), expected)


def test_several_min_sizes_draw_alike(new_pair, make_batch):
    images, targets = make_batch([(128, 128)] * 3, [2, 2, 2], NUM_CLASSES)
    ours, theirs = new_pair(min_size=(64, 96, 128))
    results = []
    for model in (ours, theirs):
        model.train()
        torch.manual_seed(2)
        results.append(model(images, targets))
    assert_same_losses(*results)


def test_double_precision(new_pair, make_batch):
    images, targets = make_batch([(96, 96)], [3], NUM_CLASSES)
    images = [image.double() for image in images]
    targets = [{**target, "boxes": target["boxes"].double()} for target in targets]
    ours, theirs = new_pair(min_size=96)
    ours, theirs = ours.double().train(), theirs.double().train()
    torch.manual_seed(4)
    losses = ours(images, targets)
    torch.manual_seed(4)
    # torchvision's loss_objectness is float32 whatever the model is.
    assert_same_losses(losses, {name: v.double() for name, v in theirs(images, targets).items()})
    assert losses["loss_box_reg"].dtype == torch.float64


def test_parts_of_torchvision_fit_in(new_pair, make_batch):
    images, _ = make_batch([(100, 128)], [0], 3)
    ours, theirs = new_pair()
    anchors = TorchvisionAnchors(((16,), (32,), (64,), (96,), (128,)), ((0.5, 1.0, 2.0),) * 5)
    ours = models.FasterRCNN(
        ours.backbone,
        NUM_CLASSES,
        rpn_anchor_generator=anchors,
        box_roi_pool=TorchvisionRoIAlign(["0", "1", "2", "3"], 7, 2),
        **OPTIONS,
    )
    ours.load_state_dict(theirs.state_dict())
    theirs.rpn.anchor_generator = anchors
    # The usual way to change the number of classes of a pretrained model.
    for model in (ours, theirs):
        torch.manual_seed(9)
        features = model.roi_heads.box_predictor.cls_score.in_features
        model.roi_heads.box_predictor = FastRCNNPredictor(features, 3)
        make_decided(model)
    with torch.no_grad():
        assert_same_detections(ours(images), theirs(images), least=3)


@pytest.fixture(scope="module")
def pair():
    """Both libraries' ResNet-50 FPN detectors, each newly made from the same seed."""
    options = {"weights": None, "weights_backbone": None, "num_classes": NUM_CLASSES, **OPTIONS}
    torch.manual_seed(0)
    theirs = tv.fasterrcnn_resnet50_fpn(**options)
    torch.manual_seed(0)
    return models.fasterrcnn_resnet50_fpn(**options), theirs


class TestResNet50:
    def test_same_seed_makes_the_same_model(self, pair):
        ours, theirs = (model.state_dict() for model in pair)
        assert list(ours) == list(theirs)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)

    def test_parameters_come_in_the_same_order(self, pair):
        # The state of an optimizer, in a checkpoint, goes by this order.
        ours, theirs = ([name for name, _ in model.named_parameters()] for model in pair)
        assert ours == theirs

    def test_state_dicts_load_both_ways(self, pair):
        ours, theirs = copy.deepcopy(pair)
        ours.load_state_dict(theirs.state_dict(), strict=True)
        theirs.load_state_dict(ours.state_dict(), strict=True)

    def test_training_and_evaluation(self, pair, make_batch):
        images, targets = make_batch([(100, 150), (128, 90)], [3, 0], NUM_CLASSES)
        losses, detections = [], []
        ours, theirs = copy.deepcopy(pair)
        make_decided(theirs)
        ours.load_state_dict(theirs.state_dict())
        for model in (ours, theirs):
            with torch.no_grad():
                detections.append(model.eval()(images))
                torch.manual_seed(1)
                losses.append(model.train()(images, targets))
        assert_same_losses(*losses)
        assert_same_detections(*detections, least=3)

    def test_unused_trainable_layers_warn(self):
        with pytest.warns(UserWarning, match="no effect without weights"):
            model = models.fasterrcnn_resnet50_fpn(
                weights_backbone=None, trainable_backbone_layers=1
            )
        assert all(parameter.requires_grad for parameter in model.parameters())
        assert model.roi_heads.box_predictor.cls_score.out_features == 91


@pytest.fixture
def published(monkeypatch):
    """Stands in for the download of weights; a test fills in url part -> state dict."""
    files: dict[str, dict[str, torch.Tensor]] = {}

    def load(url, *args, **kwargs):
        (found,) = [state for part, state in files.items() if part in url]
        return dict(found)

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", load)
    return files


@pytest.mark.parametrize("trainable", [None, 0, 1, 5])
def test_pretrained_backbone(published, trainable):
    torch.manual_seed(1)
    published["resnet50-"] = resnet50().state_dict()
    options = {
        "weights_backbone": ResNet50_Weights.IMAGENET1K_V1,
        "num_classes": 3,
        "trainable_backbone_layers": trainable,
    }
    torch.manual_seed(2)
    ours = models.fasterrcnn_resnet50_fpn(**options)
    torch.manual_seed(2)
    theirs = tv.fasterrcnn_resnet50_fpn(**options)
    state = theirs.state_dict()
    assert list(ours.state_dict()) == list(state)
    assert all(torch.equal(value, state[name]) for name, value in ours.state_dict().items())
    assert [(n, p.requires_grad) for n, p in ours.named_parameters()] == [
        (n, p.requires_grad) for n, p in theirs.named_parameters()
    ]
    assert isinstance(ours.backbone.body["bn1"], FrozenBatchNorm2d)


def test_published_detector(published):
    torch.manual_seed(1)
    theirs = tv.fasterrcnn_resnet50_fpn(weights_backbone=None)
    # As in the published file: the RPN's convolution under its old name, batch norms without
    # counters.
    published["fasterrcnn_resnet50_fpn_coco"] = {
        name.replace("rpn.head.conv.0.0.", "rpn.head.conv."): value
        for name, value in theirs.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    ours = models.fasterrcnn_resnet50_fpn(weights="COCO_V1")
    expected = tv.fasterrcnn_resnet50_fpn(weights=FasterRCNN_ResNet50_FPN_Weights.COCO_V1)
    state = expected.state_dict()
    assert list(ours.state_dict()) == list(state)
    assert all(torch.equal(value, state[name]) for name, value in ours.state_dict().items())
    assert [(n, p.requires_grad) for n, p in ours.named_parameters()] == [
        (n, p.requires_grad) for n, p in expected.named_parameters()
    ]
    norms = [layer for layer in ours.modules() if isinstance(layer, FrozenBatchNorm2d)]
    assert len(norms) == 53
    assert {norm.eps for norm in norms} == {0.0}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        # Its box head costs by far the most.
        ("fasterrcnn_resnet50_fpn_v2", {"box_batch_size_per_image": 8, **FEW_PROPOSALS}),
        ("fasterrcnn_mobilenet_v3_large_fpn", {"rpn_score_thresh": 0.7}),
        ("fasterrcnn_mobilenet_v3_large_320_fpn", {"rpn_score_thresh": 0.7}),
    ],
)
def test_other_presets(make_batch, name, options):
    options = {"weights_backbone": None, "num_classes": NUM_CLASSES, **OPTIONS, **options}
    torch.manual_seed(6)
    theirs = getattr(tv, name)(weights=None, **options)
    make_decided(theirs)
    ours = getattr(models, name)(**options)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    images, targets = make_batch([(100, 150), (128, 90)], [3, 1], NUM_CLASSES)
    with torch.no_grad():
        assert_same_detections(ours.eval()(images), theirs.eval()(images), least=3)
    # In double: through fifty live batch norms a change of 1e-6 in the first weights changes
    # float32 gradients by a sixth.
    images = [image.double() for image in images]
    targets = [{**target, "boxes": target["boxes"].double()} for target in targets]
    assert_same_training(ours.double(), theirs.double(), images, targets)
