"""What is exported finds what the model finds."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from rcnn_ext import models
from rcnn_ext.cli import main
from rcnn_ext.config import ModelConfig, Recipe
from rcnn_ext.data.annotations import ClassList
from rcnn_ext.export import export
from rcnn_ext.export.trace import trace_detector
from rcnn_ext.models.core import DeployedDetector
from rcnn_ext.models.from_config import build_model
from rcnn_ext.predict.checkpoint import SavedDetector
from rcnn_ext.predict.load import load_saved

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def exported_program(tiny_run, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "detector.pt2"
    assert main(["export", str(tiny_run.out), "--out", str(path)]) == 0
    return path


# The suffix of each format, and what it needs.
FORMATS = {
    "safetensors": (".safetensors", "safetensors"),
    "pt2": (".pt2", "torch"),
    "onnx": (".onnx", "onnxruntime"),
    "openvino": (".xml", "openvino"),
}


@pytest.fixture(scope="module", params=FORMATS)
def exported(request, tiny_run, exported_program):
    suffix, package = FORMATS[request.param]
    pytest.importorskip(package, reason=f"needs {package}, which comes with an extra")
    path = exported_program.with_suffix(suffix)
    if not path.exists():
        command = ["export", str(tiny_run.out), "--format", request.param, "--out", str(path)]
        assert main(command) == 0
    return path


def detections(run, source, out):
    command = ["detect", str(run), str(source), "--out", str(out), "--min-score", "0"]
    assert main([*command, "--no-pictures"]) == 0
    return json.loads((out / "detections.json").read_text())


def test_detections_are_those_of_the_checkpoint(tiny_run, exported, tmp_path):
    images = tiny_run.data / "val"
    expected = detections(tiny_run.out, images, tmp_path / "expected")
    found = detections(exported, images, tmp_path / "found")
    assert len(found) == len(expected) > 10
    for one, other in zip(found, expected, strict=True):
        assert one["category_name"] == other["category_name"]
        assert one["bbox"] == pytest.approx(other["bbox"], abs=0.05)
        assert one["score"] == pytest.approx(other["score"], abs=1e-4)


def test_classes_and_recipe_come_along(tiny_run, exported):
    saved, expected = load_saved(exported), load_saved(tiny_run.out)
    assert saved.classes == expected.classes
    assert saved.recipe == expected.recipe
    assert saved.step == expected.step
    assert not saved.build(CPU).training


def test_evaluation_takes_it_too(tiny_run, exported, tmp_path):
    results = []
    for run, out in ((tiny_run.out, "a"), (exported, "b")):
        command = ["eval", str(run), "--data", str(tiny_run.data), "--out", str(tmp_path / out)]
        assert main(command) == 0
        results.append(json.loads((tmp_path / out / "metrics.json").read_text()))
    for name in ("AP", "AR100", "VOC_AP"):
        assert results[1][name] == pytest.approx(results[0][name], abs=1e-3)


def test_a_program_needs_the_operators_only(tiny_run, exported_program, tmp_path):
    model = load_saved(tiny_run.out).build(CPU)
    calls = []
    with torch.inference_mode():
        for sizes in ([(64, 80)], [(50, 64), (64, 64)], [(64, 64), (64, 30), (33, 64)]):
            images = [torch.rand(3, *size) for size in sizes]
            batch = torch.zeros(len(sizes), 3, *(max(sides) for sides in zip(*sizes, strict=True)))
            for whole, image in zip(batch, images, strict=True):
                whole[:, : image.shape[1], : image.shape[2]] = image
            batch_sizes = torch.tensor(sizes, dtype=torch.float32)
            calls.append((batch, batch_sizes, DeployedDetector(model)(batch, batch_sizes)))
    torch.save(calls, tmp_path / "calls.pt")
    script = f"""
