"""The stages of the GPU gate: their commands, and how their outcomes are judged."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import gate_reports
import gate_stages
import gate_toolkit
import pytest
from gate_types import FAILED, MISSING, PASSED, Command, Context, Finished, Gpu, Outcome

GPU = Gpu("NVIDIA H200", "9.0")
MEMCHECK_CLEAN = (
    "========= COMPUTE-SANITIZER\nWORKLOAD: 8 of 9 calls\n========= ERROR SUMMARY: {}\n"
)
RACECHECK = "WORKLOAD: 9 of 9 calls\n========= RACECHECK SUMMARY: {}\n"
RESOURCES = """
Fatbin elf code:
================
arch = sm_90
code version = [1,8]

Resource usage:
 Common:
  GLOBAL:0
 Function _ZN8rcnn_ext5helloIdEEvPT_i:
  REG:30 STACK:320 SHARED:1536 LOCAL:0 CONSTANT[0]:540 TEXTURE:0 SURFACE:0 SAMPLER:0
 Function _ZN8rcnn_ext5helloIfEEvPT_i:
  REG:27 STACK:0 SHARED:1280 LOCAL:0 CONSTANT[0]:540 TEXTURE:0 SURFACE:0 SAMPLER:0
"""


@pytest.fixture
def context(tmp_path: pathlib.Path) -> Context:
    out, scratch = tmp_path / "out", tmp_path / "scratch"
    out.mkdir()
    scratch.mkdir()
    return Context(out, scratch, GPU)


# --- sanitizers -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tool", "output", "expected"),
    [
        ("memcheck", "========= ERROR SUMMARY: 0 errors\n", {"errors": 0}),
        ("memcheck", "========= ERROR SUMMARY: 1 error\n", {"errors": 1}),
        (
            "racecheck",
            "========= RACECHECK SUMMARY: 3 hazards displayed (1 error, 2 warnings)\n",
            {"hazards": 3, "errors": 1, "warnings": 2},
        ),
        (
            "racecheck",
            "========= RACECHECK SUMMARY: 1 hazard displayed (0 errors, 1 warning)\n",
            {"hazards": 1, "errors": 0, "warnings": 1},
        ),
        ("memcheck", "Segmentation fault\n", None),
        ("racecheck", "========= ERROR SUMMARY: 0 errors\n", None),
    ],
)
def test_count_sanitizer(tool: str, output: str, expected: dict[str, int] | None) -> None:
    assert gate_reports.count_sanitizer(tool, output) == expected


@pytest.mark.parametrize(
    ("code", "output", "status"),
    [
        (0, MEMCHECK_CLEAN.format("0 errors"), PASSED),
        (99, MEMCHECK_CLEAN.format("2 errors"), FAILED),
        (0, MEMCHECK_CLEAN.format("2 errors"), FAILED),
        (1, MEMCHECK_CLEAN.format("0 errors"), FAILED),
        # The workload stopped on a wrong result, or never began.
        (0, "WRONG: nms\n========= ERROR SUMMARY: 0 errors\n", FAILED),
        (0, "WORKLOAD: 0 of 9 calls\n========= ERROR SUMMARY: 0 errors\n", FAILED),
        (0, "WORKLOAD: 9 of 9 calls\n", FAILED),
        (255, "========= Error: Device not supported. Please refer to ...\n", MISSING),
    ],
)
def test_judge_memcheck(code: int, output: str, status: str) -> None:
    assert gate_toolkit.judge_sanitizer("memcheck", Finished(code, False, output)).status == status


def test_racecheck_fails_on_errors_and_reports_warnings() -> None:
    warned = RACECHECK.format("2 hazards displayed (0 errors, 2 warnings)")
    outcome = gate_toolkit.judge_sanitizer("racecheck", Finished(0, False, warned))
    assert outcome.status == PASSED
    assert "2 warnings in 9 of 9 calls" in outcome.summary
    raced = RACECHECK.format("2 hazards displayed (1 errors, 1 warnings)")
    assert gate_toolkit.judge_sanitizer("racecheck", Finished(99, False, raced)).status == FAILED


def test_missing_sanitizer_is_said(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_toolkit, "find_tool", lambda name: None)
    outcome = gate_toolkit.sanitizer_stage("memcheck", 1).prepare(context, 60)
    assert isinstance(outcome, Outcome)
    assert outcome.status == MISSING
    assert "NOT CHECKED" in outcome.summary


def test_sanitizer_command(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_toolkit, "find_tool", lambda name: "/x/compute-sanitizer")
    command = gate_toolkit.sanitizer_stage("racecheck", 1).prepare(context, 100)
    assert isinstance(command, Command)
    assert str(command).startswith("PYTORCH_NO_CUDA_MEMORY_CACHING=1 /x/compute-sanitizer --tool")
    assert command.arguments[-2:] == ["--seconds", "55"]  # less the start under a sanitizer


def test_initcheck_counts_kernels_of_this_package_alone(context: Context) -> None:
    report = (
        "========= Uninitialized __global__ memory read of size 4 bytes\n"
        "=========     at void {}::kernel<float>(const T1 *)+0x40 in file.cu:{}\n"
    )
    end = "WORKLOAD: 9 of 9 calls\n========= ERROR SUMMARY: 3 errors\n"
    others = report.format("at::native", 1) + report.format("cub", 2)
    outcome = gate_toolkit.judge_sanitizer("initcheck", Finished(0, False, others + end))
    assert outcome.status == PASSED
    output = others + report.format("rcnn_ext", 3) + end
    outcome = gate_toolkit.judge_sanitizer("initcheck", Finished(0, False, output))
    assert outcome.status == FAILED
    assert outcome.details["errors"] == 1
    assert gate_reports.count_sanitizer("initcheck", "Segmentation fault\n") is None


# --- other stages ---------------------------------------------------------------------------------


def test_resources_are_read(context: Context) -> None:
    outcome = gate_toolkit.judge_resources(context, Finished(0, False, RESOURCES))
    assert outcome.status == PASSED
    assert outcome.summary == "sm_90: 2 kernels, at most 30 registers, 1 with a stack frame"
    assert outcome.details["kernels"][1] == {
        "architecture": "sm_90",
        "kernel": "_ZN8rcnn_ext5helloIfEEvPT_i",
        "registers": 27,
        "stack": 0,
        "shared": 1280,
        "local": 0,
    }
    both = RESOURCES + RESOURCES.replace("sm_90", "sm_80").replace("REG:30", "REG:64")
    summary = gate_toolkit.judge_resources(context, Finished(0, False, both)).summary
    assert summary.startswith("sm_90: 2 kernels, at most 30 registers")
    assert summary.endswith("sm_80: 2 kernels, at most 64 registers, 1 with a stack frame")
    renamed = RESOURCES.replace("rcnn_ext", "renamed_")
    assert gate_toolkit.judge_resources(context, Finished(0, False, renamed)).status == FAILED
    assert gate_toolkit.judge_resources(context, Finished(0, False, "")).status == FAILED


def _write(path: pathlib.Path, *lines: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def test_tests_are_counted(context: Context) -> None:
    outcome = gate_stages.judge_tests(context, Finished(2, False, "boom"))
    assert (outcome.status, outcome.summary) == (FAILED, "no test ran; exit status 2: boom")
    path = gate_stages.outcomes_file(context)
    _write(path, *({"test": str(i), "outcome": "passed"} for i in range(7)))
    _write(path, {"test": "a", "outcome": "skipped"})
    done = Finished(0, False, "")
    outcome = gate_stages.judge_tests(context, done)
    assert (outcome.status, outcome.summary) == (PASSED, "7 passed, 1 skipped")
    # Stopped, or with none left to run, it counts as far as it went; ended badly, it does not.
    assert gate_stages.judge_tests(context, Finished(-2, True, "")).status == PASSED
    assert gate_stages.judge_tests(context, Finished(5, False, "")).status == PASSED
    assert gate_stages.judge_tests(context, Finished(-11, False, "")).status == FAILED
    _write(path, {"test": "test_nms.py::test_ties[cuda]", "outcome": "failed", "reason": "1 ulp"})
    # Its worker died with it, and it was run again.
    _write(path, {"test": "test_nms.py::test_ties[cuda]", "outcome": "passed"})
    with path.open("a") as file:
        file.write('{"test": "cut')
    outcome = gate_stages.judge_tests(context, Finished(1, False, ""))
    assert outcome.status == FAILED
    assert outcome.summary == "7 passed, 1 failed, 1 skipped; test_nms.py::test_ties[cuda]"
    failure = {"test": "test_nms.py::test_ties[cuda]", "reason": "1 ulp"}
    assert outcome.details["not_passed"] == [failure]


def test_a_run_of_skipped_tests_does_not_pass(context: Context) -> None:
    _write(gate_stages.outcomes_file(context), {"test": "a", "outcome": "skipped"})
    assert gate_stages.judge_tests(context, Finished(0, False, "")).status == FAILED


def test_wrong_results_of_the_workload(context: Context) -> None:
    def judge(code: int, output: str) -> Outcome:
        return gate_stages.judge_workload(context, Finished(code, False, output))

    assert judge(0, "WORKLOAD: 8 of 9 calls\n").status == PASSED
    assert judge(0, "WORKLOAD: 0 of 9 calls\n").status == FAILED
    assert judge(1, "Traceback\nboom\n").summary == "did not end well: boom"
    wrong = judge(1, "WRONG: nms 5, result 0: 3 != 4\nWRONG: other\n")
    assert wrong.status == FAILED
    assert wrong.summary == "2 wrong results; nms 5, result 0: 3 != 4"


def test_models_are_summed_up(context: Context) -> None:
    assert gate_stages.judge_models(context, Finished(1, False, "boom")).summary == "boom"
    rows = [{"case": "inference", "ratio_torchvision": 2.5}]
    path = context.scratch / "models.json"
    path.write_text(json.dumps({"results": rows, "failures": []}))
    outcome = gate_stages.judge_models(context, Finished(0, False, ""))
    assert (outcome.status, outcome.summary) == (PASSED, "inference 2.50x")
    path.write_text(json.dumps({"results": rows, "failures": ["inference: wrong"]}))
    outcome = gate_stages.judge_models(context, Finished(1, False, ""))
    assert (outcome.status, outcome.summary[-26:]) == (FAILED, "1 failed: inference: wrong")


def test_load_wants_native_cuda_kernels(context: Context) -> None:
    findings: dict[str, Any] = {"problems": [], "operators": {"cuda": {"nms": "native"}}}
    output = f"a warning\n{json.dumps(findings, indent=1)}\nanother"
    assert gate_stages.judge_load(context, Finished(0, False, output)).status == PASSED
    findings["operators"]["cuda"]["roi_align"] = "reference"
    outcome = gate_stages.judge_load(context, Finished(0, False, json.dumps(findings)))
    assert outcome.status == FAILED
    assert outcome.summary == "roi_align has no CUDA kernel"
    assert gate_stages.judge_load(context, Finished(1, False, "Traceback\nboom")).summary == "boom"


def test_modules_that_came_along(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_stages, "REPOSITORY", context.scratch)
    nothing = gate_stages.prepare_carried(context, 9)
    assert isinstance(nothing, Outcome)
    assert nothing.status == MISSING
    folder = context.scratch / "rcnn_ext"
    folder.mkdir()
    (folder / "_C_cuda.abi3.so").touch()
    assert isinstance(gate_stages.prepare_carried(context, 9), Command)
    sources = {"built": "1", "present": "2"}
    findings = {"problems": [], "operators": {"cuda": {"nms": "native"}}, "sources": sources}
    outcome = gate_stages.judge_carried(context, Finished(0, False, json.dumps(findings)))
    assert (outcome.status, outcome.summary) == (MISSING, "not taken: they are of other sources")
    assert isinstance(gate_stages.prepare_build(context, 9), Command)
    assert isinstance(gate_stages.prepare_load(context, 9), Command)
    # With those of these sources, nothing is built and the doctor is not asked twice.
    sources["present"] = "1"
    outcome = gate_stages.judge_carried(context, Finished(0, False, json.dumps(findings)))
    assert outcome.status == PASSED
    for prepare in (gate_stages.prepare_build, gate_stages.prepare_load):
        taken = prepare(context, 9)
        assert isinstance(taken, Outcome)
        assert taken.status == PASSED


def _row(case: str, **values: Any) -> dict[str, Any]:
    row = {"case": case, "ratio_torchvision": None, "target_reached": None, "failures": []}
    return {"row": {**row, **values}}


def test_comparison_is_summed_up(context: Context) -> None:
    done = Finished(0, False, "")
    path = gate_stages.rows_file(context)
    assert gate_stages.judge_compare(context, done).summary == "no row was measured"
    _write(path, {"planned": ["a", "b", "c", "d"]})
    _write(path, {"started": "a"}, _row("a", ratio_torchvision=2.0, target_reached=True))
    _write(path, {"started": "b"}, _row("b", ratio_torchvision=0.5, target_reached=False))
    outcome = gate_stages.judge_compare(context, done)
    assert outcome.status == PASSED
    expected = (
        "2 rows, faster than torchvision in 1 of 2, 1 of 2 targets, 2 cases left out for time"
    )
    assert outcome.summary == expected
    assert outcome.details["left_out"] == ["c", "d"]
    # The last case may have been stopped; one before it took its process along.
    _write(path, {"started": "c"})
    assert gate_stages.judge_compare(context, done).status == PASSED
    _write(path, {"started": "d"}, _row("d", atomic={"target_reached": True}))
    outcome = gate_stages.judge_compare(context, done)
    assert outcome.status == FAILED
    assert "1 of 1 gradients within reach of atomic ones" in outcome.summary
    assert outcome.summary.endswith("1 failed: c: its process died or hung")
    assert len(outcome.details["results"]) == 3
    outcome = gate_stages.judge_compare(context, Finished(-11, False, "boom"))
    assert outcome.summary.endswith("; exit status -11: boom")


def test_build_failure_names_the_error(context: Context) -> None:
    output = "compiling\nnms_cuda.cu(3): error: expected a ;\n1 error detected\nninja: stopped\n"
    outcome = gate_stages.judge_build(context, Finished(1, False, output))
    assert outcome.status == FAILED
    assert outcome.summary == "nms_cuda.cu(3): error: expected a ;"


def test_what_is_compared_is_built_after_the_package(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = gate_stages.prepare_build(context, 90)
    atomic = gate_stages.prepare_atomic(context, 90)
    assert isinstance(build, Command)
    assert isinstance(atomic, Command)
    assert build.environment["TORCH_CUDA_ARCH_LIST"] == "9.0"
    # Another architecture would build the package's kernels anew.
    assert atomic.arguments == build.arguments
    assert atomic.environment == {**build.environment, "RCNN_EXT_BENCHMARKS": "1"}
    assert gate_stages.prepare_atomic(context, 9) == Outcome(MISSING, "no time to build it")
    names = [stage.name for stage in gate_stages.STAGES]
    assert names.index("build") < names.index("atomic") < names.index("compare")

    monkeypatch.setattr(gate_stages, "REPOSITORY", context.scratch)
    outcome = gate_stages.judge_atomic(context, Finished(1, False, "a.cu(1): error: no\nstopped\n"))
    assert (outcome.status, outcome.summary) == (FAILED, "a.cu(1): error: no")
    assert gate_stages.judge_atomic(context, Finished(0, False, "")).status == FAILED
    folder = context.scratch / "benchmarks" / "cuda"
    folder.mkdir(parents=True)
    (folder / "_atomic.abi3.so").touch()
    assert gate_stages.judge_atomic(context, Finished(0, False, "")).status == PASSED
    context.notes["loaded"] = outcome
    assert gate_stages.prepare_atomic(context, 9) == Outcome(PASSED, "came along")
