from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from rcnn_ext import models, ops
from rcnn_ext.models import RoIPooler

SIZES = {"min_size": 96, "max_size": 160}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return models.fast_rcnn("resnet18", num_classes=4, **SIZES)


class SameForAll(nn.Module):
    """Predicts the given logits, and the same change of the box of each class, for every RoI."""

    def __init__(self, logits: list[float], deltas: tuple[float, ...] = (0.0,) * 4) -> None:
        super().__init__()
        self.logits = torch.tensor(logits)
        self.deltas = torch.tensor(deltas * len(logits))

    def forward(self, x):
        return self.logits.expand(len(x), -1), self.deltas.expand(len(x), -1)


@pytest.mark.parametrize(("head", "pooler"), [("res5", "align"), ("mlp", "align"), ("mlp", "pool")])
def test_overfits_one_image(head, pooler):
    torch.manual_seed(1)
    model = models.fast_rcnn(
        "resnet18",
        num_classes=3,
        head=head,
        pooler=pooler,
        class_agnostic=True,
        box_positive_fraction=0.5,
        **SIZES,
    ).train()
    image = torch.zeros(3, 96, 96)
    image[0, 8:48, 8:48] = 1
    image[2, 40:88, 56:88] = 1
    target = {
        "boxes": torch.tensor([[8.0, 8, 48, 48], [56, 40, 88, 88]]),
        "labels": torch.tensor([1, 2]),
    }
    # Four proposals on the objects, four elsewhere; few enough to be sampled all.
    proposals = torch.cat((target["boxes"].repeat(2, 1), torch.rand(4, 4) * 40))
    proposals[:4] += torch.randn(4, 4) * 3
    proposals[4:, 2:] += proposals[4:, :2] + 4
    optimizer = torch.optim.SGD(model.parameters(), lr=0.002, momentum=0.9)
    losses = []
    for _ in range(20):
        parts = model([image], [proposals], [target])
        assert set(parts) == {"loss_classifier", "loss_box_reg"}
        loss = sum(parts.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-3:]) / 3 < 0.5 * losses[0]


def test_proposals_and_detections_are_in_pixels_of_the_original_image(model, make_boxes):
    # With a box predictor that changes nothing, detections are the proposals.
    model = copy.deepcopy(model).eval()
    model.roi_heads.box_predictor = SameForAll([0.0, 5.0, 0.0, 0.0])
    model.roi_heads.nms_thresh = 1.0
    images = [torch.rand(3, 50, 75), torch.rand(3, 300, 200), torch.rand(3, 96, 96)]
    proposals = [make_boxes(9, *image.shape[1:], seed=i) for i, image in enumerate(images)]
    found = model(images, proposals)
    for boxes, detections in zip(proposals, found, strict=True):
        first = detections["labels"] == 1
        torch.testing.assert_close(detections["boxes"][first], boxes, atol=1e-3, rtol=1e-5)
        score = torch.tensor([0.0, 5.0, 0.0, 0.0]).softmax(0)[1]
        torch.testing.assert_close(detections["scores"][first], score.expand(9))


def test_images_do_not_influence_each_other(model, make_boxes):
    model = copy.deepcopy(model).eval()
    images = [torch.rand(3, 96, 96), torch.rand(3, 96, 128), torch.rand(3, 120, 96)]
    proposals = [
        make_boxes(count, *image.shape[1:], seed=count)
        for count, image in zip((20, 0, 7), images, strict=True)
    ]
    model.roi_heads.score_thresh = 0.0
    model.transform.size_divisible = 128  # One padded size, alone and together.
    with torch.no_grad():
        apart = [model([i], [p])[0] for i, p in zip(images, proposals, strict=True)]
        together = model(images, proposals)
    assert [len(d["boxes"]) > 0 for d in together] == [True, False, True]
    for one, other in zip(together, apart, strict=True):
        torch.testing.assert_close(one["boxes"], other["boxes"], atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(one["scores"], other["scores"], atol=1e-5, rtol=1e-4)
        assert torch.equal(one["labels"], other["labels"])


def test_detections_obey_threshold_limit_and_order(model, make_boxes):
    model = copy.deepcopy(model).eval()
    model.roi_heads.score_thresh, model.roi_heads.detections_per_img = 0.2, 5
    model.roi_heads.box_predictor.cls_score.weight.data.mul_(100)
    image, proposals = torch.rand(3, 96, 120), make_boxes(60, 96, 120)
    with torch.no_grad():
        (found,) = model([image], [proposals])
    boxes, scores, labels = found["boxes"], found["scores"], found["labels"]
    assert 0 < len(boxes) <= 5
    assert (scores > 0.2).all()
    assert (scores.diff() <= 0).all()
    assert ((labels >= 1) & (labels <= 3)).all()
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2] <= 120).all()
    assert (boxes[:, 3] <= 96).all()
    overlaps = ops.box_iou(boxes, boxes).fill_diagonal_(0)
    same = labels[:, None] == labels
    assert (overlaps[same] <= model.roi_heads.nms_thresh + 1e-6).all()


