"""The core of a detector, and whole detectors, as one graph that fits any size."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from rcnn_ext import models, ops
from rcnn_ext.models.core import DeployedDetector
from rcnn_ext.models.sampler import BalancedPositiveNegativeSampler

SIZES = {"num_classes": 4, "min_size": 64, "max_size": 96}
FEW = {
    "rpn_pre_nms_top_n_test": 100,
    "rpn_post_nms_top_n_test": 30,
    "rpn_pre_nms_top_n_train": 100,
    "rpn_post_nms_top_n_train": 40,
}
ALL = {**SIZES, "box_score_thresh": 0.0}
DETECTORS = {
    "fpn": lambda: models.faster_rcnn("resnet18", **ALL, **FEW),
    "c4": lambda: models.faster_rcnn("resnet18", neck="c4", **ALL, **FEW),
    "c5 RoIPool": lambda: models.faster_rcnn("resnet18", neck="c5", pooler="pool", **ALL, **FEW),
    "mobilenet": lambda: models.faster_rcnn("mobilenet_v3_large", **ALL, **FEW),
    "agnostic": lambda: models.faster_rcnn(
        "resnet18", neck="c4", class_agnostic=True, **ALL, **FEW
    ),
    "fast": lambda: models.fast_rcnn("resnet18", **ALL),
    "fast fpn": lambda: models.fast_rcnn("resnet18", neck="fpn", **ALL),
    "localizer": lambda: models.localizer("cnn", num_classes=4, image_size=(64, 96)),
}


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def build(name):
    torch.manual_seed(0)
    return DETECTORS[name]().eval()


def inputs_of(model, images, proposals=None):
    """Return the batch of a detector, as its core takes it, and the scale of each image."""
    batch, _ = model.transform(list(images))
    sizes = torch.tensor(batch.image_sizes, dtype=torch.float32)
    ratios = torch.tensor([list(image.shape[-2:]) for image in images]) / sizes
    ratios = ratios[:, [1, 0, 1, 0]]  # [N, 4]
    arguments = [batch.tensors, sizes]
    if proposals is not None:
        padded = torch.full((len(images), max(map(len, proposals)), 4), float("nan"))
        for row, boxes, ratio in zip(padded, proposals, ratios, strict=True):
            row[: len(boxes)] = boxes / ratio
        arguments += [padded, torch.tensor([len(boxes) for boxes in proposals])]
    return arguments, ratios


def assert_equal(padded, ratios, expected, tolerance=1e-4):
    boxes, scores, labels, counts = padded
    assert counts.tolist() == [len(one["boxes"]) for one in expected]
    for index, one in enumerate(expected):
        count = len(one["boxes"])
        torch.testing.assert_close(
            boxes[index, :count] * ratios[index], one["boxes"], atol=tolerance, rtol=0
        )
        torch.testing.assert_close(scores[index, :count], one["scores"], atol=tolerance, rtol=0)
        assert torch.equal(labels[index, :count], one["labels"])
        for values in (boxes, scores, labels):
            assert not values[index, count:].any()


@pytest.mark.parametrize("name", DETECTORS)
def test_the_core_finds_what_the_detector_finds(name, make_batch, make_boxes):
    model = build(name)
    images, _ = make_batch([(64, 96), (50, 40)], [0, 0], 4)
    proposals = None
    if "fast" in name:
        # One of them lies outside of its image, and is left out.
        outside = torch.tensor([[200.0, 200, 220, 230]])
        proposals = [torch.cat((make_boxes(7, 64, 96), outside)), make_boxes(4, 50, 40)]
    with torch.no_grad():
        expected = model(images) if proposals is None else model(images, proposals)
        arguments, ratios = inputs_of(model, images, proposals)
        core = model.core()
        found = core(*arguments)
        assert min(found[3]) > 0
        assert_equal(found, ratios, expected)
        assert {id(value) for value in core.parameters()} == {
            id(value) for value in model.parameters()
        }
        # Not normalized, nor padded to the size divisor; what lies beyond an image is no number.
        resized = [model.transform.resize(image)[0] for image in images]
        height, width = (max(image.shape[side] for image in resized) for side in (1, 2))
        batch = torch.full((2, 3, height, width), float("nan"))
        for row, image in zip(batch, resized, strict=True):
            row[:, : image.shape[1], : image.shape[2]] = image
        found = DeployedDetector(model)(batch, *arguments[1:])
        assert_equal(found, ratios, expected, tolerance=1e-3)
        # Images of one size need no sizes.
        alone = resized[1][None].repeat(2, 1, 1, 1)
        given = [proposal[1:].repeat(2, *[1] * (proposal.dim() - 1)) for proposal in arguments[2:]]
        sizes = torch.tensor([alone.shape[2:]] * 2, dtype=torch.float32)
        deployed = DeployedDetector(model)
        for one, other in zip(
            deployed(alone, None, *given), deployed(alone, sizes, *given), strict=True
        ):
            assert torch.equal(one, other)


def test_the_core_is_for_evaluation_and_the_right_inputs():
    faster, fast, localizer = build("c4"), build("fast"), build("localizer")
    images, sizes, boxes = torch.rand(1, 3, 64, 96), torch.tensor([[64.0, 96]]), torch.rand(1, 2, 4)
    core = faster.core()
    with pytest.raises(ValueError, match="finds its own proposals"):
        core(images, sizes, boxes)
    with pytest.raises(ValueError, match="a localizer takes no proposals"):
        localizer.core()(images, sizes, boxes)
    with pytest.raises(ValueError, match="needs proposals"):
        fast.core()(images, sizes)
    faster.train()
    for call in (faster.core, lambda: core(images, sizes)):
        with pytest.raises(RuntimeError, match="call detector.eval"):
            call()


def test_a_user_chosen_rule_of_levels_is_kept(make_batch):
    """Then the pooler is called as any module."""
    model = build("fpn")
    images, _ = make_batch([(64, 96), (50, 40)], [0, 0], 4)
    pooler = model.roi_heads.box_roi_pool
    pooler.map_levels = lambda boxes: torch.ones(sum(map(len, boxes)), dtype=torch.int64)
    with torch.no_grad():
        expected = model(images)
        arguments, ratios = inputs_of(model, images)
        assert_equal(model.core()(*arguments), ratios, expected)


@pytest.mark.parametrize("name", ["fpn", "c4", "fast fpn"])
def test_a_compiled_core_is_at_most_two_graphs(name):
    model = build(name)
    core = model.core()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(core, backend=counter, fullgraph=True, dynamic=True)
    generator = torch.Generator().manual_seed(0)
    # PyTorch chooses another convolution for maps of fewer than 20,480 values and compiles anew for
    # it; these sizes keep every map on one side of that, for one image and for several.
    with torch.no_grad():
        for batch, height, width in [
            (1, 96, 128),
            (2, 128, 160),
            (3, 160, 128),
            (1, 128, 96),
            (2, 96, 192),
        ]:
            arguments = [
                torch.rand(batch, 3, height, width, generator=generator),
                torch.tensor([[height - 5.0, width]] * batch),
            ]
            if "fast" in name:
                boxes = torch.rand(batch, 4 + batch, 4, generator=generator) * 40
                boxes[..., 2:] += boxes[..., :2] + 4
                arguments += [boxes, torch.full((batch,), 4)]
            for mine, other in zip(compiled(*arguments), core(*arguments), strict=True):
                torch.testing.assert_close(mine, other)
    assert counter.frame_count <= 2


def test_generate_proposals_is_compiled_once_for_all_sizes():
    counter = CompileCounterWithBackend("eager")

    def propose(logits, deltas, anchors, sizes):
        return ops.generate_proposals(
            logits, deltas, anchors, sizes, pre_nms_top_n=20, post_nms_top_n=10
        )

    compiled = torch.compile(propose, backend=counter, fullgraph=True, dynamic=True)
    for n, h, w in [(2, 8, 9), (3, 4, 6), (2, 5, 12), (4, 7, 3), (2, 16, 10)]:
        logits = [torch.randn(n, 3, h, w), torch.randn(n, 3, h // 2, w // 2 + 1)]
        deltas = [torch.randn(n, 12, *level.shape[2:]) for level in logits]
        count = sum(level[0].numel() for level in logits)
        corners = torch.rand(count, 2) * 50
        anchors = torch.cat((corners, corners + 10), dim=1)
        arguments = (logits, deltas, anchors, torch.tensor([[60, 60]] * n))
        for mine, other in zip(compiled(*arguments), propose(*arguments), strict=True):
            assert torch.equal(mine, other)
    # The second for a level of fewer anchors than are decoded.
    assert counter.frame_count <= 2


@pytest.mark.parametrize("name", ["c4", "fast", "localizer"])
def test_a_compiled_detector_has_no_break(name, make_batch, make_boxes):
    """Resizing before and the cut after are Python; all between is one graph."""
    model = build(name)
    compiled = torch.compile(model, backend=(counter := CompileCounterWithBackend("eager")))
    sizes = ([(64, 80)], [(80, 64)], [(64, 80), (72, 90)], [(64, 96)], [(50, 90), (30, 40)])
    for these in sizes:
        images, _ = make_batch(these, [0] * len(these), 4)
        arguments = [images]
        if name == "fast":
            arguments.append([make_boxes(5 + i, *size) for i, size in enumerate(these)])
        with torch.no_grad():
            expected, found = model(*arguments), compiled(*arguments)
        for mine, other in zip(found, expected, strict=True):
            assert torch.equal(mine["labels"], other["labels"])
            torch.testing.assert_close(mine["boxes"], other["boxes"], atol=1e-4, rtol=0)
            torch.testing.assert_close(mine["scores"], other["scores"])
    # One for the first size, one for any, one for more than one image.
    assert counter.frame_count <= 3
    torch._dynamo.reset()
    with torch.no_grad():
        assert torch._dynamo.explain(model)(*arguments).graph_count == 1


def test_a_compiled_detector_still_names_wrong_inputs(make_batch, make_boxes):
    compiled = torch.compile(build("fast"), backend="eager")
    images, _ = make_batch([(64, 80)], [0], 4)
    boxes = make_boxes(3, 64, 80)
    boxes[1, 2] = boxes[1, 0]
    with pytest.raises(ValueError, match=r"proposals\[0\]\[1\] is"):
        compiled(images, [boxes])


@pytest.mark.parametrize("name", ["fpn", "fast", "localizer"])
def test_a_training_step_is_compiled_without_a_break(name, make_batch, make_boxes):
    """Where everything is sampled, its losses and gradients are those of the eager step."""
    torch.manual_seed(0)
    model = DETECTORS[name]().train()
    for part in ("rpn", "roi_heads"):
        if hasattr(model, part):
            sampler = getattr(model, part).fg_bg_sampler
            sampler.batch_size_per_image, sampler.positive_fraction = 10_000, 1.0
    for head in ("class_head", "box_head", "roi_heads.box_head"):
        if head in dict(model.named_modules()):
            model.get_submodule(head).eval()  # no dropout
    objects = [1, 1] if name == "localizer" else [3, 0]
    images, targets = make_batch([(64, 80), (72, 90)], objects, 4)
    arguments = [images, targets]
    if name == "fast":
        proposals = [make_boxes(9, 64, 80, seed=1), make_boxes(6, 72, 90, seed=2)]
        arguments = [images, proposals, targets]
    outcomes = []
    counter = CompileCounterWithBackend("eager")
    for step in (model, torch.compile(model, backend=counter)):
        model.zero_grad()
        losses = step(*arguments)
        sum(losses.values()).backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        outcomes.append((losses, gradients))
    (expected, expected_gradients), (found, found_gradients) = outcomes
    assert counter.frame_count == 1
    assert found.keys() == expected.keys()
    for key, loss in expected.items():
        torch.testing.assert_close(found[key], loss, rtol=1e-4, atol=1e-6)
    assert len(found_gradients) == len(expected_gradients) > 10
    for mine, other in zip(found_gradients, expected_gradients, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-5)


def test_samples_of_a_fixed_size():
    sampler = BalancedPositiveNegativeSampler(8, 0.25)
    labels = torch.full((4, 50), -1)
    labels[0, :10], labels[0, 10:40] = 1, 0  # enough of both
    labels[1, 3] = 1
    labels[1, 20:40] = 0  # one positive is made up for
    labels[2, 5:9] = 0  # too few negatives are not
    drawn = set()
    for _ in range(60):
        indices, is_sampled = sampler.sample_padded(labels)
        assert indices.shape == is_sampled.shape == (4, 8)
        chosen = [labels[i][indices[i][is_sampled[i]]].tolist() for i in range(4)]
        assert [sum(image) for image in chosen] == [2, 1, 0, 0]
        assert [len(image) for image in chosen] == [8, 8, 4, 0]
        assert all(value >= 0 for value in itertools.chain(*chosen))
        assert len(set(indices[0][is_sampled[0]].tolist())) == 8
        drawn |= set(indices[0][is_sampled[0]].tolist())
    assert drawn == set(range(40))
    assert sampler.sample_padded(labels[:, :3])[0].shape == (4, 3)
