"""Frozen stages in training: losses and gradients as before, and every change of them noticed."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from rcnn_ext.models import fast_rcnn, faster_rcnn
from rcnn_ext.models.fusion.frozen import fuse_frozen_stages
from tests.helpers.fused import assert_near, needs_onednn

pytestmark = needs_onednn


def pair(trainable=2, norm="frozen", **options):
    torch.manual_seed(0)
    plain = faster_rcnn(
        "resnet18",
        num_classes=3,
        norm_layer=norm,
        trainable_layers=trainable,
        min_size=64,
        max_size=80,
        **options,
    ).train()
    for module in plain.modules():
        if hasattr(module, "running_var"):
            module.running_var.uniform_(0.5, 2.0)
            module.running_mean.uniform_(-0.2, 0.2)
    fused = copy.deepcopy(plain)
    fuse_frozen_stages(fused)
    return plain, fused


def images():
    source = torch.Generator().manual_seed(1)
    sizes = ((64, 80), (57, 71))
    pictures = [torch.rand(3, *size, generator=source) for size in sizes]
    boxes = torch.tensor([[5.0, 5, 40, 40], [20, 10, 60, 50]])
    return pictures, [{"boxes": boxes, "labels": torch.tensor([1, 2])} for _ in sizes]


def step(model):
    torch.manual_seed(3)
    model.zero_grad()
    losses = model(*images())
    sum(losses.values()).backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: value.detach() for name, value in losses.items()}, grads


def body_maps(model, x=None, *, detach=False):
    x = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(2)) if x is None else x
    return [one.detach() if detach else one for one in model.backbone.body(x).values()]


def gradients_of_maps(model):
    model.zero_grad()
    maps = model.backbone(torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(2)))
    source = torch.Generator().manual_seed(4)
    sum((one * torch.randn(one.shape, generator=source)).sum() for one in maps.values()).backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def assert_maps_near(*models):
    for one, two in zip(*(body_maps(model, detach=True) for model in models), strict=True):
        assert_near(one, two, 1e-5)


@pytest.mark.parametrize("trainable", [0, 1, 3, 4])
def test_losses_gradients_and_weights(trainable, onednn_calls):
    plain, fused = pair(trainable)
    before = copy.deepcopy(fused.state_dict())
    losses, grads = step(plain)
    assert not onednn_calls
    found, found_grads = step(fused)
    assert onednn_calls
    for name, value in losses.items():
        assert found[name] == pytest.approx(float(value), rel=1e-3), name
    assert found_grads.keys() == grads.keys()
    assert not any(name.startswith("backbone.body.conv1") for name in grads)
    # Of the maps, not of the losses: which proposals are sampled hangs on the last bits.
    grads, found_grads = (gradients_of_maps(model) for model in (plain, fused))
    assert found_grads.keys() == grads.keys()
    for name, grad in grads.items():
        # An activation near 0 may be on its other side.
        assert_near(found_grads[name], grad, 1e-2)
    after = fused.state_dict()
    assert list(after) == list(before) == list(plain.state_dict())
    assert all(torch.equal(after[name], before[name]) for name in before)
    again, _ = step(fused)
    assert all(torch.equal(again[name], found[name]) for name in found)


def test_changes_of_frozen_stages_are_noticed(onednn_calls):
    plain, fused = pair(3)
    assert_maps_near(fused, plain)
    other = {k: v * 1.1 if v.is_floating_point() else v for k, v in plain.state_dict().items()}
    for model in (plain, fused):
        model.load_state_dict(other)
    assert_maps_near(fused, plain)
    for model in (plain, fused):
        with torch.no_grad():
            model.backbone.body.conv1.weight.mul_(0.5)
            model.backbone.body.layer1[0].bn1.running_mean.add_(0.3)
    assert_maps_near(fused, plain)
    for model in (plain, fused):
        torch.manual_seed(5)
        model.backbone.body.layer1[1].conv2 = nn.Conv2d(64, 64, 3, padding=1).requires_grad_(False)
    assert_maps_near(fused, plain)
    assert onednn_calls
    # Trainable again: all runs as before, at once, and learns.
    fused.backbone.body.requires_grad_(True)
    onednn_calls.clear()
    sum(one.sum() for one in body_maps(fused)).backward()
    assert not onednn_calls
    assert fused.backbone.body.conv1.weight.grad.abs().sum() > 0


def test_what_it_leaves_alone(onednn_calls):
    plain, fused = pair(3)
    for name in ("conv1", "bn1"):
        calls = []
        hook = fused.backbone.body[name].register_forward_hook(lambda *_, to=calls: to.append(1))
        assert_maps_near(fused, plain)
        assert calls
        assert not onednn_calls
        hook.remove()
    with torch.autocast("cpu", torch.bfloat16):
        body_maps(fused)
    x = torch.rand(1, 3, 64, 64, requires_grad=True)
    body_maps(fused, x)[0].sum().backward()
    assert x.grad.abs().sum() > 0
    fused.eval()
    assert_maps_near(fused, plain.eval())
    plain, live = pair(3, norm="batch")
    assert_maps_near(live, plain)
    _, recomputed = pair(3, checkpoint_stages=["layer1"])
    recomputed.backbone.body.conv1.requires_grad_(True)
    body_maps(recomputed)
    assert not onednn_calls


def test_frozen_live_norms_in_evaluation_mode(onednn_calls):
    plain, fused = pair(3, norm="batch")
    for model in (plain, fused):
        for module in (model.backbone.body.bn1, *model.backbone.body.layer1.modules()):
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
    # The maps after it have live batch norms, which magnify rounding.
    assert_near(*(body_maps(model, detach=True)[0] for model in (fused, plain)), 1e-5)
    assert onednn_calls


def test_copies_preparation_and_one_map(onednn_calls):
    plain, fused = pair(3)
    body_maps(fused)
    for other in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        with torch.no_grad():
            other.backbone.body.conv1.weight.mul_(2)
        changed = copy.deepcopy(plain)
        changed.load_state_dict(other.state_dict())
        assert_maps_near(other, changed)
        assert_maps_near(fused, plain)
    fuse_frozen_stages(fused)
    assert_maps_near(fused, plain)
    pictures, _ = images()
    for model in (plain, fused):
        model.prepare_for_inference(dtype=None)
    for one, two in zip(fused(pictures), plain(pictures), strict=True):
        assert torch.equal(one["boxes"], two["boxes"])
    torch.manual_seed(0)
    single = fast_rcnn("resnet18", num_classes=3, norm_layer="frozen", trainable_layers=2).train()
    x = torch.rand(1, 3, 64, 64)
    expected = single.backbone(x).detach()
    fuse_frozen_stages(single)
    onednn_calls.clear()
    assert_near(single.backbone(x).detach(), expected, 1e-5)
    assert onednn_calls


def test_compiled_and_other_models():
    plain, fused = pair(3)
    x = torch.rand(1, 3, 64, 64)
    compiled = torch.compile(fused.backbone.body, backend="eager", fullgraph=True)
    for one, two in zip(compiled(x).values(), body_maps(plain, x), strict=True):
        assert_near(one, two, 1e-5)
    with pytest.raises(ValueError, match="Linear has no stages in backbone.body: expected"):
        fuse_frozen_stages(nn.Linear(2, 2))