def test_suppression_is_within_a_class(model):
    model = copy.deepcopy(model).eval()
    box = torch.tensor([[10.0, 10, 60, 60], [11, 10, 61, 60]])
    model.roi_heads.box_predictor = SameForAll([0.0, 2.0, 2.5, 0.5])
    (found,) = model([torch.rand(3, 96, 96)], [box])
    # Of two boxes that overlap, each class keeps one.
    assert found["labels"].tolist() == [2, 1, 3]


@pytest.mark.parametrize(("shift", "expected"), [(0.0, 3), (9.99, 3), (9.9995, 0), (80.0, 0)])
def test_detections_that_leave_the_image_are_dropped(model, shift, expected):
    model = copy.deepcopy(model).eval()
    # In tenths of the box's width: 10 puts its left side on the image's right side. Less than a
    # hundredth of a pixel is no detection.
    model.roi_heads.box_predictor = SameForAll([0.0, 1.0, 1.0, 1.0], (shift, 0.0, 0.0, 0.0))
    (found,) = model([torch.rand(3, 96, 96)], [torch.tensor([[16.0, 10, 96, 60]])])
    assert len(found["boxes"]) == expected


@pytest.mark.parametrize("class_agnostic", [False, True])
def test_number_of_predicted_boxes(class_agnostic):
    model = models.fast_rcnn("resnet18", num_classes=5, class_agnostic=class_agnostic)
    assert model.roi_heads.box_predictor.bbox_pred.out_features == (4 if class_agnostic else 20)


def test_class_agnostic_box_belongs_to_every_class(make_boxes):
    model = models.fast_rcnn("resnet18", num_classes=4, class_agnostic=True, **SIZES).eval()
    model.roi_heads.score_thresh = 0.0
    with torch.no_grad():
        (found,) = model([torch.rand(3, 96, 96)], [make_boxes(1, 96, 96)])
    assert sorted(found["labels"].tolist()) == [1, 2, 3]
    assert torch.equal(found["boxes"], found["boxes"][:1].expand(3, -1))


def test_class_agnostic_loss_trains_the_only_box(make_batch):
    model = models.fast_rcnn("resnet18", num_classes=4, class_agnostic=True, **SIZES).train()
    images, targets = make_batch([(96, 96)], [3], 4)
    model(images, [torch.zeros(0, 4)], targets)["loss_box_reg"].backward()
    # The objects themselves are proposals; their targets are 0, what is predicted is not.
    assert (model.roi_heads.box_predictor.bbox_pred.bias.grad != 0).all()


class TestEmpty:
    def test_no_proposals(self, model, make_batch):
        images, targets = make_batch([(96, 96), (90, 100)], [2, 0], 4)
        empty = [torch.zeros(0, 4), torch.zeros(0, 4)]
        for found in model.eval()(images, empty):
            assert {k: tuple(v.shape) for k, v in found.items()} == {
                "boxes": (0, 4),
                "labels": (0,),
                "scores": (0,),
            }
            assert found["labels"].dtype == torch.int64
        losses = copy.deepcopy(model).train()(images, empty, targets)
        assert losses["loss_classifier"] > 0

    @pytest.mark.parametrize("head", ["res5", "mlp"])
    def test_nothing_at_all_still_gives_every_parameter_a_gradient(self, make_batch, head):
        # Distributed training waits for a gradient of each parameter.
        model = models.fast_rcnn("resnet18", num_classes=4, head=head, **SIZES).train()
        images, targets = make_batch([(96, 96)], [0], 4)
        losses = model(images, [torch.zeros(0, 4)], targets)
        assert {name: loss.item() for name, loss in losses.items()} == {
            "loss_classifier": 0.0,
            "loss_box_reg": 0.0,
        }
        sum(losses.values()).backward()
        assert all(p.grad is not None and (p.grad == 0).all() for p in model.parameters())
        assert all(v.isfinite().all() for v in model.state_dict().values())

    def test_all_background(self, model, make_batch, make_boxes):
        images, targets = make_batch([(96, 96)], [0], 4)
        model = copy.deepcopy(model).train()
        losses = model(images, [make_boxes(30, 96, 96)], targets)
        assert losses["loss_box_reg"] == 0
        assert losses["loss_classifier"] > 0
        sum(losses.values()).backward()


