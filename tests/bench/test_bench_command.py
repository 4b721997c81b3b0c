"""``rcnn-ext bench`` from its options to its files, on one small case."""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import subprocess
import sys
from typing import Any

import pytest
import torch

from rcnn_ext import _extension, ops
from rcnn_ext.bench import atomic, comparison, contenders, report, runner, suite
from rcnn_ext.bench.cases import IouCase, NmsCase, RoiCase, SoftNmsCase
from rcnn_ext.bench.contenders import ATOMIC, OURS, REFERENCE, TORCHVISION
from rcnn_ext.bench.runner import Settings, run_cases
from rcnn_ext.bench.timing import TimingConfig
from rcnn_ext.cli import bench
from rcnn_ext.errors import UserError

FAST = TimingConfig(min_run_time=1e-4, budget=0.0, max_runs=5)
SETTINGS = Settings(torch.device("cpu"), timing=FAST)


def _arguments(*options: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    return parser.parse_args(options)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite, "suite", lambda quick: suite.tiny())
    monkeypatch.setattr(comparison, "QUICK_TIMING", FAST)


def test_run_prints_and_writes_everything(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, results = tmp_path / "out", tmp_path / "results"
    results.mkdir()
    options = ("--quick", "--only", "nms", "--threads", "1,2")
    assert bench.run(_arguments(*options, "--out", str(out), "--json", str(results))) == 0
    printed = capsys.readouterr()
    assert "batched_nms" in printed.out
    assert "0 failures" in printed.out
    data = json.loads((out / "operators.json").read_text())
    assert [(row["case"], row["threads"]) for row in data["results"]] == [
        ("nms/300", 1),
        ("nms/300", 2),
        ("batched_nms/300", 1),
        ("batched_nms/300", 2),
        ("soft_nms/100/linear", 1),
        ("soft_nms/100/linear", 2),
        ("soft_nms/100/gaussian", 1),
        ("soft_nms/100/gaussian", 2),
    ]
    assert (out / "operators.txt").read_text() in printed.out
    (named,) = results.iterdir()
    assert named.name == report.result_name(data["environment"])
    assert json.loads(named.read_text()) == data


def test_environment_says_what_a_figure_needs() -> None:
    data = comparison.compare(SETTINGS, suite.select(suite.tiny(), "cpu", "nms")).as_json()
    environment = data["environment"]
    assert environment["versions"]["torch"] == torch.__version__
    assert environment["date"].endswith("+00:00")
    assert environment["device_name"]
    assert environment["cpu"]["torch_capability"]
    assert set(data["backends"]) >= {"nms", "batched_nms", "roi_align", "box_iou", "roi_pool"}
    # Results are published: they name no folder of the machine.
    assert str(pathlib.Path.home()) not in json.dumps(data)


def test_run_quick(tmp_path: pathlib.Path) -> None:
    table = comparison.run_quick(tmp_path)
    assert table == tmp_path / "operators.txt"
    for case in suite.tiny():
        assert case.work in table.read_text()


def test_wrong_result_fails_the_run(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Wrong:
        @staticmethod
        def nms(*_: Any) -> torch.Tensor:
            return torch.tensor([0, 1, 2])

    real = runner.contender_ops
    monkeypatch.setattr(runner, "contender_ops", lambda name: Wrong if name == OURS else real(name))
    assert bench.run(_arguments("--quick", "--only", "nms/300")) == 1
    assert "FAILED" in capsys.readouterr().out
    with pytest.raises(RuntimeError, match="nms/300"):
        comparison.run_quick(tmp_path)
    assert (tmp_path / "operators.json").is_file()


def test_torchvision_without_the_dtype_is_no_failure() -> None:
    settings = Settings(torch.device("cpu"), (torch.bfloat16,), timing=FAST)
    (row,), skipped = run_cases([NmsCase("nms", count=40)], settings, lambda row: None)
    assert not skipped
    assert not row.failures
    assert OURS in row.timings
    assert TORCHVISION in row.timings or "not implemented" in row.problems[TORCHVISION]


def test_an_operator_that_raises_is_reported_and_the_suite_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Broken:
        @staticmethod
        def nms(*_: Any) -> torch.Tensor:
            raise ValueError("no kernel\nand a long story")

        box_iou = staticmethod(ops.box_iou)

    real = runner.contender_ops
    monkeypatch.setattr(
        runner, "contender_ops", lambda name: Broken if name == OURS else real(name)
    )
    cases = [NmsCase("nms", count=40), IouCase("box_iou", rows=3, columns=2)]
    first, second = run_cases(cases, SETTINGS, lambda row: None)[0]
    assert first.failures == [f"{OURS} raised ValueError: no kernel"]
    assert OURS not in first.timings
    assert TORCHVISION in first.timings
    assert not second.failures


def test_reference_contender_runs_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    backends = set()
    real = ops.use_backend

    def record(name: str) -> Any:
        backends.add(name)
        return real(name)

    monkeypatch.setattr(ops, "use_backend", record)
    settings = Settings(torch.device("cpu"), timing=FAST, contenders=(REFERENCE,))
    (row,), _ = run_cases([NmsCase("nms", count=40)], settings, lambda row: None)
    assert set(row.timings) == {REFERENCE}
    assert backends == {"reference"}


def test_threads_are_set_and_restored() -> None:
    before = torch.get_num_threads()
    seen = []
    settings = Settings(torch.device("cpu"), threads=(1, 2), timing=FAST)
    run_cases(
        [NmsCase("nms", count=40)], settings, lambda row: seen.append(torch.get_num_threads())
    )
    assert seen == [1, 2]
    assert torch.get_num_threads() == before


def test_forced_instruction_sets_are_contenders_of_their_own() -> None:
    seen: list[str | None] = []

    class Watching(NmsCase):
        def bind(self, ops: Any, inputs: Any) -> Any:
            seen.append(_extension.instruction_set())
            return super().bind(ops, inputs)

    sets = _extension.instruction_sets()
    names = tuple(
        name for name in contenders.CONTENDERS if name.removeprefix("rcnn_ext-") in {*sets, OURS}
    )
    settings = dataclasses.replace(SETTINGS, contenders=names)
    rows, _ = run_cases([Watching("nms", count=50)], settings, lambda row: None)
    assert set(rows[0].timings) == set(names)
    assert seen == [name.removeprefix("rcnn_ext-") if name != OURS else sets[-1] for name in names]
    assert _extension.instruction_set() == sets[-1]


def test_usual_contenders_take_avx2_where_it_is_not_the_best(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_extension, "instruction_set", lambda: "avx512")
    assert contenders.AVX2 in runner.default_contenders("cpu")
    assert contenders.AVX2 not in runner.default_contenders("cuda")
    monkeypatch.setattr(_extension, "instruction_set", lambda: "avx2")
    assert runner.default_contenders("cpu") == (OURS, TORCHVISION, REFERENCE)


def test_a_case_too_long_for_others_runs_ours_only() -> None:
    settings = dataclasses.replace(SETTINGS, contenders=(OURS, TORCHVISION, REFERENCE))
    rows, _ = run_cases([NmsCase("nms", count=50, only_ours=True)], settings, lambda row: None)
    assert set(rows[0].timings) == {OURS}


@pytest.mark.parametrize("named", [(TORCHVISION,), (TORCHVISION, REFERENCE), ()])
def test_reference_takes_the_place_of_a_missing_counterpart(named: tuple[str, ...]) -> None:
    settings = dataclasses.replace(SETTINGS, contenders=(OURS, *named))
    case = SoftNmsCase("soft_nms", count=20)
    (row,), _ = run_cases([case], settings, lambda row: None)
    assert set(row.timings) == {OURS, *([REFERENCE] if named else [])}
    assert not row.problems


def test_the_atomic_variant_is_a_contender_where_it_is_built(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atomic, "_FOLDER", tmp_path)
    assert ATOMIC not in runner.default_contenders("cuda")
    (tmp_path / "_atomic.abi3.so").touch()
    assert ATOMIC in runner.default_contenders("cuda")
    assert ATOMIC not in runner.default_contenders("cpu")


def test_the_atomic_variant_takes_part_where_a_gradient_is_the_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(atomic, "load", lambda: ops)
    settings = dataclasses.replace(SETTINGS, contenders=(OURS, ATOMIC))
    cases = [
        RoiCase(operator, rois=3, channels=2, map_size=(9, 9), backward=backward)
        for operator in ("roi_align", "roi_pool")
        for backward in (True, False)
    ]
    rows, _ = run_cases(cases, settings, lambda row: None)
    assert [ATOMIC in row.timings for row in rows] == [True, False, False, False]
    assert all(OURS in row.timings for row in rows)


def test_the_atomic_variant_has_to_be_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic, "library", lambda: None)
    with pytest.raises(UserError, match="RCNN_EXT_BENCHMARKS=1 python setup.py"):
        bench.run(_arguments("--contenders", "rcnn_ext,atomic"))
    with pytest.raises(RuntimeError, match="RCNN_EXT_BENCHMARKS=1 python setup.py"):
        atomic.load()


def test_growth_spares_torchvision_the_largest_sizes(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    largest = max(suite.growth(), key=lambda case: case.size if "nms" in case.name else 0)
    assert largest.size == 1_000_000
    assert largest.only_ours
    small = [NmsCase("nms", count=count, only_ours=count > 100) for count in (50, 100, 200)]
    monkeypatch.setattr(suite, "growth", lambda: small)
    assert bench.run(_arguments("--growth", "--json", str(tmp_path))) == 0
    (data,) = tmp_path.glob("*-growth.json")
    results = json.loads(data.read_text())["results"]
    assert [TORCHVISION in row["contenders"] for row in results] == [True, True, False]
    assert not any(REFERENCE in row["contenders"] for row in results)
    capsys.readouterr()


def test_budget_leaves_cases_out_and_says_so() -> None:
    settings = Settings(torch.device("cpu"), timing=FAST, time_limit=0.0)
    cases = suite.tiny()[:3]
    rows, skipped = run_cases(cases, settings, lambda row: None)
    assert len(rows) + len(skipped) == 3
    assert skipped


def test_list_runs_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.run(_arguments("--list")) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(suite.tiny())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--device", "xpu"], "cpu and cuda"),
        (["--device", "no such thing"], "expected cpu, cuda"),
        (["--only", "nmz"], "no case matches"),
    ],
)
def test_what_the_user_can_mend(options: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        bench.run(_arguments(*options))


def test_places_that_cannot_be_written_are_found_at_once(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "compare", lambda *_: pytest.fail("the suite ran"))
    occupied = tmp_path / "file"
    occupied.touch()
    for option, place in (("--out", occupied), ("--json", occupied / "results")):
        with pytest.raises(UserError, match="cannot make the folder"):
            bench.run(_arguments(option, str(place)))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none() -> None:
    with pytest.raises(UserError, match="no CUDA device"):
        bench.run(_arguments("--device", "cuda"))


@pytest.mark.parametrize(
    "options",
    [["--threads", "0"], ["--threads", "x"], ["--dtype", "int8"], ["--contenders", "me"]],
)
def test_bad_options_are_refused_by_the_parser(
    options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        _arguments(*options)
    assert options[0] in capsys.readouterr().err


def test_a_mistake_is_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rcnn_ext", "bench", "--only", "nmz"],
        capture_output=True,
        text=True,
        check=False,
        cwd=pathlib.Path(__file__).parents[2],
    )
    assert done.returncode == 2
    assert done.stderr.startswith("rcnn-ext: no case matches 'nmz'")
    assert "Traceback" not in done.stderr
