"""The command ``rcnn-ext bench`` and the demo's short comparison."""

from __future__ import annotations

import argparse
import pathlib

import torch

from rcnn_ext import _environment, files
from rcnn_ext.bench import atomic, plots
from rcnn_ext.bench.cases import Case
from rcnn_ext.bench.memory import keep_freed_memory
from rcnn_ext.bench.report import Report, format_report, format_seconds, result_name
from rcnn_ext.bench.runner import (
    ATOMIC,
    CONTENDERS,
    REFERENCE,
    Row,
    Settings,
    default_contenders,
    run_cases,
)
from rcnn_ext.bench.suite import growth, select, suite
from rcnn_ext.bench.timing import TimingConfig, copy_bandwidth
from rcnn_ext.errors import UserError
from rcnn_ext.progress import Progress

_QUICK_TIMING = TimingConfig(budget=0.25, max_runs=15, slow_threshold=0.5)
_CUDA_TIMING = TimingConfig(min_run_time=0.005, budget=1.0, max_runs=25)
_DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``rcnn-ext bench``."""
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    parser.add_argument(
        "--threads",
        type=_numbers,
        default=None,
        metavar="N[,N]",
        help="CPU threads; each number makes rows of its own (default: 1, and all cores with"
        " the full suite)",
    )
    parser.add_argument(
        "--dtype",
        type=_dtypes,
        default=(),
        metavar="TYPE[,TYPE]",
        help=f"{', '.join(_DTYPES)} (default: float32, and bfloat16 for RoIAlign on CUDA)",
    )
    parser.add_argument("--only", metavar="PATTERN", help="cases whose name contains this text")
    parser.add_argument(
        "--contenders",
        type=_contenders,
        default=None,
        metavar="NAME[,NAME]",
        help=f"who takes part, of {', '.join(CONTENDERS)} (default: all that apply but"
        " rcnn_ext-baseline)",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--quick", action="store_true", help="small sizes, under a minute")
    which.add_argument(
        "--growth",
        action="store_true",
        help="how cost grows: NMS of 100 to 1,000,000 boxes, RoIAlign of 10 to 10,000 RoIs"
        " (CPU, one thread, without the reference)",
    )
    parser.add_argument(
        "--models",
        action="store_true",
        help="Faster R-CNN against torchvision's instead of operators: inference, training step,"
        " memory; some minutes, with --quick seconds",
    )
    parser.add_argument(
        "--budget",
        type=float,
        metavar="SECONDS",
        help="start no case after this time, and list those left out",
    )
    parser.add_argument("--list", action="store_true", help="list the cases and stop")
    parser.add_argument(
        "--out", type=pathlib.Path, metavar="DIR", help="write table, JSON and plots there"
    )
    parser.add_argument(
        "--json",
        type=pathlib.Path,
        metavar="FILE",
        help="write the JSON there; in a folder, the file is named by date and device",
    )


def run(args: argparse.Namespace) -> int:
    """Run the comparison that the options ask for and print its table."""
    device = _device(args.device)
    if args.models:
        return _run_models(args, device)
    cases = select(growth() if args.growth else suite(args.quick), device.type, args.only)
    if args.list:
        print("\n".join(f"{case.name:<40} {case.work}" for case in cases))
        return 0
    if ATOMIC in (args.contenders or ()) and (device.type != "cuda" or not atomic.library()):
        raise UserError(f"--contenders {ATOMIC}: {atomic.HOW}")
    if args.out is not None:
        files.make_folder(args.out)
    target = None if args.json is None else _json_target(args.json)
    full_timing = _CUDA_TIMING if device.type == "cuda" else TimingConfig()
    contenders = default_contenders(device.type)
    if args.growth:
        contenders = tuple(name for name in contenders if name != REFERENCE)
    settings = Settings(
        device=device,
        dtypes=args.dtype,
        threads=args.threads or _default_threads(args.quick or args.growth),
        timing=_QUICK_TIMING if args.quick else full_timing,
        contenders=args.contenders or contenders,
        time_limit=args.budget,
    )
    report = compare(settings, cases, "growth" if args.growth else "operators")
    text = format_report(report)
    print(text, end="")
    written = [] if args.out is None else write_report(report, args.out, "operators")
    if target is not None:
        folder, file_name = target
        suffix = "-growth" if args.growth else ""
        path = folder / (file_name or result_name(report.environment, suffix))
        files.write_json(path, report.as_json())
        written.append(path)
        if args.growth:
            written += plots.write_plots(report, path.parent, path.stem)
    for path in written:
        print(f"wrote {path}")
    return 1 if report.failures else 0


def _run_models(args: argparse.Namespace, device: torch.device) -> int:
    """Run the comparison of detectors."""
    from rcnn_ext.bench.models import run_models

    for name in ("growth", "list", "only", "dtype", "contenders", "budget", "out"):
        if getattr(args, name):
            raise UserError(f"--models: --{name} is for the comparison of operators")
    target = None if args.json is None else _json_target(args.json)
    report, text = run_models(device, args.threads or (torch.get_num_threads(),), args.quick)
    print(text, end="")
    if target is not None:
        folder, file_name = target
        path = folder / (file_name or result_name(report["environment"], "-models"))
        files.write_json(path, report)
        print(f"wrote {path}")
    return 1 if report["failures"] else 0


def _json_target(path: pathlib.Path) -> tuple[pathlib.Path, str | None]:
    """Make the folder of ``--json``, now and not after minutes of work; give it and the name."""
    named = path.suffix == ".json" and not path.is_dir()
    folder = path.parent if named else path
    files.make_folder(folder)
    return folder, path.name if named else None


def run_quick(out_dir: pathlib.Path) -> pathlib.Path:
    """Run the small comparison on the CPU, print its table and write all it produces."""
    settings = Settings(device=torch.device("cpu"), timing=_QUICK_TIMING)
    report = compare(settings, select(suite(quick=True), "cpu"))
    print(format_report(report), end="")
    write_report(report, out_dir, "operators")
    if report.failures:
        raise RuntimeError("operators failed: " + "; ".join(report.failures))
    return out_dir / "operators.txt"


def compare(settings: Settings, cases: list[Case], name: str = "operators") -> Report:
    """Run cases with progress on the terminal.

    Args:
        settings: on what to run.
        cases: what to run.
        name: of the suite, for the JSON.
    """
    total = sum(
        len(settings.dtypes or case.dtypes)
        * (1 if settings.device.type == "cuda" else len(settings.threads))
        for case in cases
    )
    with Progress("Comparing", total, "row") as progress:
        allocator = keep_freed_memory() if settings.device.type == "cpu" else None
        rows, skipped = run_cases(cases, settings, lambda row: progress.advance(note=_note(row)))
    backends = _environment.operator_backends(settings.device.type)
    description = _environment.describe(settings.device) | {"allocator": allocator}
    ceiling = copy_bandwidth(settings.device)
    return Report(description, settings, rows, skipped, backends, name, ceiling)


def write_report(report: Report, folder: pathlib.Path, stem: str) -> list[pathlib.Path]:
    """Write table, JSON and, with matplotlib, plots into a folder; give their paths."""
    text, data = folder / f"{stem}.txt", folder / f"{stem}.json"
    files.write_text(text, format_report(report))
    files.write_json(data, report.as_json())
    if not plots.can_plot():
        print("no plots: matplotlib is not installed (pip install matplotlib)")
    return [text, data, *plots.write_plots(report, folder, stem)]


def _note(row: Row) -> str:
    times = ", ".join(
        f"{name} {format_seconds(timing.median)}" for name, timing in row.timings.items()
    )
    return f"{row.case.name}: {'FAILED' if row.failures else times}"


def _default_threads(quick: bool) -> tuple[int, ...]:
    everything = torch.get_num_threads()
    return (1,) if quick or everything == 1 else (1, everything)


def _device(text: str) -> torch.device:
    try:
        device = torch.device(text)
    except RuntimeError:
        raise UserError(f"--device: expected cpu, cuda or cuda:N, got {text!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device: the suite runs on cpu and cuda, not on {device.type}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device {text}: torch {torch.__version__} finds no CUDA device here")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {text}: there are {torch.cuda.device_count()} CUDA devices")
    return device


def _numbers(text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers like 1,2, got {text!r}") from None
    if any(number < 1 for number in numbers):
        raise argparse.ArgumentTypeError(f"expected positive numbers, got {text!r}")
    return numbers


def _dtypes(text: str) -> tuple[torch.dtype, ...]:
    unknown = [name for name in text.split(",") if name not in _DTYPES]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown dtype {unknown[0]!r}; use {', '.join(_DTYPES)}")
    return tuple(_DTYPES[name] for name in text.split(","))


def _contenders(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    unknown = [name for name in names if name not in CONTENDERS]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown {unknown[0]!r}; use {', '.join(CONTENDERS)}")
    return names
