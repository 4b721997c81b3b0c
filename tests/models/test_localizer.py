from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from rcnn_ext import models, ops

SMALL = {"image_size": 64, "hidden_channels": 32, "num_classes": 3}


def batch(sizes=((48, 64), (100, 80), (64, 64))):
    generator = torch.Generator().manual_seed(0)
    images = [torch.rand(3, *size, generator=generator) for size in sizes]
    targets = [
        {
            "boxes": torch.tensor([[0.25 * w, 0.125 * h, 0.75 * w, 0.5 * h]]),
            "labels": torch.tensor([1 + i % 2]),
        }
        for i, (h, w) in enumerate(sizes)
    ]
    return images, targets


class Fixed(nn.Module):
    """A head that answers the same whatever it sees."""

    def __init__(self, values):
        super().__init__()
        self.values = torch.tensor(values)

    def forward(self, x):
        return self.values.expand(len(x), -1)


def fixed_model(logits=(0.0, 2.0), box=(0.25, 0.125, 0.75, 0.5), **options):
    options = {"sigmoid_boxes": False, **SMALL, **options}
    model = models.localizer("cnn", **options)
    model.class_head, model.box_head = Fixed(logits), Fixed(box)
    return model


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"activation": "relu", "box_loss": "giou", "sigmoid_boxes": False},
        {"backbone": "resnet18", "batch_norm": False, "class_weights": (1.0, 3.0)},
        {"backbone": "resnet18_fpn", "image_size": (64, 96)},
        {"backbone": "mobilenet_v3_large", "pool_size": 1},
        {"backbone": nn.Conv2d(3, 5, 3, stride=4)},
    ],
    ids=str,
)
def test_contract(options):
    model = models.localizer(**{**SMALL, **copy.deepcopy(options)})
    images, targets = batch()
    losses = model.train()(images, targets)
    assert set(losses) == {"loss_classifier", "loss_box_reg"}
    assert all(loss.isfinite() and loss > 0 for loss in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters())
    with torch.no_grad():
        found = model.eval()(images)
    for image, answer in zip(images, found, strict=True):
        assert {k: tuple(v.shape) for k, v in answer.items()} == {
            "boxes": (1, 4),
            "labels": (1,),
            "scores": (1,),
        }
        (x1, y1, x2, y2), (height, width) = answer["boxes"][0].tolist(), image.shape[1:]
        assert 0 <= x1 <= x2 <= width
        assert 0 <= y1 <= y2 <= height
        assert answer["labels"].item() in (1, 2)
        assert 0.5 <= answer["scores"].item() <= 1


def test_boxes_are_in_pixels_of_the_original_image():
    images, targets = batch()
    for answer, target in zip(fixed_model().eval()(images), targets, strict=True):
        torch.testing.assert_close(answer["boxes"], target["boxes"])
        assert answer["labels"].tolist() == [2]
        torch.testing.assert_close(answer["scores"], torch.tensor([2.0]).sigmoid())


def test_wild_boxes_are_ordered_and_clipped():
    ((answer,),) = (fixed_model(box=(1.5, 0.9, -0.5, 0.1)).eval()([torch.rand(3, 50, 80)]),)
    torch.testing.assert_close(answer["boxes"], torch.tensor([[0.0, 5.0, 80.0, 45.0]]))


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
def test_losses_by_hand(alpha):
    # Two images of class 1 and one of class 2; logits say class 2 with odds of e^2.
    images, targets = batch(((64, 64), (64, 64), (32, 96)))
    for target, label in zip(targets, (1, 1, 2), strict=True):
        target["labels"] = torch.tensor([label])
    model = fixed_model(box=(0.5, 0.125, 0.75, 0.5), alpha=alpha, class_weights=(3.0, 1.0))
    losses = model.train()(images, targets)
    wrong, right = -(torch.tensor([0.0, 2.0]).log_softmax(0))
    # The mean of the weighted terms is over the sum of the weights.
    cross_entropy = (3 * wrong + 3 * wrong + right) / 7
    torch.testing.assert_close(losses["loss_classifier"], (1 - alpha) * cross_entropy)
    # One of four coordinates is off by a quarter.
    torch.testing.assert_close(losses["loss_box_reg"], torch.tensor(alpha * 0.25**2 / 4))


def test_giou_loss_by_hand():
    images, targets = batch(((64, 64), (64, 64)))
    targets[0]["boxes"] = targets[1]["boxes"] = torch.tensor([[0.0, 0.0, 32.0, 64.0]])
    # The other half: no overlap, nothing around the two, GIoU 0; corners swapped on purpose.
    model = fixed_model(box=(1.0, 1.0, 0.5, 0.0), alpha=1.0, box_loss="giou")
    assert model.train()(images, targets)["loss_box_reg"].item() == pytest.approx(1.0)
    model.box_head = Fixed((0.0, 0.0, 0.5, 1.0))
    assert model(images, targets)["loss_box_reg"].item() == pytest.approx(0.0, abs=1e-6)


