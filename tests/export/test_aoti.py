"""Packages of compiled code: what they find, from Python and from C++, and what is refused."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

import rcnn_ext
from rcnn_ext import _extension
from rcnn_ext.cli import main
from rcnn_ext.config import ModelConfig, Recipe
from rcnn_ext.data.annotations import ClassList
from rcnn_ext.errors import UserError
from rcnn_ext.export import ExportOptions, export
from rcnn_ext.export import aoti as aoti_format
from rcnn_ext.models.from_config import build_model
from rcnn_ext.predict.checkpoint import ENTRY, ModelFormatError, SavedDetector, describe
from rcnn_ext.predict.exported.package import is_package
from rcnn_ext.predict.saved import load_saved

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[2]
NAMES = ("a cat", "dog")

needs_compiler = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which(os.environ.get("CXX", "g++")) is None,
    reason="compiles with g++ on Linux",
)


def make_saved() -> SavedDetector:
    """A detector of few layers, since most of the time goes into compiling each."""
    model = ModelConfig(
        backbone="resnet18",
        returned_layers=[1, 2],
        pool_size=2,
        anchor_sizes=[16, 32, 48],
        min_size=64,
        max_size=96,
    )
    torch.manual_seed(0)
    detector = build_model(model, len(NAMES) + 1, pretrained=False)
    return SavedDetector(
        path=Path("made"),
        recipe=Recipe(model=model),
        classes=ClassList(NAMES, (1, 2)),
        step=3,
        state={},
        weights=detector.state_dict(),
    )


@pytest.fixture(scope="module")
def saved() -> SavedDetector:
    return make_saved()


@pytest.fixture(scope="module")
def package(saved: SavedDetector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The detector, compiled."""
    path = tmp_path_factory.mktemp("aoti") / "detector.pt2"
    with torch._inductor.config.patch({"aot_inductor.compile_wrapper_opt_level": "O0"}):
        export(saved, path, format="aoti")
    return path


@needs_compiler
def test_a_package_finds_what_the_model_finds(saved: SavedDetector, package: Path) -> None:
    model, loaded = saved.build(CPU), rcnn_ext.load(package, device="cpu", trust=True)
    assert tuple(loaded.class_names) == NAMES
    assert loaded.recipe == saved.recipe
    # Other sizes and numbers of pictures than it was compiled with, up and down in size.
    for sizes in ([(64, 80)], [(50, 64), (120, 64), (64, 30)], [(33, 200), (8, 8)]):
        images = [torch.rand(3, *size) for size in sizes]
        with torch.inference_mode():
            expected, found = model(images), loaded(images)
        for one, other in zip(found, expected, strict=True):
            assert len(one["boxes"]) > 0
            assert torch.equal(one["labels"], other["labels"])
            torch.testing.assert_close(one["boxes"], other["boxes"], atol=1e-2, rtol=1e-4)
            torch.testing.assert_close(one["scores"], other["scores"], atol=1e-4, rtol=1e-4)


@needs_compiler
def test_a_package_has_no_sources_and_no_folders_of_this_machine(package: Path) -> None:
    with zipfile.ZipFile(package) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    assert not any(content for name, content in entries.items() if name.endswith(".cpp"))
    for name, content in entries.items():
        if not name.endswith(".so"):
            assert b"/torchinductor" not in content, name
            assert str(ROOT).encode() not in content, name


