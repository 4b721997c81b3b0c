"""Weights of one detector in another: what fits, what is adapted, and what starts new."""

from __future__ import annotations

import pytest
import torch

from rcnn_ext import models
from rcnn_ext.models.transfer import SourceWeights, load_fitting

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"pool_size": 2, "min_size": 64, "max_size": 64}
CLS = "roi_heads.box_predictor.cls_score."
BOX = "roi_heads.box_predictor.bbox_pred."


def detector(num_classes=4, **options):
    return models.faster_rcnn("resnet18", num_classes=num_classes, **{**SMALL, **options})


@pytest.fixture(scope="module")
def source():
    return detector().state_dict()


def names(*classes):
    return ("__background__", *classes)


def test_all_of_an_equal_model(source):
    model = detector()
    report = load_fitting(model, SourceWeights("x", source))
    assert not report.new
    assert not report.adapted
    assert not report.unused
    assert all(torch.equal(value, source[name]) for name, value in model.state_dict().items())
    assert report.summary() == [f"{len(report.loaded)} tensors loaded, 0 adapted, 0 new, 0 unused"]


def test_other_numbers_of_classes_start_new(source):
    model = detector(6)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = load_fitting(model, SourceWeights("x", source), ("a", "b", "c", "d", "e"))
    assert set(report.new) == {f"{p}{kind}" for p in (CLS, BOX) for kind in ("weight", "bias")}
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name] if name in report.new else source[name])
    text = "\n".join(report.summary())
    assert f"{CLS}weight [6, 1024] from [4, 1024]" in text
    assert f"new     {BOX}bias [24] from [16]\n" in report.table()
    assert len(report.table().splitlines()) == len(report.loaded) + 4


def test_rows_of_classes_are_taken_by_name(source):
    model = detector(5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    known = SourceWeights("x", source, names("dog", "", "traffic light"))
    report = load_fitting(model, known, ("bus", "Traffic_Light", "cat", "dog"))
    assert set(report.adapted) == {f"{p}{kind}" for p in (CLS, BOX) for kind in ("weight", "bias")}
    assert report.classes == ["Traffic_Light", "dog"]
    state = model.state_dict()
    for kind in ("weight", "bias"):
        for prefix, rows in ((CLS, 1), (BOX, 4)):
            found, theirs, fresh = (
                one[prefix + kind].unflatten(0, (-1, rows)) for one in (state, source, before)
            )
            for row, other in ((0, 0), (2, 3), (4, 1)):
                assert torch.equal(found[row], theirs[other])
            for row in (1, 3):
                assert torch.equal(found[row], fresh[row])


def test_equal_numbers_of_other_classes_are_no_match(source):
    model = detector()
    report = load_fitting(model, SourceWeights("x", source, names("a", "b", "c")), ("d", "e", "f"))
    assert f"{CLS}weight" in report.new
    model = detector()
    report = load_fitting(model, SourceWeights("x", source, names("a", "b", "c")), ("a", "b", "c"))
    assert not report.new
    assert not report.adapted
    moved = load_fitting(model, SourceWeights("x", source, names("a", "b", "c")), ("b", "a", "c"))
    assert len(moved.adapted) == 4


def test_one_box_for_all_classes(source):
    theirs = detector(class_agnostic=True).state_dict()
    model = detector(3, class_agnostic=True)
    report = load_fitting(model, SourceWeights("x", theirs, names("a", "b", "c")), ("b", "z"))
    assert f"{BOX}weight" in report.loaded
    assert f"{CLS}weight" in report.adapted
    # And where only one of the two has one, its boxes start new.
    report = load_fitting(detector(3), SourceWeights("x", theirs, names("a", "b", "c")), ("b", "z"))
    assert f"{BOX}weight" in report.new


def test_other_channels_and_other_layers(source):
    model = detector(in_channels=5, rpn_conv_depth=2)
    report = load_fitting(model, SourceWeights("x", source))
    first = "backbone.body.conv1.weight"
    assert list(report.adapted) == [first]
    weight = model.state_dict()[first]
    torch.testing.assert_close(weight[:, 3], source[first][:, 0] * 3 / 5)
    assert set(report.new) == {"rpn.head.conv.1.0.weight", "rpn.head.conv.1.0.bias"}
    back = load_fitting(detector(), SourceWeights("x", detector(in_channels=5).state_dict()))
    assert first in back.new, "five channels are no RGB"
    extra = {**source, "mask.weight": torch.zeros(2, 3)}
    unused = load_fitting(detector(), SourceWeights("x", extra)).unused
    assert unused == {"mask.weight": "mask.weight [2, 3]"}


@pytest.mark.parametrize("norm_layer", ["batch", "frozen"])
def test_another_normalization_gives_the_same_features(norm_layer):
    mean, std = [0.1, 0.2, 0.7], [1 / 255, 0.5, 0.3]
    theirs = detector(norm_layer=norm_layer, image_mean=mean, image_std=std).eval()
    with torch.no_grad():
        theirs.backbone.body["bn1"].running_mean.normal_()
    model = detector(norm_layer=norm_layer).eval()
    load_fitting(model, SourceWeights("x", theirs.state_dict(), None, mean, std))
    image = torch.rand(3, 64, 64)
    with torch.no_grad():
        expected, found = (
            one.backbone.body["bn1"](one.backbone.body["conv1"](one.transform([image])[0].tensors))
            for one in (theirs, model)
        )
    # At the border, zeros are another color than before.
    inner = (..., slice(2, -2), slice(2, -2))
    torch.testing.assert_close(found[inner], expected[inner], rtol=1e-3, atol=1e-3)


def test_counters_of_batch_norms_are_no_weights(source):
    live = detector(norm_layer="batch").state_dict()
    report = load_fitting(detector(norm_layer="frozen"), SourceWeights("x", live))
    assert not report.unused
    frozen = detector(norm_layer="frozen").state_dict()
    assert not load_fitting(detector(norm_layer="batch"), SourceWeights("x", frozen)).new