def test_sigmoid_keeps_boxes_inside():
    model = fixed_model(box=(-50.0, 0.0, 50.0, 3.0), sigmoid_boxes=True)
    (answer,) = model.eval()([torch.rand(3, 100, 200)])
    expected = torch.tensor([[0.0, 50.0, 200.0, 100 * torch.tensor(3.0).sigmoid()]])
    torch.testing.assert_close(answer["boxes"], expected)


@pytest.mark.parametrize(("box_loss", "sigmoid"), [("mse", True), ("giou", False)])
def test_overfits(box_loss, sigmoid):
    torch.manual_seed(0)
    images, targets = [], []
    for i in range(8):
        image = torch.zeros(3, 64, 64)
        x, y = 4 + 5 * (i % 4), 6 + 4 * i
        image[i % 2, y : y + 24, x : x + 32] = 1
        images.append(image)
        box = torch.tensor([[float(x), y, x + 32, y + 24]]).clamp(max=64)
        targets.append({"boxes": box, "labels": torch.tensor([1 + i % 2])})
    model = models.localizer(
        "cnn", box_loss=box_loss, sigmoid_boxes=sigmoid, dropout=0.0, **SMALL
    ).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.003)
    for _ in range(60):
        optimizer.zero_grad()
        sum(model(images, targets).values()).backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        found = model(images)
    overlaps = [
        ops.box_iou(a["boxes"], t["boxes"]).item() for a, t in zip(found, targets, strict=True)
    ]
    assert [a["labels"].item() for a in found] == [t["labels"].item() for t in targets]
    assert sum(overlaps) / len(overlaps) > 0.7


def test_he_initialization():
    torch.manual_seed(0)
    model = models.localizer("cnn", num_classes=3)
    for number, fan_out in enumerate((32, 64, 128, 256), start=1):
        weight = getattr(model.backbone, f"block{number}")[0].weight
        assert weight.std().item() == pytest.approx((2 / (fan_out * 9)) ** 0.5, rel=0.1)


def test_frozen_and_checkpointed_stages():
    model = models.localizer(
        "resnet18", trainable_layers=1, checkpoint_stages=("layer4",), norm_layer="frozen", **SMALL
    )
    images, targets = batch()
    sum(model.train()(images, targets).values()).backward()
    learning = {
        n.split(".")[2] for n, p in model.named_parameters() if p.grad is not None and ".body." in n
    }
    assert learning == {"layer4"}


def test_bfloat16_autocast():
    model = models.localizer("cnn", **SMALL)
    images, targets = batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model.train()(images, targets)
        assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
        (first, *_) = model.eval()(images)
    assert first["boxes"].dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long()}, r"targets\[1\] has 0 box"),
        (
            {"boxes": torch.tensor([[1.0, 1, 9, 9]] * 2), "labels": torch.tensor([1, 1])},
            r"targets\[1\] has 2 boxes; a localizer finds exactly one",
        ),
        ({"labels": torch.tensor([3])}, r"targets\[1\]\['labels'\] contains 3"),
        ({"labels": torch.tensor([0])}, r"targets\[1\]\['labels'\] contains 0"),
        ({"boxes": torch.tensor([[9.0, 1, 9, 9]])}, r"targets\[1\]\['boxes'\]\[0\] is"),
    ],
    ids=["none", "two", "unknown", "background", "degenerate"],
)
def test_bad_targets(change, message):
    images, targets = batch()
    targets[1] = {**targets[1], **change}
    with pytest.raises(ValueError, match=message):
        models.localizer("cnn", **SMALL).train()(images, targets)


def test_batch_norm_needs_two_images():
    images, targets = batch(((64, 64),))
    with pytest.raises(ValueError, match="needs two images in a training batch, got 1"):
        models.localizer("cnn", **SMALL).train()(images, targets)
    losses = models.localizer("cnn", batch_norm=False, **SMALL).train()(images, targets)
    assert all(loss.isfinite() for loss in losses.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "vgg"}, "no backbone 'vgg'; there are cnn, resnet18"),
        ({"weights_backbone": "DEFAULT"}, "are for the networks of torchvision"),
        ({"num_classes": 1}, "at least 2, got 1"),
        ({"alpha": 1.5}, r"alpha must lie in \[0, 1\], got 1.5"),
        ({"box_loss": "l1"}, "mse, giou, got 'l1'"),
        ({"activation": "tanh"}, "relu, silu, got 'tanh'"),
        ({"class_weights": (1.0,)}, r"class_weights must be 2 positive numbers.* got \[1.0\]"),
        ({"class_weights": (1.0, 0.0)}, "class_weights must be 2 positive"),
        ({"checkpoint_stages": ("layer1",)}, "'layer1', but .* block1"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        models.localizer(**{**SMALL, **options})