class TestProposals:
    def detect(self, model, *proposals):
        images = [torch.rand(3, 96, 120) for _ in proposals]
        with torch.no_grad():
            return model.eval()(images, list(proposals))

    def test_outside_is_cut_off_or_left_out(self, model):
        inside = torch.tensor([[0.0, 10, 120, 60]])
        across = torch.tensor([[-50.0, 10, 300, 60]])
        outside = torch.tensor([[130.0, 10, 180, 60], [-9, -9, -1, -1]])
        (expected,) = self.detect_same(model, inside)
        (actual,) = self.detect_same(model, torch.cat((across, outside)))
        for name in expected:
            torch.testing.assert_close(actual[name], expected[name])

    def detect_same(self, model, proposals):
        model = copy.deepcopy(model).eval()
        model.roi_heads.score_thresh = 0.0
        image = torch.rand(3, 96, 120, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            return model([image], [proposals])

    @pytest.mark.parametrize(
        "box",
        [
            [10.0, 10.0, 5.0, 20.0],  # x2 < x1, as in (x, y, width, height)
            [10.0, 10.0, 10.0, 20.0],
            [float("nan"), 0.0, 10.0, 20.0],
            [0.0, 0.0, float("inf"), 20.0],
        ],
    )
    def test_malformed_box_is_named(self, model, box):
        good = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
        bad = torch.tensor([[0.0, 0.0, 10.0, 10.0], [1.0, 1.0, 9.0, 9.0], box])
        with pytest.raises(ValueError, match=r"proposals\[1\]\[2\] is \["):
            self.detect(model, good, bad)

    @pytest.mark.parametrize(
        ("proposals", "message"),
        [
            (torch.zeros(0), r"proposals\[0\] has shape \[0\]; expected \[number of boxes, 4\]"),
            (torch.zeros(3, 5), r"proposals\[0\] has shape \[3, 5\]"),
            (torch.zeros(3, 4, dtype=torch.int64), r"proposals\[0\] has dtype torch.int64"),
            ([[0, 0, 1, 1]], r"proposals\[0\] is a list"),
        ],
    )
    def test_malformed_tensor_is_named(self, model, proposals, message):
        with pytest.raises(ValueError, match=message):
            self.detect(model, proposals)

    def test_number(self, model):
        with pytest.raises(ValueError, match="2 images but proposals for 1"):
            model.eval()([torch.rand(3, 96, 96)] * 2, [torch.zeros(0, 4)])

    def test_are_not_changed(self, model, make_boxes):
        proposals = make_boxes(5, 96, 120) + 50
        before = proposals.clone()
        self.detect(model, proposals)
        assert torch.equal(proposals, before)


class TestPooler:
    @pytest.mark.parametrize("stride", [1, 2, 8])
    @pytest.mark.parametrize("kind", ["align", "pool"])
    def test_spatial_scale_is_measured(self, stride, kind):
        # A backbone whose map is the image at 1 / stride: RoIs must see the pixels under them.
        network = nn.AvgPool2d(stride)
        network.unused = nn.Parameter(torch.zeros(1))
        pooler = RoIPooler(network, kind, output_size=1, sampling_ratio=4)
        image = torch.zeros(1, 3, 64, 64)
        image[:, :, 16:32, 32:48] = 1
        boxes = torch.tensor([[34.0, 18.0, 46.0, 30.0], [2.0, 2.0, 14.0, 14.0]])
        pooled = pooler({"0": network(image)}, [boxes], [(64, 64)])
        assert pooled.shape == (2, 3, 1, 1)
        assert pooled[0].min() > 0.5
        assert pooled[1].max() == 0

    def test_align_averages_exactly_what_lies_under_the_box(self):
        # On a ramp, the mean over a box is the value at its center; stride 16 as in C4.
        network = nn.AvgPool2d(16)
        network.unused = nn.Parameter(torch.zeros(1))
        ramp = (torch.arange(256.0) + 0.5).expand(1, 3, 256, 256)
        pooler = RoIPooler(network, "align", output_size=1)
        box = torch.tensor([[64.0, 64.0, 128.0, 160.0]])
        pooled = pooler({"0": network(ramp)}, [box], [(256, 256)])
        torch.testing.assert_close(pooled.flatten(), torch.full((3,), 96.0))

    def test_bad_options(self):
        network = nn.Conv2d(3, 4, 3, stride=2)
        with pytest.raises(ValueError, match="align, pool, got 'max'"):
            RoIPooler(network, "max")
        with pytest.raises(ValueError, match="needs a backbone with one feature map"):
            RoIPooler(models.faster_rcnn("resnet18", num_classes=2).backbone)


@pytest.mark.parametrize(
    ("options", "pooled", "stage_stride"),
    [({}, (7, 7), 1), ({"pool_size": 14}, (14, 14), 2), ({"pooler": "pool"}, (7, 7), 1)],
)
def test_res5_head_works_on_7x7(options, pooled, stage_stride):
    model = models.fast_rcnn("resnet18", num_classes=3, **options)
    assert model.roi_heads.box_roi_pool.output_size == pooled
    stage = model.roi_heads.box_head.stage
    # Measuring its channels has moved neither its mode nor the statistics of its batch norms.
    assert all(layer.training for layer in model.modules())
    assert (stage.layer4[0].bn1.running_var == 1).all()
    assert stage.layer4[0].conv1.stride == (stage_stride, stage_stride)
    assert stage.layer4[0].downsample[0].stride == (stage_stride, stage_stride)
    assert stage(torch.rand(2, 256, *pooled)).shape == (2, 512, 7, 7)


@pytest.mark.parametrize(
    "options",
    [
        {"backbone": "mobilenet_v3_large"},
        {"backbone": "mobilenet_v3_large", "head": "mlp"},
        {"backbone": "resnet50", "class_agnostic": True},
        {"backbone": "resnet18", "neck": "fpn"},
        {"backbone": "resnet18", "neck": "fpn", "class_agnostic": True, "dropout": 0.5},
    ],
    ids=str,
)
def test_builds_run(options, make_batch, make_boxes):
    model = models.fast_rcnn(num_classes=3, box_batch_size_per_image=8, **SIZES, **options)
    images, targets = make_batch([(96, 96), (64, 100)], [2, 1], 3)
    proposals = [make_boxes(20, 96, 96), make_boxes(9, 64, 100)]
    losses = model.train()(images, proposals, targets)
    sum(losses.values()).backward()
    assert all(loss.isfinite() and loss > 0 for loss in losses.values())
    model.roi_heads.score_thresh = 0.0
    with torch.no_grad():
        found = model.eval()(images, proposals)
    assert all(0 < len(f["boxes"]) <= 100 and f["boxes"].isfinite().all() for f in found)


def test_dropout_only_in_training():
    for head in (
        models.TwoMLPHead(12, 40, dropout=0.5),
        models.Res5Head(nn.Conv2d(3, 40, 1), 3, dropout=0.5),
    ):
        x = torch.rand(6, 3, 2, 2) if isinstance(head, models.Res5Head) else torch.rand(6, 12)
        head.train()
        assert not torch.equal(head(x), head(x))
        head.eval()
        assert torch.equal(head(x), head(x))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"neck": "c3"}, ValueError, "neck must be one of 'c4', 'c5', 'fpn', got 'c3'"),
        ({"head": "convs"}, ValueError, "'res5', 'mlp', 'conv', got 'convs'"),
        ({"pooler": "max"}, ValueError, "pooler must be one of 'align', 'pool', got 'max'"),
        ({"neck": "fpn", "pooler": "pool"}, ValueError, "pooler='pool'"),
        ({"neck": "fpn", "head": "res5"}, ValueError, "head='res5'"),
        ({"neck": "c5", "head": "res5"}, ValueError, "head='res5' .* got neck='c5'"),
        ({"checkpoint_stages": ("layer5",)}, ValueError, "'layer5', but .* layer3, layer4"),
        ({"bbox_target_stds": (0.1, 0.1, 0.0, 0.2)}, ValueError, "four positive numbers"),
        (
            {"bbox_target_stds": (0.1,) * 4, "bbox_reg_weights": (10.0,) * 4},
            ValueError,
            "give one of them",
        ),
        ({"returned_layers": (1, 2)}, ValueError, "returned_layers"),
        ({"num_classes": 1}, ValueError, "at least 2, got 1"),
        ({"box_scores_thresh": 0.5}, TypeError, "no option 'box_scores_thresh'"),
        ({"pretrained": True}, TypeError, "use weights="),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        models.fast_rcnn("resnet18", **{"num_classes": 3, **options})


def test_copies(model, make_boxes):
    image, proposals = torch.rand(3, 96, 96), make_boxes(10, 96, 96)
    model = copy.deepcopy(model).eval()
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    restored = models.fast_rcnn("resnet18", num_classes=4, **SIZES).eval()
    restored.load_state_dict(torch.load(file), strict=True)
    with torch.no_grad():
        (expected,) = model([image], [proposals])
        assert len(expected["boxes"]) > 0
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), restored):
            (found,) = other([image], [proposals])
            assert all(torch.equal(found[name], expected[name]) for name in expected)
