"""`prepare_for_inference`: the same detections, faster."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from rcnn_ext import models, ops
from rcnn_ext.models.detector import fast_dtype

SIZES = {"min_size": 96, "max_size": 128}
FEW = {**SIZES, "rpn_post_nms_top_n_test": 40}
NORMS = (nn.BatchNorm2d, FrozenBatchNorm2d)


def randomize(model: nn.Module) -> None:
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, NORMS):
                layer.running_mean.normal_(std=0.1)
                layer.running_var.uniform_(0.8, 1.5)
                layer.weight.uniform_(0.8, 1.2)


def make(**options):
    torch.manual_seed(0)
    model = models.faster_rcnn(
        **{"backbone": "resnet18", "num_classes": 4, "norm_layer": "batch", **FEW, **options}
    ).eval()
    randomize(model)
    model.roi_heads.score_thresh = 0.0
    return model


def make_v2():
    torch.manual_seed(0)
    model = models.fasterrcnn_resnet50_fpn_v2(weights_backbone=None, num_classes=3, **FEW).eval()
    randomize(model)
    model.roi_heads.score_thresh = 0.0
    return model


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize(
    "build",
    [
        make,
        lambda: make(norm_layer="frozen"),
        lambda: make(neck="c4", class_agnostic=True),
        lambda: make(backbone="mobilenet_v3_large"),
        make_v2,
    ],
    ids=["fpn", "frozen", "c4", "mobilenet", "v2"],
)
def test_same_detections(build, channels_last, make_batch):
    images, _ = make_batch([(96, 120), (80, 96)], [0, 0], 4)
    model = build()
    with torch.no_grad():
        expected = model(images)
    fast = model.prepare_for_inference(dtype=None, channels_last=channels_last)
    assert fast is model
    assert not any(isinstance(layer, NORMS) for layer in fast.modules())
    for mine, other in zip(fast(images), expected, strict=True):
        assert len(other["boxes"]) > 10
        assert torch.equal(mine["labels"], other["labels"])
        torch.testing.assert_close(mine["scores"], other["scores"], rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(mine["boxes"], other["boxes"], rtol=1e-3, atol=1e-2)


def _first_linear(head: nn.Module) -> nn.Module:
    return next(layer for layer in head.modules() if isinstance(layer, nn.Linear))


@pytest.mark.parametrize("build", [make, lambda: make(neck="c5"), make_v2], ids=["fpn", "c5", "v2"])
def test_linear_layers_read_channels_last_features_where_they_are(build, make_batch):
    """A copy of a thousand RoIs costs more than channels last gain in a small backbone."""
    images, _ = make_batch([(96, 120)], [0], 4)
    model = build().prepare_for_inference(dtype=None)
    head = model.roi_heads.box_head
    # The features come from the pooler or, in v2, from the last of its convolutions.
    source = head[3] if isinstance(head, nn.Sequential) else model.roi_heads.box_roi_pool
    places = []
    source.register_forward_hook(lambda *call: places.append(call[-1].data_ptr()))
    _first_linear(head).register_forward_pre_hook(
        lambda _, inputs: places.append(inputs[0].data_ptr())
    )
    model(images)
    assert len(places) == 2
    assert places[0] == places[1]


def test_features_of_an_unknown_pooler_are_flattened_as_before(make_batch):
    """Their channels need not be those of the backbone."""
    images, _ = make_batch([(96, 120)], [0], 4)
    model = make()

    class Halves(nn.Module):
        def __init__(self, pooler: nn.Module) -> None:
            super().__init__()
            self.pooler = pooler

        def forward(self, *inputs):
            return self.pooler(*inputs).unflatten(1, (2, -1)).flatten(2, 3)

    model.roi_heads.box_roi_pool = Halves(model.roi_heads.box_roi_pool)
    with torch.no_grad():
        (expected,) = model(images)
    (found,) = model.prepare_for_inference(dtype=None)(images)
    torch.testing.assert_close(found["scores"], expected["scores"], rtol=1e-3, atol=1e-5)


def assert_similar(found, expected, *, score, overlap):
    """Each expected detection has a partner of its class."""
    for mine, other in zip(found, expected, strict=True):
        iou = ops.box_iou(other["boxes"], mine["boxes"])
        iou[other["labels"][:, None] != mine["labels"]] = 0
        best, partner = iou.max(dim=1)
        assert best.min() > overlap
        assert (mine["scores"][partner] - other["scores"]).abs().max() < score


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_give_similar_detections_in_float32(dtype, make_batch, make_boxes):
    images, _ = make_batch([(96, 120), (80, 96)], [0, 0], 4)
    proposals = [make_boxes(15, 96, 120), make_boxes(9, 80, 96)]
    torch.manual_seed(0)
    model = models.fast_rcnn("resnet18", num_classes=4, **SIZES).eval()
    randomize(model)
    model.roi_heads.score_thresh, model.roi_heads.nms_thresh = 0.0, 1.0
    with torch.no_grad():
        expected = model(images, proposals)
    found = copy.deepcopy(model).prepare_for_inference(dtype=dtype)(images, proposals)
    assert len(expected[0]["boxes"]) == 45
    assert all(d["boxes"].dtype == d["scores"].dtype == torch.float32 for d in found)
    assert_similar(found, expected, score=0.02, overlap=0.9)


@pytest.mark.parametrize("neck", ["fpn", "c4", "c5"])
def test_bfloat16_faster_rcnn_runs(neck, make_batch):
    images, _ = make_batch([(96, 120)], [0], 4)
    model = make(neck=neck).prepare_for_inference(dtype=torch.bfloat16)
    for batch in (images, [image.bfloat16() for image in images], [images[0].double()]):
        (found,) = model(batch)
        assert len(found["boxes"]) > 0
        assert found["boxes"].isfinite().all()
        assert not found["boxes"].requires_grad


def test_localizer():
    torch.manual_seed(0)
    model = models.localizer("resnet18_fpn", num_classes=3, image_size=64).eval()
    randomize(model)
    images = [torch.rand(3, 50, 70), torch.rand(3, 64, 64)]
    with torch.no_grad():
        expected = model(images)
    torch.testing.assert_close(
        copy.deepcopy(model).prepare_for_inference(dtype=None)(images),
        expected,
        rtol=1e-3,
        atol=1e-2,
    )
    half = model.prepare_for_inference(dtype=torch.bfloat16)(images)
    for mine, other in zip(half, expected, strict=True):
        torch.testing.assert_close(mine["boxes"], other["boxes"], rtol=0, atol=1.0)


def test_layout_and_gradients():
    model = make().prepare_for_inference()
    weight = model.backbone.body["layer1"][0].conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not any(p.requires_grad for p in model.parameters())
    assert not model.training


def test_compiles_the_networks(make_batch):
    images, _ = make_batch([(96, 120)], [0], 4)
    expected = make().prepare_for_inference(dtype=None)(images)
    names = []

    def backend(graph, inputs):
        names.append(graph)
        return graph.forward

    model = make().prepare_for_inference(dtype=None, compile={"backend": backend})
    torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-3)
    assert len(names) >= 4, "backbone, RPN head, box head, predictor"


def test_cannot_be_trained_afterwards():
    model = make().prepare_for_inference()
    with pytest.raises(RuntimeError, match="was prepared for inference"):
        model.train()
    model.eval()
    copy.deepcopy(model).eval()


def test_twice_is_once(make_batch):
    images, _ = make_batch([(96, 120)], [0], 4)
    model = make().prepare_for_inference(dtype=None)
    expected = model(images)
    torch.testing.assert_close(model.prepare_for_inference(dtype=None)(images), expected)


def test_bad_dtype():
    with pytest.raises(ValueError, match=r"floating-point type, got torch.int8"):
        make().prepare_for_inference(dtype=torch.int8)


@pytest.mark.parametrize(("native", "expected"), [(True, torch.bfloat16), (False, None)])
def test_automatic_type_on_the_cpu(monkeypatch, native, expected):
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: native, raising=False)
    assert fast_dtype(torch.device("cpu")) == expected
    model = make().prepare_for_inference()
    assert model.backbone.body["conv1"].weight.dtype == (expected or torch.float32)


@pytest.mark.parametrize(("native", "expected"), [(True, torch.bfloat16), (False, torch.float16)])
def test_automatic_type_on_cuda(monkeypatch, native, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: native)
    assert fast_dtype(torch.device("cuda")) == expected


@pytest.mark.parametrize("size", [(1, 1000), (1000, 1), (3, 4000), (1, 1), (1, 60000)])
@pytest.mark.parametrize("training", [False, True])
def test_thin_images_keep_a_pixel_of_each_side(size, training):
    model = models.faster_rcnn("resnet18", num_classes=2, min_size=64, max_size=128).train(training)
    height, width = size
    boxes = torch.tensor([[0.0, 0.0, width, height]])
    images = [torch.rand(3, *size), torch.rand(3, 50, 60)]
    if training:
        target = {"boxes": boxes, "labels": torch.tensor([1])}
        losses = model(images, [target, target | {"boxes": torch.tensor([[1.0, 2.0, 30.0, 40.0]])}])
        assert all(torch.isfinite(loss) for loss in losses.values())
        return
    with torch.no_grad():
        found = model(images)
    assert len(found) == 2
    limits = torch.tensor([width, height, width, height])
    assert (found[0]["boxes"] <= limits).all()
    resized, target = model.transform.resize(images[0], {"boxes": boxes})
    new_height, new_width = resized.shape[-2:]
    assert min(new_height, new_width) >= 1
    assert target["boxes"].tolist() == [[0, 0, new_width, new_height]]
