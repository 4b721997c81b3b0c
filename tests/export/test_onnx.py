"""Every kind of detector in ONNX Runtime and OpenVINO, and what the files say of themselves."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import rcnn_ext
from rcnn_ext.cli import main
from rcnn_ext.config import ModelConfig, Recipe
from rcnn_ext.data.annotations import ClassList
from rcnn_ext.errors import UserError
from rcnn_ext.export import ExportOptions, export
from rcnn_ext.models.fast_rcnn import needs_proposals
from rcnn_ext.models.from_config import build_model
from rcnn_ext.predict.checkpoint import ModelFormatError, SavedDetector
from rcnn_ext.predict.exported.openvino import openvino_core
from rcnn_ext.predict.load import load_saved
from tests.helpers.run_python import run_python

onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
pytest.importorskip("openvino", reason="needs the extra openvino")

CPU = torch.device("cpu")
CLASSES = ("cat", "dog", 'Größe "<&>" 猫')
SMALL = {"min_size": 96, "max_size": 160, "weights_backbone": None, "backbone": "resnet18"}
FEW_PROPOSALS = {"rpn_pre_nms_top_n_test": 100, "rpn_post_nms_top_n_test": 40}
MODELS: dict[str, dict[str, Any]] = {
    "fpn": {"neck": "fpn", **FEW_PROPOSALS},
    "fpn with sizes": {"neck": "fpn", **FEW_PROPOSALS},
    "c4": {"neck": "c4", "head": "res5", **FEW_PROPOSALS},
    "c5 with RoIPool": {"neck": "c5", "head": "mlp", "pooler": "pool", **FEW_PROPOSALS},
    "mobilenet": {"backbone": "mobilenet_v3_large", **FEW_PROPOSALS},
    "fast_rcnn": {"detector": "fast_rcnn", "neck": "c4", "class_agnostic": True},
    "localizer": {"detector": "localizer", "backbone": "cnn", "fixed_size": (96, 64)},
}


def make_saved(folder: Path, **options: Any) -> SavedDetector:
    torch.manual_seed(0)
    if options.get("detector") != "localizer":
        options = SMALL | options
    recipe = Recipe(model=ModelConfig(**options))
    model = build_model(recipe.model, len(CLASSES) + 1, pretrained=False)
    _spread_outputs(model)
    classes = ClassList(CLASSES, (1, 2, 7))
    return SavedDetector(folder / "made.ckpt", recipe, classes, 3, {}, model.state_dict())


@torch.no_grad()
def _spread_outputs(model: Any) -> None:
    """Scale each layer to outputs of deviation 1: those of random ones vanish, and all are ties."""
    targets: dict[Any, float] = {}
    handles = []

    def scale(layer: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor | None:
        if output.numel() < 2 or not targets[layer]:  # done, in a head of several levels
            return None
        factor = targets[layer] / output.std()
        targets[layer] = 0.0
        layer.weight *= factor
        return output * factor

    model.eval()
    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
            targets[layer] = 0.2 if "bbox" in name else 1.0
            handles.append(layer.register_forward_hook(scale))
    arguments: list[Any] = [[torch.rand(3, 96, 128)]]
    if needs_proposals(model):
        arguments.append([torch.tensor([[5.0, 5, 60, 60], [10, 20, 100, 90]])])
    model(*arguments)
    for handle in handles:
        handle.remove()


@dataclasses.dataclass
class Exported:
    """A model, its files, and what was said when they were written."""

    saved: SavedDetector
    path: Path
    lines: list[str]


@pytest.fixture(scope="module")
def export_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Exported]:
    """Return a function that exports the model of a name, when it is first asked to."""

    @functools.cache
    def make(name: str) -> Exported:
        folder = tmp_path_factory.mktemp("onnx")
        saved = make_saved(folder, **MODELS[name])
        lines: list[str] = []
        takes_sizes = name == "fpn with sizes"
        options = ExportOptions(takes_sizes=takes_sizes, report=lines.append)
        export(saved, folder / "model.onnx", options)
        return Exported(saved, folder / "model.onnx", lines)

    return make


@pytest.fixture(params=MODELS)
def exported(request: pytest.FixtureRequest, export_once: Callable[[str], Exported]) -> Exported:
    return export_once(request.param)


@pytest.fixture
def fpn_file(export_once: Callable[[str], Exported]) -> Path:
    return export_once("fpn").path


def assert_same_detections(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """Check that there is one detection for each, whatever their order."""
    for own, other in zip(found, expected, strict=True):
        assert len(own["boxes"]) == len(other["boxes"])
        for box, label, score in zip(other["boxes"], other["labels"], other["scores"], strict=True):
            near = (own["boxes"] - box).abs().amax(dim=1) <= 1e-2
            near &= (own["scores"] - score).abs() <= 1e-4
            near &= own["labels"] == label
            assert near.any(), (box, label, score)


def test_both_runtimes_find_what_the_model_finds(exported: Exported) -> None:
    assert [line.split(":")[0] for line in exported.lines] == [
        "verified in ONNX Runtime",
        "verified in OpenVINO",
    ]
    assert all(int(line.split()[4 if "ONNX" in line else 3]) > 0 for line in exported.lines)
    model, program = exported.saved.build(CPU), load_saved(exported.path).build(CPU)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for sizes in ([(80, 100)], [(200, 90)], [(100, 80), (64, 64), (60, 150)]):
            images = [torch.rand(3, *size, generator=generator) for size in sizes]
            arguments: list[Any] = [images]
            if program.takes_proposals:
                boxes = torch.rand(9, 4, generator=generator) * 30
                boxes[:, 2:] += boxes[:, :2] + 1
                arguments.append([boxes[: 9 - 4 * i] for i in range(len(images))])
            if program.facts.takes_sizes:
                expected = model(*arguments)
            else:  # not padded to a common size
                expected = [
                    model(*([part] for part in parts))[0] for parts in zip(*arguments, strict=True)
                ]
            assert all(len(one["boxes"]) > 0 for one in expected[:2])
            assert_same_detections(program(*arguments), expected)


def test_graph_and_metadata_are_for_any_runtime(exported: Exported) -> None:
    graph = onnx.load(exported.path)
    onnx.checker.check_model(graph, full_check=True)
    assert [(opset.domain, opset.version) for opset in graph.opset_import] == [("", 18)]
    assert {node.domain for node in graph.graph.node} == {""}

    def axes(values: Any) -> dict[str, list[Any]]:
        return {
            value.name: [
                axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim
            ]
            for value in values
        }

    model = exported.saved.recipe.model
    size = ["height", "width"] if model.fixed_size is None else [64, 96]
    inputs: dict[str, list[Any]] = {"images": ["batch", 3, *size]}
    if load_saved(exported.path).facts.takes_sizes:
        inputs["image_sizes"] = ["batch", 2]
    if model.detector == "fast_rcnn":
        inputs |= {"proposals": ["batch", "proposals", 4], "proposal_counts": ["batch"]}
    assert axes(graph.graph.input) == inputs
    count = 1 if model.detector == "localizer" else "detections"
    assert axes(graph.graph.output) == {
        "boxes": ["batch", count, 4],
        "scores": ["batch", count],
        "labels": ["batch", count],
        "counts": ["batch"],
    }
    metadata = {item.key: json.loads(item.value) for item in graph.metadata_props}
    assert metadata["class_names"] == list(CLASSES)
    assert metadata["sizes"]["min_size"] == model.min_size or model.fixed_size is not None
    assert metadata["preprocessing"]["in_graph"]["normalize"]["mean"] == pytest.approx(
        [0.485, 0.456, 0.406]
    )
    assert metadata["recipe"]["model"]["detector"] == model.detector
    # Nothing of the machine that it was written on.
    content = exported.path.read_bytes()
    assert str(Path(rcnn_ext.__file__).parent).encode() not in content
    assert b"site-packages" not in content


def test_openvino_knows_the_last_size_of_boxes(fpn_file: Path) -> None:
    model = openvino_core().read_model(fpn_file)
    suppressions = [op for op in model.get_ops() if "NonMaxSuppression" in op.get_type_name()]
    assert len(suppressions) == 2
    for suppression in suppressions:
        assert suppression.input(0).get_partial_shape()[2].get_length() == 4


def test_predictor_takes_it_with_classes(fpn_file: Path, tmp_path: Path) -> None:
    model = rcnn_ext.load(fpn_file)
    assert model.class_names == CLASSES
    assert model.recipe == load_saved(fpn_file).recipe
    pictures = [Image.new("RGB", (90, 70), color) for color in ("red", "blue", "green")]
    found = model.predict(pictures, min_score=0.0, batch_size=3)
    assert [len(one.boxes) > 0 for one in found] == [True] * 3
    with pytest.raises(ValueError, match="this is a program"):
        rcnn_ext.load(fpn_file, dtype=torch.bfloat16)


@pytest.mark.parametrize("name", ["wrong.onnx", "wrong.xml"])
def test_what_differs_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    from rcnn_ext.export import onnx as exporter

    trace = exporter.trace_detector

    def trace_another(detector: Any, size: Any, **options: Any) -> Any:
        with torch.no_grad():
            next(detector.parameters()).mul_(1.02)
        return trace(detector, size, **options)

    monkeypatch.setattr(exporter, "trace_detector", trace_another)
    saved = make_saved(tmp_path, **MODELS["localizer"])
    with pytest.raises(UserError, match="differs from .*made.ckpt.* and was not written"):
        export(saved, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_pictures_to_verify_with(tiny_run: Any, tmp_path: Path, capsys: Any) -> None:
    path, pictures = tmp_path / "model.onnx", str(tiny_run.data / "val")
    command = ["export", str(tiny_run.out), "--out", str(path), "--size", "64x48"]
    assert main([*command, "--verify-on", pictures]) == 0
    assert "verified in ONNX Runtime" in capsys.readouterr().out
    assert json.loads({item.key: item.value for item in onnx.load(path).metadata_props}["sizes"])[
        "fixed_size"
    ] == [64, 48]
    for arguments in (["--no-verify"], ["--format", "pt2", "--out", str(tmp_path / "m.pt2")]):
        assert main([*command, *arguments, "--verify-on", pictures]) == 2
        assert "pictures to verify with are of no use" in capsys.readouterr().err
    assert main([*command, "--verify-on", str(tmp_path / "none")]) == 2
    assert sorted(tmp_path.iterdir()) == [path]


def test_a_program_is_not_translated(fpn_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a program already, which cannot be exported again"):
        export(load_saved(fpn_file), tmp_path / "again.onnx")


def _foreign(path: Path) -> None:
    helper = onnx.helper
    value = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    result = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Abs", ["x"], ["y"])], "g", [value], [result])
    onnx.save(helper.make_model(graph), path)


def _edit(change: Any) -> Any:
    def damage(path: Path) -> None:
        model = onnx.load(path)
        change(model)
        onnx.save(model, path)

    return damage


def _outside(model: Any) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")


def _no_recipe(model: Any) -> None:
    kept = [item for item in model.metadata_props if item.key != "recipe"]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)


def _bad_facts(model: Any) -> None:
    (item,) = (item for item in model.metadata_props if item.key == "rcnn_ext")
    content = json.loads(item.value)
    content["facts"]["min_size"] = -4
    item.value = json.dumps(content)


def _no_operator(model: Any) -> None:
    model.graph.node[5].op_type = "NoSuchOperator"


def _no_output(model: Any) -> None:
    model.graph.output[0].name = "other"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(b""), "was not written by rcnn-ext export"),
        (lambda path: path.write_bytes(path.read_bytes()[:9999]), "damaged"),
        (lambda path: path.write_bytes(b"\x89PNG" * 100), "damaged"),
        (_foreign, "was not written by rcnn-ext export"),
        (_edit(_outside), "keeps weights in other files"),
        (_edit(_no_recipe), "was not written by rcnn-ext export"),
        (_edit(_bad_facts), "is damaged, or edited"),
        (_edit(_no_operator), "cannot be run by ONNX Runtime"),
        (_edit(_no_output), "cannot be run by ONNX Runtime"),
    ],
)
def test_damaged_and_foreign_files_are_named(
    fpn_file: Path, tmp_path: Path, capsys: Any, damage: Any, message: str
) -> None:
    path = tmp_path / "damaged.onnx"
    shutil.copyfile(fpn_file, path)
    damage(path)
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    command = ["detect", str(path), str(tmp_path / "a.png"), "--out", str(tmp_path / "o")]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "damaged.onnx" in error
    assert error.count("\n") == 1


def test_signals_are_handled_after_models_are_gone() -> None:
    """OpenVINO leaves a stack for signals that is gone where two cores go in their order."""
    answer = run_python(
        """
