"""Programs from strangers: what could run code is refused, and nothing of it is run."""

from __future__ import annotations

import io
import json
import pickle
import random
import zipfile

import pytest
import torch

from rcnn_ext.cli import main
from rcnn_ext.config import ModelConfig, Recipe
from rcnn_ext.data.annotations import ClassList
from rcnn_ext.errors import UserError
from rcnn_ext.export import export
from rcnn_ext.models.from_config import build_model
from rcnn_ext.predict.checkpoint import ModelFormatError, SavedDetector
from rcnn_ext.predict.load import load_saved
from tests.helpers.pictures import upright_picture

SAMPLES = "data/sample_inputs/model.pt"
WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"
GRAPH = "models/model.json"


class Touch:
    """Make a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.fixture(scope="module")
def entries(tmp_path_factory):
    """The entries of the program of a small localizer, by name."""
    config = ModelConfig(detector="localizer", backbone="cnn", fixed_size=(32, 32))
    model = build_model(config, 3, pretrained=False)
    recipe = Recipe(model=config)
    saved = SavedDetector(
        tmp_path_factory.mktemp("none"),
        recipe,
        ClassList(("a", "b"), (1, 2)),
        0,
        {},
        model.state_dict(),
    )
    path = tmp_path_factory.mktemp("program") / "model.pt2"
    export(saved, path)
    with zipfile.ZipFile(path) as archive:
        return {item.partition("/")[2]: archive.read(item) for item in archive.namelist()}


def write(path, entries, **options):
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, content in entries.items():
            archive.writestr(f"model/{name}", content)
    return path


def edited(entries, name, edit):
    """Return the entries with one JSON document changed by a function."""
    document = json.loads(entries[name])
    edit(document)
    return entries | {name: json.dumps(document).encode()}


def test_a_program_of_ours_holds_no_pickle_and_is_opened(entries, tmp_path):
    assert entries[SAMPLES] == b""
    assert b"stack_trace" not in entries[GRAPH]
    saved = load_saved(write(tmp_path / "model.pt2", entries))
    (found,) = saved.build(torch.device("cpu"))([torch.rand(3, 20, 40)])
    assert found["boxes"].shape[1] == 4


def pickled_sample(entries, touch):
    return entries | {SAMPLES: pickle.dumps(touch)}


def torch_pickled_sample(entries, touch):
    buffer = io.BytesIO()
    torch.save(touch, buffer)
    return entries | {SAMPLES: buffer.getvalue()}


def pickled_weight(entries, touch):
    def edit(config):
        next(iter(config["config"].values()))["use_pickle"] = True

    return edited(entries, WEIGHTS, edit) | {"data/weights/weight_0": pickle.dumps(touch)}


def pickled_constant(entries, touch):
    def edit(config):
        config["config"]["x"] = {
            "path_name": "opaque_obj_0",
            "is_param": False,
            "use_pickle": True,
            "tensor_meta": None,
        }

    return edited(entries, CONSTANTS, edit)


def opaque_object(entries, touch):
    return entries | {"data/constants/opaque_obj_0": pickle.dumps(touch)}


def legacy_weights(entries, touch):
    return entries | {"data/weights/model.pt": pickle.dumps(touch)}


def second_model(entries, touch):
    return entries | {
        "models/other.json": entries[GRAPH],
        "data/sample_inputs/other.pt": pickle.dumps(touch),
    }


def compiled_code(entries, touch):
    return entries | {"data/aotinductor/model/model.so": b"\x7fELF"}


def system_call(entries, touch):
    def edit(graph):
        node = graph["graph_module"]["graph"]["nodes"][0]
        node["target"] = "torch.os.system"
        node["inputs"] = [
            {"name": "command", "arg": {"as_string": f"touch {touch.path}"}, "kind": 1}
        ]

    return edited(entries, GRAPH, edit)


def writing_operator(entries, touch):
    def edit(graph):
        graph["graph_module"]["graph"]["nodes"][0]["target"] = "torch.ops.aten.from_file.default"

    return edited(entries, GRAPH, edit)


def evaluated_size(entries, touch):
    def edit(graph):
        code = f"__import__('pathlib').Path({str(touch.path)!r}).touch() or Integer(3)"
        sizes = next(iter(graph["graph_module"]["graph"]["tensor_values"].values()))["sizes"]
        sizes[0] = {"as_expr": {"expr_str": code, "hint": None}}

    return edited(entries, GRAPH, edit)


def source_in_a_name(entries, touch):
    def edit(graph):
        first = graph["graph_module"]["graph"]["inputs"][0]["as_tensor"]
        first["name"] = f"x=open({str(touch.path)!r}, 'w')"

    return edited(entries, GRAPH, edit)


def imported_enum(entries, touch):
    def edit(graph):
        signature = graph["graph_module"]["module_call_graph"][0]["signature"]
        context = json.dumps([{"__enum__": True, "fqn": "antigravity:x", "name": "y"}])
        spec = {"type": "builtins.dict", "context": context, "children_spec": []}
        signature["in_spec"] = json.dumps([1, spec])

    return edited(entries, GRAPH, edit)


HOSTILE = [
    (pickled_sample, "is a pickle, which can run code"),
    (torch_pickled_sample, "is a pickle, which can run code"),
    (pickled_weight, "as a pickle, which can run code"),
    (pickled_constant, "as a pickle, which can run code"),
    (opaque_object, "'data/constants/opaque_obj_0', which may hold code"),
    (legacy_weights, "'data/weights/model.pt', which may hold code"),
    (second_model, "which may hold code"),
    (compiled_code, "is a package of compiled code"),
    (system_call, "'torch.os.system' as a target, which could run code"),
    (writing_operator, "'torch.ops.aten.from_file.default' as a target"),
    (evaluated_size, "as a expr_str, which could run code"),
    (source_in_a_name, "as a name, which could run code"),
    (imported_enum, "as a in_spec, which could run code"),
]


@pytest.mark.parametrize(
    ("attack", "message"), HOSTILE, ids=lambda value: getattr(value, "__name__", "")
)
def test_code_in_a_program_is_refused_and_not_run(entries, tmp_path, capfd, attack, message):
    touched = tmp_path / "touched"
    path = write(tmp_path / "model.pt2", attack(entries, Touch(touched)))
    upright_picture()[0].save(picture := tmp_path / "a.png")
    assert main(["detect", str(path), str(picture), "--out", str(tmp_path / "out")]) == 2
    error = capfd.readouterr().err
    assert message in error
    assert str(path) in error
    assert error.count("\n") == 1
    assert not touched.exists()


def test_guards_are_not_run(entries, tmp_path):
    touched = tmp_path / "touched"

    def edit(graph):
        graph["guards_code"] = [f"open({str(touched)!r}, 'w')"]

    path = write(tmp_path / "model.pt2", edited(entries, GRAPH, edit))
    load_saved(path).build(torch.device("cpu"))([torch.rand(3, 32, 32)])
    assert not touched.exists()


def test_an_archive_that_two_readers_read_differently_is_refused(entries, tmp_path):
    path = write(tmp_path / "twice.pt2", entries)
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"model/{GRAPH}", b"{}")
    with pytest.raises(ModelFormatError, match="twice"):
        load_saved(path)
    path = write(tmp_path / "small.pt2", entries, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(ModelFormatError, match="is compressed"):
        load_saved(path)


def test_damaged_programs_are_one_line(entries, tmp_path, capfd):
    """Bytes are changed anywhere in the file, and values anywhere in the graph."""
    draw = random.Random(0)
    whole = write(tmp_path / "whole.pt2", entries).read_bytes()
    for index in range(25):
        path = tmp_path / f"{index}.pt2"
        content = bytearray(whole[: draw.randrange(len(whole))] if index % 5 == 0 else whole)
        for _ in range(8):
            content[draw.randrange(len(content))] = draw.randrange(256)
        path.write_bytes(content)
        check_one_line(path, capfd)
    for index in range(25):
        path = tmp_path / f"graph{index}.pt2"

        def edit(graph):
            value, key = graph, None
            while isinstance(value, dict | list) and value and (key is None or draw.random() < 0.9):
                holder = value
                key = draw.choice(list(value) if isinstance(value, dict) else range(len(value)))
                value = value[key]
            holder[key] = draw.choice([None, 1, -1, 10**30, "", "x", [], {}, True])

        write(path, edited(entries, draw.choice([GRAPH, WEIGHTS, "extra/rcnn_ext.json"]), edit))
        check_one_line(path, capfd)


def check_one_line(path, capfd):
    """Open and run a program, which works, or is refused in one line."""
    capfd.readouterr()
    message = path.name
    try:
        load_saved(path).build(torch.device("cpu"))([torch.rand(3, 32, 32)])
    except UserError as error:
        message = str(error)
    assert path.name in message
    assert "\n" not in message
    output = capfd.readouterr()
    assert output.out == output.err == ""
