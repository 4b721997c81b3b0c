"""Model the CUDA operators on a GPU of the H200's class, and check what the compiler made of them.

  python tools/cuda_model.py                   print the table: launches, bytes, time, ratio, floor
  python tools/cuda_model.py --write           write it into docs/cuda_model.md
  python tools/cuda_model.py --write --measured gpu.json
                                               with a column of what a device measured
  python tools/cuda_model.py --check           compare the module built for sm_90 with the record
  python tools/cuda_model.py --record          record registers, spills and inner loops of it anew

The record is tools/cuda_kernels.json. --check and --record read rcnn_ext/_C_cuda*.so, built with
TORCH_CUDA_ARCH_LIST=9.0, or the files of --module; both need cuobjdump, which comes with Triton.
"""

from __future__ import annotations

import argparse
import json
import math
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import cuda_code
from gate_types import REPOSITORY

sys.path.insert(0, str(REPOSITORY))

from rcnn_ext.errors import UserError  # noqa: E402
from rcnn_ext.files import replacing  # noqa: E402

PAGE = REPOSITORY / "docs" / "cuda_model.md"
BEGIN = "<!-- tools/cuda_model.py --write: the table -->"
END = "<!-- end of the table -->"
COLUMNS = (
    "Work", "Launches", "Waits", "MB", "Inner loop", "Modeled", "torchvision", "Ratio", "Target",
    "Floor", "Bound by",
)  # fmt: skip
MEASURED_COLUMNS = ("Measured", "Measured ratio")
# A target counts as met with this margin only.
MARGIN = 1.3


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tool and return its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--check", action="store_true", help="compare modules with the record")
    action.add_argument("--record", action="store_true", help="record modules anew")
    action.add_argument("--write", action="store_true", help="write the table into the docs")
    parser.add_argument(
        "--measured", type=pathlib.Path, metavar="FILE", help="gpu.json or JSON of rcnn-ext bench"
    )
    parser.add_argument(
        "--module",
        type=pathlib.Path,
        nargs="+",
        metavar="FILE",
        help="modules or cubins for sm_90 instead of rcnn_ext/_C_cuda*.so",
    )
    options = parser.parse_args(arguments)
    try:
        if options.check or options.record:
            modules = options.module or sorted((REPOSITORY / "rcnn_ext").glob("_C_cuda*.so"))
            return check(modules) if options.check else record(modules)
        table = make_table(None if options.measured is None else read_measured(options.measured))
        if options.write:
            write_page(table)
        else:
            print(table)
    except (cuda_code.ToolError, UserError) as error:
        print(f"cuda_model: {error}", file=sys.stderr)
        return 2
    return 0


# --- the record -------------------------------------------------------------------------------


def check(modules: Sequence[pathlib.Path]) -> int:
    """Compare modules with the record; 1 where something became worse."""
    recorded = cuda_code.load()
    compiler = cuda_code.compiler_version()
    if compiler != recorded.compiler:
        found = "there is no nvcc" if compiler is None else f"this nvcc is {compiler}"
        print(f"skipped: the record is of nvcc {recorded.compiler}, {found}")
        return 0
    found_kernels = cuda_code.read_modules(_existing(modules))
    problems = cuda_code.compare(recorded.kernels, found_kernels)
    for problem in problems:
        print(problem)
    for name in sorted(found_kernels.keys() & recorded.kernels.keys()):
        before, after = recorded.kernels[name].registers, found_kernels[name].registers
        if before != after:
            print(f"note: {name}: {after} registers, {before} recorded")
    if problems:
        print(
            f"{len(problems)} problems; where they are meant, record them:"
            " python tools/cuda_model.py --record"
        )
        return 1
    print(f"{len(found_kernels)} kernels: no new spills, no inner loop grew by more than 10%")
    return 0


def record(modules: Sequence[pathlib.Path]) -> int:
    """Record modules and torchvision's kernels."""
    compiler = cuda_code.compiler_version()
    if compiler is None:
        raise cuda_code.ToolError("nvcc is not installed: it is what compiled the module")
    kernels = cuda_code.read_modules(_existing(modules))
    version, theirs = _torchvision_kernels()
    import cuda_counting

    calls = {
        case.name: cuda_counting.count_torchvision(case) for case in cuda_counting.cases_to_count()
    }
    code = cuda_code.Code(compiler, kernels, version, theirs, calls)
    with replacing(cuda_code.RECORD) as temporary:
        temporary.write_text(cuda_code.dump(code))
    print(f"recorded {len(kernels)} kernels and {len(theirs)} of torchvision {version}")
    return 0


def _existing(modules: Sequence[pathlib.Path]) -> Sequence[pathlib.Path]:
    if not modules:
        raise cuda_code.ToolError(
            "rcnn_ext/_C_cuda*.so is not built: FORCE_CUDA=1 TORCH_CUDA_ARCH_LIST=9.0"
            " python setup.py build_ext --inplace"
        )
    return modules


