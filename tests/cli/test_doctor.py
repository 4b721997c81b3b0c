"""``rcnn-ext doctor``: healthy, without native modules, and broken."""

from __future__ import annotations

import argparse
import json
import pathlib
import shutil
import subprocess
import sys
from typing import Any

import pytest
import torch

from rcnn_ext import _environment, _extension
from rcnn_ext._extension import ModuleStatus
from rcnn_ext.bench import runner
from rcnn_ext.cli import doctor

if sys.version_info >= (3, 11):
    import tomllib

ROOT = pathlib.Path(__file__).parents[2]


def _run(*options: str) -> int:
    parser = argparse.ArgumentParser()
    doctor.add_arguments(parser)
    return doctor.run(parser.parse_args(options))


def test_here_it_works(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("--json") == 0
    findings = json.loads(capsys.readouterr().out)
    assert findings["works"]
    assert findings["problems"] == []
    assert findings["versions"]["torch"] == torch.__version__
    assert set(findings["modules"]) == {"_C", "_C_cuda", "_selective_search"}
    assert set(findings["self_test"]["cpu"].values()) == {"ok"}
    for name, kind in findings["operators"]["cpu"].items():
        native = torch._C._dispatch_has_kernel_for_dispatch_key(f"rcnn_ext::{name}", "CPU")
        assert kind == ("native" if native else "reference")


def test_text_names_what_a_reader_looks_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run() == 0
    text = capsys.readouterr().out
    for word in (torch.__version__, "Native modules", "_C_cuda", "Operators", "nms", "Extras"):
        assert word in text
    assert "Problems" not in text


def test_acceleration_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    from rcnn_ext import accelerate

    assert doctor._acceleration_text(doctor._examine_acceleration()).startswith(
        "torchvision on these kernels\n  off: "
    )
    with accelerate(level="models"):
        state = doctor._examine_acceleration()
    assert state["level"] == "models"
    text = doctor._acceleration_text(state)
    assert "on: level models" in text
    native = torch._C._dispatch_has_kernel_for_dispatch_key("rcnn_ext::nms", "CPU")
    assert ("cpu   nms, roi_align" in text) == native
    broken = doctor._acceleration_text({**state, "compat": "_C.so: no such library"})
    assert "its operators are ours: _C.so: no such library" in broken


def test_wrong_operator_is_a_problem(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from torchvision import ops as torchvision_ops

    class Wrong:
        def __getattr__(self, name: str) -> Any:
            return getattr(torchvision_ops, name)

        @staticmethod
        def nms(*_: Any) -> torch.Tensor:
            return torch.tensor([0])

        @staticmethod
        def roi_pool(*_: Any) -> torch.Tensor:
            raise RuntimeError("no kernel")

    monkeypatch.setattr(runner, "contender_ops", lambda name: Wrong())
    assert _run() == 1
    text = capsys.readouterr().out
    assert "nms/300 on cpu: wrong" in text
    assert "roi_pool/9 on cpu: raised RuntimeError('no kernel')" in text
    assert "BROKEN" in text


def test_module_that_does_not_load_is_a_problem(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    statuses = _extension.status()
    broken = ModuleStatus("_C", False, pathlib.Path("_C.so"), "cannot be loaded: undefined symbol")
    monkeypatch.setattr(_extension, "status", lambda: {**statuses, "_C": broken})
    assert _run() == 1
    text = capsys.readouterr().out
    # In a checkout `pip install .` would compile for another copy of the package.
    assert f"undefined symbol; to fix it, run `pip install -e .` in {ROOT}" in text


def test_changed_sources_are_hinted_at(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_environment, "built_hash", lambda: "0" * 16)
    monkeypatch.setattr(_environment, "source_hash", lambda: "1" * 16)
    assert _run() == 0
    assert "csrc/ has changed since the build" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "path", "has_cuda", "state"),
    [
        ("_C", None, False, "missing"),
        ("_C", "_C.so", False, "broken"),
        ("_C_cuda", None, True, "missing"),
        ("_C_cuda", "_C_cuda.so", True, "broken"),
        # A wheel with CUDA kernels under a CPU-only torch is in order.
        ("_C_cuda", "_C_cuda.so", False, "not needed"),
        ("_C_cuda", None, False, "not needed"),
    ],
)
def test_judge_module(name: str, path: str | None, has_cuda: bool, state: str) -> None:
    status = ModuleStatus(name, False, pathlib.Path(path) if path else None, "why")
    judged, advice = doctor.judge_module(status, has_cuda)
    assert judged == state
    if state == "not needed":
        assert advice is None
    else:
        assert advice is not None
        assert "why" in advice


def test_judge_loaded_module() -> None:
    assert doctor.judge_module(ModuleStatus("_C", True, pathlib.Path("x"), None), True) == (
        "loaded",
        None,
    )


@pytest.mark.parametrize(
    ("architectures", "capability", "expected"),
    [
        ("9.0", (9, 0), True),
        ("8.0;9.0", (8, 6), True),
        ("8.6", (8, 0), False),
        ("8.0", (9, 0), False),
        ("8.0+PTX", (9, 0), True),
        ("7.5 8.0+PTX", (12, 0), True),
        ("9.0+PTX", (8, 9), False),
        ("9.0a", (9, 0), True),
        ("9.0a", (10, 0), False),
        ("Hopper", (9, 0), None),
        ("Hopper;8.0", (8, 0), True),
    ],
)
def test_covers(architectures: str, capability: tuple[int, int], expected: bool | None) -> None:
    assert doctor.covers(architectures, capability) is expected


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib came with Python 3.11")
def test_extras_are_those_of_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for extra, names in doctor.EXTRAS.items():
        declared = {
            requirement.split(">")[0].split("[")[0]
            for requirement in project["optional-dependencies"][extra]
        }
        assert declared == set(names)


def test_torch_target_is_read_as_a_version() -> None:
    assert doctor._torch_target("0x020b000000000000") == "2.11"
    assert doctor._torch_target(None) == "unknown"


@pytest.mark.slow
def test_installation_without_native_modules(tmp_path: pathlib.Path) -> None:
    """It works through the reference, and says so."""
    shutil.copytree(
        ROOT / "rcnn_ext",
        tmp_path / "rcnn_ext",
        ignore=shutil.ignore_patterns("*.so", "*.pyd", "__pycache__", "_build_info.json"),
    )
    done = subprocess.run(
        [sys.executable, "-m", "rcnn_ext", "doctor", "--json"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    findings = json.loads(done.stdout)
    assert set(findings["operators"]["cpu"].values()) == {"reference"}
    assert set(findings["self_test"]["cpu"].values()) == {"ok"}
    assert findings["modules"]["_C"]["state"] == "missing"
    (hint,) = [hint for hint in findings["hints"] if "_C (CPU kernels): not built" in hint]
    assert hint.endswith("run `pip install .` in a source checkout")


def test_without_torch(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert _run() == 1
    assert "torch cannot be imported" in capsys.readouterr().out
