"""The record of kernels, and the check that compares a build with it."""

from __future__ import annotations

import dataclasses
import pathlib

import cuda_code
import cuda_model
import pytest
import sass
from cuda_code import Code, KernelFacts

LOOP = sass.Loop(0x30, 0xA0, 40, 30, 20, {"global_loads": 4, "multiply_adds": 4})
GOOD = KernelFacts(registers=64, stack=0, spills=0, loops=(LOOP, dataclasses.replace(LOOP)))
CODE = Code(
    "13.0",
    {"align<float>": GOOD, "nms<float>": GOOD},
    "0.26.0",
    {"rival<float>": GOOD},
    {"proposals/1": (90, 2)},
)


def changed(**changes: object) -> dict[str, KernelFacts]:
    return {**CODE.kernels, "align<float>": dataclasses.replace(GOOD, **changes)}


def with_loop(instructions: int) -> dict[str, KernelFacts]:
    return changed(loops=(LOOP, dataclasses.replace(LOOP, instructions=instructions)))


@pytest.fixture
def run_check(monkeypatch, tmp_path):
    """Run --check against CODE, with given kernels in the module and version of nvcc."""
    path = tmp_path / "record.json"
    path.write_text(cuda_code.dump(CODE))
    monkeypatch.setattr(cuda_code, "load", lambda: Code(**_fields(path)))

    def run(kernels: dict[str, KernelFacts], compiler: str | None = "13.0") -> int:
        monkeypatch.setattr(cuda_code, "compiler_version", lambda: compiler)
        monkeypatch.setattr(cuda_code, "read_modules", lambda paths: kernels)
        return cuda_model.main(["--check", "--module", "module.so"])

    return run


def _fields(path: pathlib.Path) -> dict:
    code = load(path)
    return {field.name: getattr(code, field.name) for field in dataclasses.fields(code)}


load = cuda_code.load


def test_a_record_reads_back(tmp_path):
    path = tmp_path / "record.json"
    path.write_text(cuda_code.dump(CODE))
    back = load(path)
    assert (back.compiler, back.torchvision_version) == ("13.0", "0.26.0")
    assert back.kernels.keys() == CODE.kernels.keys()
    loop = back.kernels["align<float>"].loops[0]
    assert (loop.instructions, loop.screened, loop.shortest, loop.kinds) == (40, 30, 20, LOOP.kinds)
    assert back.torchvision_calls == {"proposals/1": (90, 2)}
    assert cuda_code.dump(back) == cuda_code.dump(CODE)


def test_the_same_module_passes(run_check, capsys):
    assert run_check(CODE.kernels) == 0
    assert "2 kernels: no new spills" in capsys.readouterr().out


def test_a_new_spill_fails(run_check, capsys):
    assert run_check(changed(spills=2)) == 1
    assert "align<float>: 2 instructions spill registers, 0 recorded" in capsys.readouterr().out


def test_a_new_stack_fails(run_check, capsys):
    assert run_check(changed(stack=16)) == 1
    assert "align<float>: 16 bytes of stack, 0 recorded" in capsys.readouterr().out


def test_an_inner_loop_may_grow_by_a_tenth(run_check, capsys):
    assert run_check(with_loop(44)) == 0
    assert run_check(with_loop(45)) == 1
    found = capsys.readouterr().out
    assert "align<float>: inner loop 2 has 45 instructions, 40 recorded (+12%)" in found


def test_a_shorter_loop_and_other_registers_pass_with_a_note(run_check, capsys):
    assert run_check(with_loop(20)) == 0
    assert run_check(changed(registers=80)) == 0
    assert "note: align<float>: 80 registers, 64 recorded" in capsys.readouterr().out


def test_loops_that_come_or_go_need_a_record(run_check, capsys):
    assert run_check(changed(loops=(LOOP,))) == 1
    assert "align<float>: 1 inner loops, 2 recorded" in capsys.readouterr().out


def test_kernels_that_come_or_go_need_a_record(run_check, capsys):
    assert run_check({"align<float>": GOOD, "new<float>": GOOD}) == 1
    found = capsys.readouterr().out
    assert "new<float>: is not recorded" in found
    assert "nms<float>: is recorded, and is not in the module" in found
    assert "--record" in found


@pytest.mark.parametrize(
    ("compiler", "reason"), [("12.9", "this nvcc is 12.9"), (None, "there is no nvcc")]
)
def test_another_compiler_skips_with_a_reason(run_check, capsys, compiler, reason):
    assert run_check(changed(spills=9), compiler) == 0
    assert f"skipped: the record is of nvcc 13.0, {reason}" in capsys.readouterr().out


def test_without_a_module_it_says_how_to_build_one(monkeypatch, capsys):
    monkeypatch.setattr(cuda_code, "compiler_version", lambda: cuda_code.load().compiler)
    monkeypatch.setattr(cuda_model, "REPOSITORY", pathlib.Path("nowhere"))
    assert cuda_model.main(["--check"]) == 2
    assert "TORCH_CUDA_ARCH_LIST=9.0" in capsys.readouterr().err


def test_without_cuobjdump_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(cuda_code, "find_tool", lambda name: None)
    with pytest.raises(cuda_code.ToolError, match="install triton"):
        cuda_code.read_modules([pathlib.Path("module.so")])


def test_without_a_demangler_it_says_what_to_install(monkeypatch):
    text = "\tFunction : kernel\n  /*0000*/  EXIT ;\n"
    usage = " Function kernel:\n  REG:8 STACK:0 SHARED:0 LOCAL:0\n"
    answers = {"-sass": text, "-res-usage": usage}
    monkeypatch.setattr(cuda_code, "_cuobjdump", lambda *arguments: answers[arguments[2]])
    monkeypatch.setattr(sass.shutil, "which", lambda name: None)
    with pytest.raises(cuda_code.ToolError, match="install binutils"):
        cuda_code.read_modules([pathlib.Path("module.so")])


def test_a_module_that_is_missing_is_named(capsys, monkeypatch):
    monkeypatch.setattr(cuda_code, "compiler_version", lambda: cuda_code.load().compiler)
    if cuda_code.find_tool("cuobjdump") is None:
        pytest.skip("cuobjdump is not installed")
    assert cuda_model.main(["--check", "--module", "nowhere.so"]) == 2
    assert "cuobjdump cannot read nowhere.so" in capsys.readouterr().err


def test_a_module_of_another_architecture_is_refused(monkeypatch):
    monkeypatch.setattr(cuda_code, "_cuobjdump", lambda *arguments: "")
    with pytest.raises(cuda_code.ToolError, match=r"module.so: expected kernels for sm_90"):
        cuda_code.read_modules([pathlib.Path("module.so")])


def test_the_committed_record_has_no_spill_but_of_float64_and_int64():
    for name, facts in cuda_code.load().kernels.items():
        if not any(wide in name for wide in ("double", "long")):
            assert (facts.spills, facts.stack) == (0, 0), name
