"""Call, context manager, decorator, command and environment variable: on, and wholly undone."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision

import rcnn_ext
from rcnn_ext.accelerate import environment
from rcnn_ext.accelerate.__main__ import main
from rcnn_ext.errors import UserError
from rcnn_ext.ops import has_native_kernel
from tests.helpers.run_python import run_python

pytestmark = pytest.mark.skipif(
    not has_native_kernel("nms", "cpu"), reason="the CPU kernels are not compiled"
)


def level() -> str | None:
    return rcnn_ext.accelerate.status().level


def kernel_of_nms() -> str:
    dump: str = torch._C._dispatch_dump_table("torchvision::nms")
    return next(line for line in dump.splitlines() if line.startswith("CPU:"))


@pytest.fixture(autouse=True)
def off() -> Iterator[None]:
    before = kernel_of_nms()
    assert level() is None
    yield
    assert level() is None
    assert kernel_of_nms() == before


def test_call_and_undo() -> None:
    before = kernel_of_nms()
    handle = rcnn_ext.accelerate()
    assert (level(), handle.active) == ("operators", True)
    assert kernel_of_nms() != before
    assert "level='operators' exact=True on" in repr(handle)
    handle.undo()
    assert (level(), handle.active) == (None, False)
    handle.undo()
    assert level() is None


def test_nested_holders_are_counted() -> None:
    first, second = rcnn_ext.accelerate(), rcnn_ext.accelerate()
    first.undo()
    assert level() == "operators"
    with rcnn_ext.accelerate(level="models") as third:
        assert level() == "models"
        with third, third:
            second.undo()
        assert level() == "models"
    assert level() is None
    with third:
        assert level() == "models"


def test_a_block_that_fails_leaves_it_off() -> None:
    with pytest.raises(ZeroDivisionError), rcnn_ext.accelerate(level="models", exact=False):
        raise ZeroDivisionError
    assert rcnn_ext.accelerate.status().exact


def test_an_installation_that_fails_leaves_nothing_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from rcnn_ext.accelerate import switch

    def fail() -> None:
        raise RuntimeError("no")

    monkeypatch.setitem(switch._installers, "models", fail)
    with pytest.raises(RuntimeError, match="no"):
        rcnn_ext.accelerate(level="models")


def test_decorators() -> None:
    seen: list[str | None] = []

    @rcnn_ext.accelerate
    def plain(value: int) -> int:
        seen.append(level())
        return value

    @rcnn_ext.accelerate(level="models")
    def with_level(value: int) -> int:
        "Documented."
        seen.append(level())
        return value

    assert level() is None
    assert (plain(1), with_level(value=2)) == (1, 2)
    assert with_level.__doc__ == "Documented."
    assert seen == ["operators", "models"]


def test_decorated_generators_and_coroutines() -> None:
    @rcnn_ext.accelerate
    def generator() -> Iterator[str | None]:
        yield level()

    @rcnn_ext.accelerate
    async def coroutine() -> str | None:
        await asyncio.sleep(0)
        return level()

    @rcnn_ext.accelerate()
    async def async_generator() -> AsyncIterator[str | None]:
        yield level()

    async def collect() -> list[str | None]:
        return [value async for value in async_generator()]

    generated = generator()
    assert level() is None
    assert list(generated) == ["operators"]
    assert asyncio.run(coroutine()) == "operators"
    assert asyncio.run(collect()) == ["operators"]


@pytest.mark.parametrize("level", ["model", "", None, 2])
def test_unknown_level(level: Any) -> None:
    with pytest.raises(UserError, match="expected 'operators' or 'models', got"):
        rcnn_ext.accelerate(level=level)


@pytest.mark.parametrize("target", [3, "operators", object()])
def test_what_cannot_be_accelerated(target: Any) -> None:
    with pytest.raises(UserError, match=f"got {type(target).__name__}"):
        rcnn_ext.accelerate(target)
    with pytest.raises(UserError, match=f"got {type(target).__name__}"), rcnn_ext.accelerate() as a:
        a(target)


def test_functions_and_methods_are_wholly_undone() -> None:
    from torchvision.models.detection.roi_heads import RoIHeads
    from torchvision.models.detection.rpn import RegionProposalNetwork
    from torchvision.ops import MultiScaleRoIAlign, batched_nms

    owners = (MultiScaleRoIAlign, RegionProposalNetwork, RoIHeads)
    before = [dict(vars(owner)) for owner in owners]
    code, attributes = batched_nms.__code__, dict(vars(batched_nms))
    with rcnn_ext.accelerate(level="models"):
        assert batched_nms.__code__ is not code
        assert MultiScaleRoIAlign.forward is not before[0]["forward"]
    assert [dict(vars(owner)) for owner in owners] == before
    assert batched_nms.__code__ is code
    assert vars(batched_nms) == attributes


def test_threads_that_enter_and_leave_disturb_nobody() -> None:
    random = torch.Generator().manual_seed(0)
    corners = torch.rand(200, 2, generator=random) * 50
    boxes = torch.cat((corners, corners + 10), dim=1)
    scores = torch.rand(200, generator=random)
    expected = torchvision.ops.nms(boxes, scores, 0.5)
    classes = torch.arange(200) % 3
    expected_classes = torchvision.ops.batched_nms(boxes, scores, classes, 0.5)
    stop, wrong = threading.Event(), []

    def compute() -> None:
        while not stop.is_set():
            keep = torchvision.ops.nms(boxes, scores, 0.5)
            of_classes = torchvision.ops.batched_nms(boxes, scores, classes, 0.5)
            if not (torch.equal(keep, expected) and torch.equal(of_classes, expected_classes)):
                wrong.append((keep, of_classes))

    def switch() -> None:
        for _ in range(300):
            with rcnn_ext.accelerate(level="models"):
                torchvision.ops.nms(boxes, scores, 0.5)

    computing = [threading.Thread(target=compute) for _ in range(2)]
    switching = [threading.Thread(target=switch) for _ in range(2)]
    for thread in (*computing, *switching):
        thread.start()
    for thread in switching:
        thread.join()
    stop.set()
    for thread in computing:
        thread.join()
    assert not wrong


# Compares the kernel that runs with the one that ran before.
_SCRIPT = """
import sys, warnings
warnings.simplefilter("error")
import torch, torchvision
ours = "torchvision/csrc" not in next(
    line for line in torch._C._dispatch_dump_table("torchvision::nms").splitlines()
    if line.startswith("CPU:")
)
boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 10, 10]])
kept = torchvision.ops.nms(boxes, torch.tensor([1.0, 0.5]), 0.5).tolist()
print(__name__, ours, kept, sys.argv[1:], len(sys.argv[0]) > 0)
"""


def _python(*arguments: str, folder: Path, **environment: str) -> Any:
    root = Path(rcnn_ext.__file__).parents[1]
    return subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        env={**os.environ, "PYTHONPATH": str(root), **environment},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_command(tmp_path: Path) -> None:
    script = tmp_path / "with space.py"
    script.write_text(_SCRIPT + "import beside\nraise SystemExit(3)\n")
    (tmp_path / "beside.py").write_text("import os; print(os.environ['RCNN_EXT_ACCELERATE'])\n")
    done = _python("-m", "rcnn_ext.accelerate", str(script), "--level", "x", folder=tmp_path)
    assert done.returncode == 3, done.stderr
    assert done.stdout.splitlines() == [
        "__main__ True [0] ['--level', 'x'] True",
        "operators",
    ]
    assert done.stderr == ""


def test_command_runs_modules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    package = tmp_path / "a_package_to_run"
    package.mkdir()
    (package / "__init__.py").touch()
    text = "import sys, rcnn_ext\nprint(__name__, sys.argv[1:], rcnn_ext.accelerate.status())\n"
    (package / "job.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "argv", ["before"])
    monkeypatch.setenv(environment.VARIABLE, "")
    options = ["--level", "models", "--inexact", "-m", "a_package_to_run.job", "-x", "1"]
    held = []
    monkeypatch.setattr(
        "rcnn_ext.accelerate.__main__.Acceleration",
        lambda *args: held.append(rcnn_ext.accelerate.Acceleration(*args)),
    )
    try:
        assert main(options) == 0
    finally:
        held[0].undo()
    out = capsys.readouterr().out
    assert out.startswith("__main__ ['-x', '1'] Status(level='models', exact=False")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["no such.py"], "no such.py: no such script"),
        (["-m", "no_such.module"], "-m no_such.module: no such module"),
        (["-m", "no_such_module"], "-m no_such_module: no such module"),
    ],
)
def test_command_names_what_is_missing(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert named in error
    assert error.count("\n") == 1


def test_variable_holds_where_the_package_is_imported(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import rcnn_ext\n" + _SCRIPT)
    done = _python(str(script), folder=tmp_path, RCNN_EXT_ACCELERATE="1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("__main__ True [0]")
    assert done.stderr == ""


def test_variable_zero_imports_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RCNN_EXT_ACCELERATE", "0")
    run_python("import sys, rcnn_ext\nassert 'torch' not in sys.modules")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *((value, "operators") for value in ("1", "true", "ON", "yes", "operators", " 1 ")),
        *((value, None) for value in ("", "0", "false", "Off", "no")),
        ("models", "models"),
    ],
)
def test_values_of_the_variable(value: str, expected: str | None) -> None:
    assert environment.level_from(value) == expected


def test_unknown_value_of_the_variable() -> None:
    with pytest.raises(UserError, match="RCNN_EXT_ACCELERATE: expected 1 or 0, or a level"):
        environment.level_from("2")


def test_without_compiled_kernels_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from rcnn_ext.accelerate import operators

    monkeypatch.setattr(operators, "replaceable", lambda device_type: ())
    with pytest.warns(RuntimeWarning, match="torchvision is not accelerated"):
        handle = rcnn_ext.accelerate()
    handle.undo()