@needs_compiler
def test_the_command_line_takes_a_package_that_is_trusted(
    package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    picture = tmp_path / "picture.png"
    Image.effect_noise((90, 70), 80).convert("RGB").save(picture)
    command = ["detect", str(package), str(picture), "--out", str(tmp_path / "out")]
    command += ["--min-score", "0", "--no-pictures", "--device", "cpu"]
    assert main(command) == 2
    assert "load it with --trust" in capsys.readouterr().err
    assert main([*command, "--trust"]) == 0
    found = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert {one["category_name"] for one in found} <= set(NAMES)
    assert found


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example in C++, built."""
    cmake = shutil.which("cmake")
    if cmake is None:
        pytest.skip("needs cmake, which the extra test has")
    folder = tmp_path_factory.mktemp("cpp")
    torch_root = torch.__path__[0]
    configure = ["-S", ROOT / "examples" / "cpp", "-B", folder, f"-DTORCH_ROOT={torch_root}"]
    for command in ([cmake, *configure], [cmake, "--build", folder]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder / "detect"


def run_program(program: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=120
    )


@pytest.fixture(scope="module")
def operators() -> Path:
    """The library of the operators."""
    status = _extension.status()["_C"]
    if not status.loaded or status.path is None:
        pytest.skip(f"_C is {status.reason}")
    return status.path


@needs_compiler
def test_a_program_without_python_finds_what_the_model_finds(
    saved: SavedDetector, package: Path, program: Path, operators: Path, tmp_path: Path
) -> None:
    model = saved.build(CPU)
    for height, width in ((75, 110), (64, 64), (40, 150)):
        picture = torch.rand(3, height, width)
        picture.numpy().tofile(tmp_path / "picture.raw")
        done = run_program(program, package, operators, tmp_path / "picture.raw", height, width)
        assert done.returncode == 0, done.stderr
        rows = [line.split("\t") for line in done.stdout.splitlines()]
        with torch.inference_mode():
            (expected,) = model([picture])
        assert [row[0] for row in rows] == [NAMES[i - 1] for i in expected["labels"].tolist()]
        assert rows
        numbers = torch.tensor([[float(text) for text in row[1:]] for row in rows])
        torch.testing.assert_close(numbers[:, 0], expected["scores"], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(numbers[:, 1:], expected["boxes"], atol=1e-2, rtol=1e-4)
    assert run_program(program, package, operators).stdout.count("\n") > 0


@needs_compiler
def test_the_program_names_what_is_wrong(program: Path, operators: Path, tmp_path: Path) -> None:
    usage = run_program(program)
    assert usage.returncode == 2
    assert "usage:" in usage.stderr
    missing = run_program(program, tmp_path / "none.pt2", tmp_path / "none.so")
    assert missing.returncode == 1
    assert "cannot load the operators" in missing.stderr
    damaged = tmp_path / "damaged.pt2"
    damaged.write_bytes(b"no archive")
    done = run_program(program, damaged, operators)
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1


def write_archive(path: Path, metadata: object, name: str = "code.wrapper_metadata.json") -> Path:
    """An archive that has metadata where packages have it, and no code."""
    with zipfile.ZipFile(path, "w") as archive:
        text = metadata if isinstance(metadata, str) else json.dumps(metadata)
        archive.writestr(f"detector/data/aotinductor/model/{name}", text)
    return path


def metadata_of(saved: SavedDetector, **changes: object) -> dict[str, object]:
    entry = describe(saved.recipe, saved.classes, saved.step, saved.state)[ENTRY]
    facts = {"min_size": 64, "max_size": 96, "fixed_size": None}
    facts |= {"takes_proposals": False, "localizes": False, "takes_sizes": True}
    return {
        "rcnn_ext": json.dumps({"entry": entry, "facts": facts}),
        "AOTI_PLATFORM": sys.platform,
        "AOTI_MACHINE": platform.machine(),
        "AOTI_CPU_ISA": "INVALID_VEC_ISA",
        **changes,
    }


def test_compiled_code_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "model.pt2", "{")
    assert is_package(path)
    for load in (rcnn_ext.load, load_saved):
        with pytest.raises(UserError, match=r"package of compiled code.*--trust.*trust=True"):
            load(path)


def test_a_program_is_no_package(tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    assert not is_package(path)
    path.write_bytes(b"PK no archive")
    assert not is_package(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("program/models/model.json", "{}")
    assert not is_package(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"AOTI_PLATFORM": "plan9"}, "compiled for plan9, and this is"),
        ({"AOTI_MACHINE": "vax"}, "compiled for vax, and this is"),
        ({"rcnn_ext": "{}"}, "was not written by rcnn-ext export"),
        ({"rcnn_ext": "not JSON"}, "was not written by rcnn-ext export"),
        ({"rcnn_ext": 3}, "was not written by rcnn-ext export"),
        ({"rcnn_ext": json.dumps({"entry": [], "facts": {}})}, "was not written by rcnn-ext"),
    ],
)
def test_other_packages_are_refused(
    saved: SavedDetector, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    path = write_archive(tmp_path / "model.pt2", metadata_of(saved, **changes))
    with pytest.raises(ModelFormatError, match=message):
        load_saved(path, trust=True)


def test_code_for_a_newer_processor_is_refused(
    saved: SavedDetector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = metadata_of(saved, AOTI_CPU_ISA="AVX512 AVX512_VNNI")
    path = write_archive(tmp_path / "model.pt2", code)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    with pytest.raises(ModelFormatError, match="for processors with AVX512, and this one has AVX2"):
        load_saved(path, trust=True)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    assert load_saved(path, trust=True).classes.names == NAMES


@pytest.mark.parametrize("metadata", ["{", "[]", "3"])
def test_damaged_metadata_is_named(tmp_path: Path, metadata: str) -> None:
    path = write_archive(tmp_path / "model.pt2", metadata)
    with pytest.raises(ModelFormatError, match="model.pt2"):
        load_saved(path, trust=True)


def test_metadata_that_is_missing_is_named(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "model.pt2", {}, name="code.wrapper.so")
    with pytest.raises(ModelFormatError, match="was not written by rcnn-ext export"):
        load_saved(path, trust=True)


def test_a_package_without_code_is_named_when_it_is_built(
    saved: SavedDetector, tmp_path: Path
) -> None:
    found = load_saved(write_archive(tmp_path / "model.pt2", metadata_of(saved)), trust=True)
    assert (found.step, found.classes) == (saved.step, saved.classes)
    with pytest.raises(UserError, match="compiled for the CPU: run it with --device cpu"):
        found.build(torch.device("cuda"))
    with pytest.raises(ModelFormatError, match="cannot be run, since it is damaged"):
        found.build(CPU)


def test_a_package_is_neither_exported_nor_published(
    saved: SavedDetector, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(write_archive(tmp_path / "model.pt2", metadata_of(saved)))
    assert main(["export", path, "--out", str(tmp_path / "model.safetensors")]) == 2
    assert "is a program already, which cannot be exported again" in capsys.readouterr().err
    pytest.importorskip("huggingface_hub", reason="huggingface_hub comes with the extra hf")
    assert main(["push", path, "--to", str(tmp_path / "repository")]) == 2
    assert "is a program, which others could not train on" in capsys.readouterr().err
    assert [one.name for one in tmp_path.iterdir()] == ["model.pt2"]


def test_a_missing_compiler_is_named(
    saved: SavedDetector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor import exc

    def compile_nothing(*args: object, **kwargs: object) -> None:
        raise exc.InductorError(exc.InvalidCxxCompiler(), None)

    monkeypatch.setattr(aoti_format, "trace_detector", lambda *args, **kwargs: None)
    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", compile_nothing)
    with pytest.raises(UserError, match=r"needs a C\+\+ compiler, and none was found.*CXX"):
        export(saved, tmp_path / "model.pt2", ExportOptions(), format="aoti")
    assert list(tmp_path.iterdir()) == []
