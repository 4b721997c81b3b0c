"""What is broken in a kernel, and the table of who notices."""

from __future__ import annotations

import pathlib

import mutate_cuda
import pytest
from cuda_mutants import DEVICE_FUNCTIONS, Mutant, mutate
from mutate_cuda import Row, earlier_rows, is_chosen, report

KERNEL = """
__global__ void copy(const int* from, int* to, int count) {
  __shared__ int held[32];
  bool inside = threadIdx.x < count && from[0] == 1;
  if (inside) held[threadIdx.x] = from[threadIdx.x];
  __syncthreads();  // if (threadIdx.x < 9)
  for (int i = 0; i < count; ++i) to[i] = held[i];
}
void host(int count) {
  if (count < 9) return;
}
"""


def mutants_of(file: str, first_number: int = 1) -> list[Mutant]:
    return mutate(KERNEL, pathlib.Path(file), first_number)[1]


def test_breaks_the_kernel_and_nothing_else() -> None:
    source, mutants = mutate(KERNEL, pathlib.Path("copy/copy_cuda.cu"), 7)
    assert [(m.number, m.line, m.kind, m.text) for m in mutants] == [
        (7, 4, "bounds", "threadIdx.x < count"),
        (8, 5, "bounds", "inside"),
        (9, 6, "barrier", "__syncthreads();"),
        (10, 7, "loop bound", "i < count"),
    ]
    assert "((rcnn_active_mutant == 7) ? true : static_cast<bool>(threadIdx.x < count))" in source
    assert "do { if (!(rcnn_active_mutant == 9)) __syncthreads(); } while (0);" in source
    assert "((rcnn_active_mutant == 10) ? i <= count : i < count)" in source
    assert "if (count < 9) return;" in source


def test_counts_equal_texts_of_a_file() -> None:
    twice = KERNEL.replace("__syncthreads();", "__syncthreads(); __syncthreads();")
    mutants = mutate(twice, pathlib.Path("copy_cuda.cu"), 1)[1]
    assert [m.occurrence for m in mutants if m.kind == "barrier"] == [1, 2]


def test_tables_name_code_that_exists(tmp_path: pathlib.Path) -> None:
    mutants = mutate_cuda.make_sources(tmp_path / "csrc")
    known = {(m.file.name, m.text, m.occurrence) for m in mutants}
    assert set(mutate_cuda.EXPLAINED) | set(mutate_cuda.WORK_SAVED) <= known
    assert set(mutate_cuda.OPERATORS) <= {m.file.name for m in mutants}
    sources = "".join(
        path.read_text() for path in (tmp_path / "csrc").rglob("*.*") if "cu" in path.suffix
    ) + "".join(path.read_text() for path in (tmp_path / "csrc" / "core").iterdir())
    missing = [name for name in DEVICE_FUNCTIONS if f"{name}(" not in sources]
    assert not missing


def test_patterns_choose_by_file() -> None:
    mutant = mutants_of("core/roi_math.h", first_number=3)[0]
    assert is_chosen(mutant, ["*"], None)
    assert is_chosen(mutant, ["nms/*", "roi_*"], None)
    assert is_chosen(mutant, ["core/*"], [3])
    assert not is_chosen(mutant, ["core/*"], [4])
    assert not is_chosen(mutant, ["nms*"], None)


def test_keeps_the_rows_of_other_files(tmp_path: pathlib.Path) -> None:
    mutants = [*mutants_of("a/a.cuh"), *mutants_of("b/b.cuh", first_number=5)]
    answers = ["a || b", None, "AddressSanitizer: bad", "worse", None, "c", "d", "e"]
    rows = [Row(m, answer) for m, answer in zip(mutants, answers, strict=True)]
    table = tmp_path / "mutants.md"
    table.write_text(mutate_cuda.HEADING + report(rows)[0])
    assert earlier_rows(table, mutants) == rows
    assert earlier_rows(table, mutants[4:]) == rows[4:]

    with pytest.raises(SystemExit, match=r"does not know the mutants of c/c\.cuh"):
        earlier_rows(table, mutants_of("c/c.cuh"))
    with pytest.raises(SystemExit, match=r"b/b\.cuh: examine those too"):
        earlier_rows(table, mutants[4:7])  # one less than the table has


def test_survivors_need_a_reason_and_must_be_few(monkeypatch: pytest.MonkeyPatch) -> None:
    mutants = [m for n in range(5) for m in mutants_of(f"{n}.cuh", first_number=1 + 4 * n)]
    rows = [Row(m, None if m.number == 2 else "found") for m in mutants]
    table, good = report(rows)
    assert "unexplained" in table
    assert not good

    monkeypatch.setitem(mutate_cuda.EXPLAINED, ("0.cuh", "inside", 1), "because")
    table, good = report(rows)
    assert "| 0.cuh:5 | bounds | `inside` | **survives**: because |" in table
    assert "19 of 20 mutants caught (95.0%)." in table
    assert good
    for n in (1, 2):
        monkeypatch.setitem(mutate_cuda.EXPLAINED, (f"{n}.cuh", "inside", 1), "because")
    assert not report([Row(m, None if m.text == "inside" else "found") for m in mutants[:12]])[1]
