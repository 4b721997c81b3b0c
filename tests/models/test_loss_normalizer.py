"""Parts of a batch have the losses of the whole; processes: tests/train/test_distributed.py."""

from __future__ import annotations

import pytest
import torch

from rcnn_ext.models import fast_rcnn, faster_rcnn, localizer, loss_normalizer
from rcnn_ext.models.loss_normalizer import mean_over_processes, own_samples

pytestmark = pytest.mark.usefixtures("one_thread")


def scene(count):
    generator = torch.Generator().manual_seed(0)
    images = list(torch.rand(count, 3, 64, 64, generator=generator))
    targets = []
    for i in range(count):
        corner = torch.rand(2, 2, generator=generator) * 30
        boxes = torch.cat([corner, corner + 10 + 20 * torch.rand(2, 2, generator=generator)], 1)
        targets.append({"boxes": boxes, "labels": torch.tensor([1, 2]), "seed": 1000 + i})
    return images, targets


def tiny(build, **options):
    return build(
        "resnet18",
        num_classes=3,
        norm_layer="frozen",
        pool_size=2,
        min_size=64,
        max_size=64,
        box_batch_size_per_image=8,
        **options,
    ).train()


@pytest.mark.parametrize("proposals", [False, True])
def test_losses_of_parts_average_to_that_of_the_batch(proposals):
    images, targets = scene(4)
    if proposals:
        boxes = torch.rand(4, 60, 4, generator=torch.Generator().manual_seed(1)) * 30
        boxes[..., 2:] += 31
        model = tiny(fast_rcnn, neck="fpn")
        losses = lambda part: model(images[part], list(boxes[part]), targets[part])  # noqa: E731
    else:
        model = tiny(faster_rcnn, rpn_batch_size_per_image=16)
        losses = lambda part: model(images[part], targets[part])  # noqa: E731
    whole = losses(slice(None))
    shares = [losses(slice(0, 1)), losses(slice(1, 3)), losses(slice(3, 4))]
    # Every image has as many samples as it may, so that the means weigh as the images.
    for name, value in whole.items():
        parts = sum(share[name] * count for share, count in zip(shares, (1, 2, 1), strict=True))
        torch.testing.assert_close(parts / 4, value, rtol=1e-5, atol=1e-7)
    # Other seeds, other samples.
    for target in targets:
        target["seed"] += 1
    assert any(losses(slice(None))[name] != value for name, value in whole.items())


class Group:
    """Two processes after one another: the first to be asked remembers, the second adds."""

    def __init__(self, monkeypatch, sums):
        self.sums = sums
        monkeypatch.setattr(loss_normalizer.distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(loss_normalizer.distributed, "get_world_size", lambda: 2)
        monkeypatch.setattr(loss_normalizer.distributed, "all_reduce", self.all_reduce)

    def all_reduce(self, value):
        value.copy_(self.sums.pop(0))


def test_weighted_losses_of_a_localizer_are_those_of_the_whole_batch(monkeypatch):
    images, targets = scene(4)
    targets = [
        {"boxes": target["boxes"][:1], "labels": torch.tensor([label])}
        for target, label in zip(targets, (1, 1, 1, 2), strict=True)
    ]
    weights = [0.5, 3.0]
    model = localizer("cnn", num_classes=3, image_size=32, batch_norm=False, dropout=0.0)
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    for class_weights, total in ((None, 4), (torch.tensor(weights), 3 * 0.5 + 3)):
        model.class_weights = class_weights
        whole = model(images, targets)
        Group(monkeypatch, [total, total])
        shares = [
            model(images[part], targets[part], normalizer=mean_over_processes)
            for part in (slice(0, 2), slice(2, 4))
        ]
        monkeypatch.undo()
        for name, value in whole.items():
            together = (shares[0][name] + shares[1][name]) / 2
            torch.testing.assert_close(together, value, rtol=1e-5, atol=1e-7)


def test_denominators_of_a_single_process():
    cpu = torch.device("cpu")
    for normalizer in (own_samples, mean_over_processes):
        assert normalizer(7, cpu) == 7
        assert normalizer(0, cpu) == 1
        assert normalizer(torch.tensor(0.25), cpu) == 0.25
        assert normalizer(torch.tensor(0.0), cpu) == 1