import gc, signal
import numpy as np
import openvino
from openvino import opset13
from rcnn_ext.predict.exported.openvino import OpenVinoProgram
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
__import__("faulthandler").enable()  # as pytest does; it has a stack for signals too
def make():
    parameter = opset13.parameter([1, 3], np.float32)
    return OpenVinoProgram(openvino.Model([opset13.relu(parameter)], [parameter]), ["x"])
one, two = make(), make()
del one
gc.collect()
del two
gc.collect()
signal.raise_signal(signal.SIGUSR1)
"""
    )
    assert answer == "handled\n"


def test_damaged_openvino_files_are_named(fpn_file: Path, tmp_path: Path) -> None:
    import openvino

    graph = tmp_path / "model.xml"
    openvino.save_model(openvino_core().read_model(fpn_file), graph)
    with pytest.raises(ModelFormatError, match=r"model.xml was not written by rcnn-ext export"):
        load_saved(graph)
    graph.write_text("<net></n")
    with pytest.raises(ModelFormatError, match=r"model.xml was not .* damaged"):
        load_saved(graph)
    graph.with_suffix(".bin").unlink()
    with pytest.raises(ModelFormatError, match=r"model.bin.*does not exist"):
        load_saved(graph)


@pytest.mark.parametrize(
    ("package", "name", "extra"),
    [
        ("onnxruntime", "m.onnx", "onnx"),
        ("onnxscript", "m.onnx", "onnx"),
        ("openvino", "m.xml", "openvino"),
    ],
)
def test_missing_extras_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, name: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"{package}.*pip install 'rcnn-ext\[{extra}\]'"):
        export(make_saved(tmp_path, **MODELS["localizer"]), tmp_path / name)
    assert list(tmp_path.iterdir()) == []
    if package != "onnxscript":  # which running a model does not need
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(UserError, match=rf"pip install 'rcnn-ext\[{extra}\]'"):
            load_saved(tmp_path / name)