import sys, torch, rcnn_ext.ops
program = torch.export.load({str(exported_program)!r}).module()
for images, sizes, expected in torch.load({str(tmp_path / "calls.pt")!r}):
    boxes, scores, labels, counts = program(images, sizes)
    assert torch.equal(counts, expected[3]) and counts.min() > 0
    assert torch.equal(labels, expected[2])
    torch.testing.assert_close(boxes, expected[0], atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(scores, expected[1], atol=1e-5, rtol=1e-4)
assert not [name for name in sys.modules if name.startswith("rcnn_ext.models")]
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def test_a_program_can_be_for_one_size(tiny_run, tmp_path):
    path = tmp_path / "detector.pt2"
    assert main(["export", str(tiny_run.out), "--out", str(path), "--size", "80x48"]) == 0
    program = load_saved(path).build(CPU)
    deployed = DeployedDetector(load_saved(tiny_run.out).build(CPU))
    image = torch.rand(3, 48, 80)
    with torch.inference_mode():
        (found,) = program([image])
        boxes, scores, labels, _ = deployed(image[None], torch.tensor([[48.0, 80.0]]))
        torch.testing.assert_close(found["boxes"], boxes[0, : len(found["boxes"])])
        assert torch.equal(found["labels"], labels[0, : len(found["boxes"])])
        # Another image is brought to this size.
        (found,) = program([torch.rand(3, 100, 100)])
    assert len(found["boxes"]) > 0
    assert 80 < found["boxes"].max() <= 100


def test_no_detection_is_an_answer_too(tiny_run, tmp_path):
    saved = load_saved(tiny_run.out)
    saved.recipe.model.box_score_thresh = 0.99
    export(saved, tmp_path / "quiet.pt2")
    (found,) = load_saved(tmp_path / "quiet.pt2").build(CPU)([torch.zeros(3, 64, 64)])
    assert {name: tuple(value.shape) for name, value in found.items()} == {
        "boxes": (0, 4),
        "labels": (0,),
        "scores": (0,),
    }


@pytest.mark.parametrize("detector", ["fast_rcnn", "faster_rcnn"])
def test_live_batch_norm_on_each_roi_is_exported_for_any_number_of_rois(detector, tmp_path):
    named = {"detector": detector, "backbone": "resnet18", "neck": "c4", "norm_layer": "batch"}
    sizes = {"min_size": 64, "max_size": 64, "box_score_thresh": 0.0}
    recipe = Recipe(model=ModelConfig(**named, **sizes, weights_backbone=None))
    model = build_model(recipe.model, 4, pretrained=False)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.normal_(std=0.1)
                layer.running_var.uniform_(0.5, 2)
    classes = ClassList(("a", "b", "c"), (1, 2, 3))
    saved = SavedDetector(tmp_path, recipe, classes, 0, {}, model.state_dict())
    export(saved, tmp_path / "c4.pt2")
    program, model = load_saved(tmp_path / "c4.pt2").build(CPU), saved.build(CPU)
    image = torch.rand(3, 64, 64)
    boxes = torch.tensor([[1.0, 2, 30, 40], [10, 10, 60, 50], [0, 30, 40, 64]]).repeat(5, 1)
    calls = [([image],)]
    if detector == "fast_rcnn":
        calls = [([image], [boxes[:count]]) for count in (0, 1, 2, 15)]
    with torch.inference_mode():
        for call in calls:
            (expected,), (found,) = model(*call), program(*call)
            assert len(expected["boxes"]) > 0 or len(call[1][0]) == 0
            assert torch.equal(found["labels"], expected["labels"])
            torch.testing.assert_close(found["boxes"], expected["boxes"], atol=1e-2, rtol=1e-3)
            torch.testing.assert_close(found["scores"], expected["scores"], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--out", "model.bin"],
            "model.bin ends in the suffix of no format; there are",
        ),
        (["--out", "model.pt2", "--format", "jit"], "there is no format 'jit'; there are safetens"),
        (
            ["--out", "model.pt2", "--format", "safetensors"],
            "in .safetensors, not as model.pt2",
        ),
        (["--out", "w.safetensors", "--size", "64x64"], "weights have no size of images"),
        (["--out", "m.pt2", "--image-sizes"], "--image-sizes is for the formats onnx and openvino"),
        (["--out", "w.safetensors", "--image-sizes"], "is for the formats onnx and openvino"),
    ],
)
def test_mistakes_are_told(tiny_run, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(tiny_run.out), *arguments]) == 2
    assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["export", str(tiny_run.out), "--out", "w.pt2", "--size", "64"])


@pytest.mark.parametrize("name", ["broken.safetensors", "broken.pt2"])
def test_damaged_files_are_told(tmp_path, capsys, name):
    (tmp_path / name).write_bytes(b"nothing of the kind")
    picture = tmp_path / "a.png"
    picture.write_bytes(b"")
    assert main(["detect", str(tmp_path / name), str(picture), "--out", str(tmp_path / "o")]) == 2
    assert "is damaged" in capsys.readouterr().err


def test_one_model_is_one_file(tiny_run, tmp_path):
    saved = load_saved(tiny_run.out)
    for number in range(8):  # the library orders the two metadata by chance
        export(saved, tmp_path / f"{number}.safetensors")
    contents = {path.read_bytes() for path in tmp_path.iterdir()}
    assert len(contents) == 1
    assert load_saved(tmp_path / "0.safetensors").classes == saved.classes


def test_foreign_weights_are_told(tmp_path):
    torch_files = pytest.importorskip("safetensors.torch")
    torch_files.save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(Exception, match="was not written by rcnn-ext export"):
        load_saved(tmp_path / "foreign.safetensors")


@pytest.mark.long
def test_strict_programs_are_those_of_the_model():
    """Recorded by TorchDynamo from the code, and not by running it."""
    torch.manual_seed(0)
    sizes = {"min_size": 64, "max_size": 96, "box_score_thresh": 0.0}
    model = models.faster_rcnn("resnet18", neck="c4", num_classes=3, **sizes).eval()
    program = trace_detector(model, strict=True).module()
    deployed = DeployedDetector(model)
    with torch.no_grad():
        for images, shapes in (
            (torch.rand(1, 3, 64, 90), [[64.0, 90.0]]),
            (torch.rand(3, 3, 70, 64), [[70.0, 64.0], [64.0, 60.0], [50.0, 64.0]]),
        ):
            image_sizes = torch.tensor(shapes)
            expected = deployed(images, image_sizes)
            assert expected[3].min() > 0
            for found, own in zip(program(images, image_sizes), expected, strict=True):
                torch.testing.assert_close(found, own)
