"""The command ``rcnn-ext bench``."""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rcnn_ext.bench.contenders import ATOMIC, CONTENDERS, REFERENCE
from rcnn_ext.cli.arguments import positive_int, positive_ints
from rcnn_ext.errors import UserError

if TYPE_CHECKING:
    import torch

SUMMARY = "compare the operators with torchvision's"
EPILOG = """\
examples:
  rcnn-ext bench --quick
  rcnn-ext bench --only roi_align --threads 1,2 --out comparison
  rcnn-ext bench --device cuda --json benchmarks/results
  rcnn-ext bench --models
  rcnn-ext bench --clients
  rcnn-ext bench --pipeline --threads 2

Every result is compared with a float64 reference before it is timed. The exit code is 1 if an
operator failed or gave a wrong result.
"""

_DTYPE_NAMES = ("float16", "bfloat16", "float32", "float64")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``rcnn-ext bench``."""
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    parser.add_argument(
        "--threads",
        type=positive_ints,
        default=None,
        metavar="N[,N]",
        help="numbers of CPU threads, with rows for each (default: 1, and all cores with the full"
        " suite)",
    )
    parser.add_argument(
        "--dtype",
        type=_dtype_names,
        default=(),
        metavar="TYPE[,TYPE]",
        help=f"{', '.join(_DTYPE_NAMES)} (default: float32, and bfloat16 for RoIAlign on CUDA)",
    )
    parser.add_argument("--only", metavar="PATTERN", help="run cases whose name contains this text")
    parser.add_argument(
        "--contenders",
        type=_contenders,
        default=None,
        metavar="NAME[,NAME]",
        help=f"what to compare, of {', '.join(CONTENDERS)} (default: all that apply but"
        " rcnn_ext-baseline)",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--quick", action="store_true", help="run small sizes, under a minute")
    which.add_argument(
        "--growth",
        action="store_true",
        help="measure how cost grows: NMS of 100 to 1,000,000 boxes, RoIAlign of 10 to 10,000 RoIs"
        " (CPU, one thread, without the reference)",
    )
    detectors = parser.add_mutually_exclusive_group()
    detectors.add_argument(
        "--models",
        action="store_true",
        help="compare Faster R-CNN with torchvision's instead of operators: inference, training"
        " step, memory; in inference with ONNX Runtime and OpenVINO too where they are installed;"
        " some minutes, with --quick seconds, and then without them",
    )
    detectors.add_argument(
        "--pipeline",
        action="store_true",
        help="compare detection in 300 JPEG files with a loop over torchvision's detector, and"
        " with our network alone; about 4 minutes on two cores, with --quick seconds",
    )
    detectors.add_argument(
        "--clients",
        action="store_true",
        help="compare torchvision's five families of detectors with themselves under"
        " rcnn_ext.accelerate(): inference, training step; 5 minutes, with --quick seconds",
    )
    parser.add_argument(
        "--pictures",
        type=positive_int,
        metavar="N",
        help="number of files for --pipeline (default: 300, with --quick 20)",
    )
    parser.add_argument(
        "--budget",
        type=float,
        metavar="SECONDS",
        help="start no case after this time, and list those skipped",
    )
    parser.add_argument(
        "--targets-first", action="store_true", help="run the cases that have a target first"
    )
    parser.add_argument(
        "--rows",
        type=pathlib.Path,
        metavar="FILE",
        help="append each row to this file as a line of JSON as soon as it is measured; cases that"
        " were begun there before are left out",
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
    """Run the comparison that the options ask for and print its table.

    Args:
        args: The options that :func:`add_arguments` declares.

    Returns:
        0, or 1 where an operator failed or gave a wrong result.

    Raises:
        UserError: An option asks for something that this machine or the suite does not have.
    """
    from rcnn_ext import files
    from rcnn_ext.bench import atomic, comparison, plots, runner, suite
    from rcnn_ext.bench.report import format_report, result_name
    from rcnn_ext.bench.row_lines import RowLines
    from rcnn_ext.bench.timing import TimingConfig

    device = _device(args.device)
    if args.models or args.pipeline or args.clients:
        return _run_detectors(args, device)
    if args.pictures:
        raise UserError("--pictures is for --pipeline")
    cases = suite.growth() if args.growth else suite.suite(args.quick)
    cases = suite.select(cases, device.type, args.only)
    if args.targets_first:
        cases = suite.targets_first(cases, device.type)
    lines = None if args.rows is None else RowLines(args.rows)
    if lines is not None:
        files.make_folder(args.rows.parent)
        cases = lines.remaining(cases)
        if not cases:
            print(f"{args.rows} has all cases")
            return 0
    if args.list:
        print("\n".join(f"{case.name:<40} {case.work}" for case in cases))
        return 0
    if ATOMIC in (args.contenders or ()) and (device.type != "cuda" or not atomic.library()):
        raise UserError(f"--contenders {ATOMIC}: {atomic.HOW}")
    if args.out is not None:
        files.make_folder(args.out)
    target = None if args.json is None else _json_target(args.json)
    full_timing = comparison.CUDA_TIMING if device.type == "cuda" else TimingConfig()
    contenders = runner.default_contenders(device.type)
    if args.growth:
        contenders = tuple(name for name in contenders if name != REFERENCE)
    settings = runner.Settings(
        device=device,
        dtypes=_dtypes(args.dtype),
        threads=args.threads or _default_threads(args.quick or args.growth),
        timing=comparison.QUICK_TIMING if args.quick else full_timing,
        contenders=args.contenders or contenders,
        time_limit=args.budget,
    )
    try:
        report = comparison.compare(
            settings, cases, "growth" if args.growth else "operators", lines
        )
    except runner.DeviceFaultError as error:
        print(f"rcnn-ext: {error}", file=sys.stderr)
        return 1
    text = format_report(report)
    print(text, end="")
    written = [] if args.out is None else comparison.write_report(report, args.out, "operators")
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


def _run_detectors(args: argparse.Namespace, device: torch.device) -> int:
    """Run the comparison of detectors: in memory, or from files."""
    import torch

    from rcnn_ext import files
    from rcnn_ext.bench.clients import run_clients
    from rcnn_ext.bench.models import run_models
    from rcnn_ext.bench.pipeline import run_pipeline
    from rcnn_ext.bench.report import result_name

    suite = next(name for name in ("models", "clients", "pipeline") if getattr(args, name))
    for name in ("growth", "list", "only", "dtype", "contenders", "budget", "rows", "out"):
        if getattr(args, name):
            raise UserError(f"--{suite}: --{name} is for the comparison of operators")
    if suite != "pipeline" and args.pictures:
        raise UserError("--pictures is for --pipeline")
    target = None if args.json is None else _json_target(args.json)
    threads = args.threads or (torch.get_num_threads(),)
    if args.models:
        report, text = run_models(device, threads, args.quick)
    elif args.clients:
        report, text = run_clients(device, threads, args.quick)
    else:
        report, text = run_pipeline(device, threads, args.quick, args.pictures)
    print(text, end="")
    if target is not None:
        folder, file_name = target
        path = folder / (file_name or result_name(report["environment"], f"-{suite}"))
        files.write_json(path, report)
        print(f"wrote {path}")
    return 1 if report["failures"] else 0


def _json_target(path: pathlib.Path) -> tuple[pathlib.Path, str | None]:
    """Make the folder of ``--json`` before minutes of work; return it and the file name."""
    from rcnn_ext import files

    named = path.suffix == ".json" and not path.is_dir()
    folder = path.parent if named else path
    files.make_folder(folder)
    return folder, path.name if named else None


def _default_threads(quick: bool) -> tuple[int, ...]:
    import torch

    everything = torch.get_num_threads()
    return (1,) if quick or everything == 1 else (1, everything)


def _device(text: str) -> torch.device:
    import torch

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


def _dtypes(names: Sequence[str]) -> tuple[torch.dtype, ...]:
    import torch

    return tuple(getattr(torch, name) for name in names)


def _dtype_names(text: str) -> tuple[str, ...]:
    return _choices(text, "dtype ", _DTYPE_NAMES)


def _contenders(text: str) -> tuple[str, ...]:
    return _choices(text, "", CONTENDERS)


def _choices(text: str, kind: str, known: Sequence[str]) -> tuple[str, ...]:
    names = tuple(text.split(","))
    unknown = [name for name in names if name not in known]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown {kind}{unknown[0]!r}; use {', '.join(known)}")
    return names