def _torchvision_kernels() -> tuple[str, dict[str, cuda_code.KernelFacts]]:
    import torchvision

    folder = pathlib.Path(torchvision.__file__).parent
    module = next(iter(sorted(folder.glob("_C*.so"))), None)
    if module is None:
        raise cuda_code.ToolError(f"no _C*.so in {folder}: install torchvision with CUDA kernels")
    kernels = cuda_code.read_modules([module])
    kept = {
        name: facts for name, facts in kernels.items() if cuda_code.TORCHVISION_KERNELS.match(name)
    }
    return torchvision.__version__, kept


# --- the table --------------------------------------------------------------------------------


def make_rows() -> list[Any]:
    """Model every case of the suite that has a target on CUDA, in each of its dtypes."""
    import cuda_rows

    from rcnn_ext.bench import suite

    code = cuda_code.load()
    return [
        cuda_rows.make_row(case, dtype, code)
        for case in suite.suite(quick=False)
        if case.targets.cuda is not None
        for dtype in case.dtypes
    ]


Measured = dict[tuple[str, str], dict[str, Any]]


def make_table(measured: Measured | None = None) -> str:
    """Return the table as Markdown."""
    head = (*COLUMNS, *(MEASURED_COLUMNS if measured is not None else ()))
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in make_rows():
        cells = _cells(row)
        if measured is not None:
            cells += _measured_cells(row, measured)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def dtype_name(row: Any) -> str:
    """Return the name of a row's dtype as the benchmark has it."""
    return str(row.dtype).removeprefix("torch.")


def _cells(row: Any) -> list[str]:
    name = row.case.name + ("" if dtype_name(row) == "float32" else f", {dtype_name(row)}")
    ours, target = row.ours, row.case.targets.cuda
    margin = row.ratio / target
    verdict = "" if margin >= MARGIN else " (narrow)" if margin >= 1 else " (**missed**)"
    inner = "-" if ours.inner is None else f"{ours.inner.inner} (`{ours.inner.name}`)"
    return [
        f"`{name}`",
        f"{ours.launches} + {ours.torch_launches}",
        str(ours.syncs),
        megabytes(ours.bytes),
        inner,
        microseconds(ours.seconds),
        microseconds(row.torchvision.seconds),
        f"{row.ratio:.1f}",
        f"{target:g}{verdict}",
        microseconds(row.floor),
        ours.bound,
    ]


def microseconds(seconds: float) -> str:
    """Format a time with two digits that count."""
    value = seconds * 1e6
    digits = 1 - math.floor(math.log10(value)) if value > 0 else 0
    rounded = round(value, digits)
    return f"{rounded:,.0f} us" if rounded >= 10 else f"{rounded:.1f} us"


def megabytes(count: float) -> str:
    """Format bytes with two digits that count, in megabytes."""
    return f"{count / 1e6:.0f}" if count >= 1e7 else f"{count / 1e6:.2g}"


def read_measured(path: pathlib.Path) -> Measured:
    """Read rows of a comparison on a device, by the names of case and dtype.

    Args:
        path: ``gpu.json`` of the gate, or what ``rcnn-ext bench`` writes.

    Raises:
        UserError: The file is missing, is no such file, or has no rows of a device.
    """
    try:
        data = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path}: is not JSON ({error}): expected gpu.json of make gpu") from None
    rows = _find_results(data)
    if not rows:
        raise UserError(
            f"{path}: has no measured rows: expected gpu.json of make gpu, whose comparison ran"
        )
    return {(row["case"], row["dtype"]): row for row in rows}


def _find_results(data: Any) -> list[dict[str, Any]]:
    """Return the rows of all comparisons of operators, wherever they are in the file."""
    if isinstance(data, dict):
        if {"case", "dtype", "contenders"} <= data.keys():
            return [data]
        data = list(data.values())
    if not isinstance(data, list):
        return []
    return [row for value in data for row in _find_results(value)]


def _measured_cells(row: Any, measured: Measured) -> list[str]:
    from rcnn_ext.bench.contenders import OURS

    found = measured.get((row.case.name, dtype_name(row)), {})
    median = found.get("contenders", {}).get(OURS, {}).get("median_s")
    ratio = found.get("ratio_torchvision")
    return [
        "-" if median is None else microseconds(median),
        "-" if ratio is None else f"{ratio:.1f}",
    ]


def write_page(table: str, page: pathlib.Path = PAGE) -> None:
    """Put the table between its marks in the page.

    Raises:
        UserError: The page has no marks.
    """
    text = page.read_text()
    if BEGIN not in text or END not in text:
        raise UserError(f"{page}: expected the lines {BEGIN!r} and {END!r} around the table")
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    with replacing(page) as temporary:
        temporary.write_text(f"{before}{BEGIN}\n\n{table}\n\n{END}{after}")


if __name__ == "__main__":
    sys.exit(main())
