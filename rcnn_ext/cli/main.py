"""The command ``rcnn-ext``.

Nothing heavy is imported before a command runs, so that ``--help`` is immediate and ``doctor``
works on a broken installation.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rcnn_ext import __version__
from rcnn_ext.cli import text as _cli_text
from rcnn_ext.errors import UserError

# Packages of the extra `train`, and what asks for each.
_TRAIN_PACKAGES = (
    "lightning",
    "pycocotools",
    "matplotlib",
    "yaml",
    "tqdm",
    "safetensors",
    "defusedxml",
)


# What commands were called before 0.1.0.
_RENAMED_COMMANDS = {"proposals": "selective-search"}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: Its arguments; None takes those of the process.

    Returns:
        The exit code: 0 for success, 2 for what the user can mend, 128 + n for signal n (130 for
        Ctrl-C), 1 for anything else.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    try:
        options = _parse(arguments)
        return int(options.run(options))
    except UserError as error:
        return _fail(debug, _one_line(error), 2)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _TRAIN_PACKAGES:
            return _fail(debug, f"{error}; rcnn-ext doctor shows what is installed", 1)
        return _fail(
            debug,
            f"this command needs {package}, which is not installed: pip install 'rcnn-ext[train]'",
            2,
        )
    except BrokenPipeError:
        # Whoever read our output has seen enough. Python would complain again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        named = f"{error.filename}: " if error.filename else ""
        return _fail(debug, f"{named}{error.strerror or error}", 2)
    except KeyboardInterrupt as stop:
        number = getattr(stop, "signal_number", signal.SIGINT)
        return _fail(debug, str(stop) or "interrupted", 128 + number)
    except Exception as error:  # noqa: BLE001
        text = str(error).partition("\n")[0]
        hint = "" if debug else " (add --debug to see where)"
        return _fail(debug, f"unexpected {type(error).__name__}: {text}{hint}", 1)


def _fail(debug: bool, message: str, code: int) -> int:
    if debug:
        import traceback

        traceback.print_exc()
    print(f"rcnn-ext: {message}", file=sys.stderr)
    return code


def _one_line(error: UserError) -> str:
    """The message alone; a DataLoader worker wraps it in a traceback."""
    text = str(error)
    if "Original Traceback" in text:
        text = text.rpartition("UserError: ")[2]
    return " ".join(text.split("\n")).strip()


def _parse(arguments: list[str]) -> argparse.Namespace:
    command = next((word for word in arguments if not word.startswith("-")), None)
    if command in _RENAMED_COMMANDS:
        raise UserError(f"unknown command {command}; it is called {_RENAMED_COMMANDS[command]} now")
    parser = _build_parser(arguments)
    options, rest = parser.parse_known_args(arguments)
    # argparse takes optional positional arguments in one place only; overrides may stand anywhere.
    if rest and hasattr(options, "overrides") and not any(word.startswith("-") for word in rest):
        options.overrides += rest
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return options


def _build_parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    # SUPPRESS, or the command's own default would undo a --debug before the command.
    common.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks"
    )
    parser = argparse.ArgumentParser(
        prog="rcnn-ext",
        description=_cli_text.DESCRIPTION,
        epilog=_cli_text.EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[common],
    )
    parser.add_argument("--version", action="version", version=f"rcnn-ext {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(
        name: str, summary: str, epilog: str = "", run: Callable[..., int] | None = None
    ) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            parents=[common],
        )
        command.set_defaults(run=run)
        return command

    _add_train(add("train", "train a detector by a recipe", _cli_text.TRAIN_EPILOG, _train))
    _add_eval(add("eval", "compute the metrics of a trained model", _cli_text.EVAL_EPILOG, _eval))
    _add_detect(add("detect", "find objects in pictures", _cli_text.DETECT_EPILOG, _detect))
    _add_export(add("export", "write a model for use elsewhere", _cli_text.EXPORT_EPILOG, _export))
    named = next((word for word in arguments if not word.startswith("-")), None)
    for name, module, summary in (
        (
            "selective-search",
            "rcnn_ext.cli.selective_search",
            "search a data set for object proposals",
        ),
        ("bench", "rcnn_ext.bench", "compare the operators with torchvision's"),
        (
            "doctor",
            "rcnn_ext.cli.doctor",
            "show versions, what is compiled and what is not, and why",
        ),
        (
            "check",
            "rcnn_ext.data.check",
            "name all that is wrong with a data set, by file and line",
        ),
        ("demo", "rcnn_ext.cli.demo", "make data, train, evaluate, draw and compare, in minutes"),
    ):
        command = add(name, summary)
        if name == named:
            # Only the command that runs is imported.
            implementation = importlib.import_module(module)
            implementation.add_arguments(command)
            command.set_defaults(run=implementation.run)
    return parser


def _add_train(parser: argparse.ArgumentParser) -> None:
    names = ", ".join(
        sorted(p.stem for p in (Path(__file__).parents[1] / "recipes").glob("*.yaml"))
    )
    parser.add_argument(
        "recipe", metavar="RECIPE", help=f"one of {names}; or the path of a YAML file"
    )
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="values to replace")
    parser.add_argument("--data", metavar="DATA", type=Path, help="folder of the data set")
    parser.add_argument("--out", metavar="OUT", type=Path, help="folder for everything it writes")
    parser.add_argument(
        "--max-steps",
        metavar="N",
        type=_positive,
        help="train N steps in all; a second phase gets what is left for it",
    )
    parser.add_argument("--resume", action="store_true", help="go on from OUT/last.ckpt")
    parser.add_argument("--overwrite", action="store_true", help="replace the run in OUT")
    parser.add_argument(
        "--show", action="store_true", help="print the recipe with all its values, and stop"
    )


def _train(options: argparse.Namespace) -> int:
    from rcnn_ext.config import load_recipe, recipe_to_yaml, with_steps

    recipe = load_recipe(options.recipe, options.overrides)
    if options.max_steps is not None:
        recipe = with_steps(recipe, options.max_steps)
    if options.show:
        print(recipe_to_yaml(recipe), end="")
        return 0
    for name in ("data", "out"):
        if getattr(options, name) is None:
            raise UserError(f"train needs --{name}; rcnn-ext train --help explains")
    if options.resume and options.overwrite:
        raise UserError("--resume and --overwrite exclude each other")
    from rcnn_ext.train.run import train

    result = train(
        recipe, options.data, options.out, resume=options.resume, overwrite=options.overwrite
    )
    if result is None:
        return 0  # The first process speaks for all.
    print(result.summary())
    print(f"everything is in {options.out}")
    print(f"next: rcnn-ext eval {options.out} --data {options.data}")
    return 0


def _add_eval(parser: argparse.ArgumentParser) -> None:
    _add_checkpoint(parser)
    parser.add_argument(
        "--data", metavar="DATA", type=Path, required=True, help="folder of the data set"
    )
    parser.add_argument(
        "--split",
        choices=("train", "val", "test"),
        default="val",
        help="which images (default: val)",
    )
    parser.add_argument("--annotations", metavar="FILE", help="annotation file, if not found")
    parser.add_argument("--images", metavar="FOLDER", help="folder of the images, if not found")
    parser.add_argument(
        "--out",
        metavar="OUT",
        type=Path,
        help="folder for metrics, detections, curves and pictures (default: the run's)",
    )
    _add_running(parser)


def _eval(options: argparse.Namespace) -> int:
    from rcnn_ext.data.dataset import DetectionDataset
    from rcnn_ext.data.splits import STREAMED, open_evaluation
    from rcnn_ext.distributed import Processes, choose_device
    from rcnn_ext.metrics.evaluate import evaluate
    from rcnn_ext.metrics.report import write_evaluation
    from rcnn_ext.metrics.tasks import compute_metrics
    from rcnn_ext.predict.load import load_saved
    from rcnn_ext.selective_search.from_config import open_proposals

    processes = Processes.from_environment()
    device = choose_device(options.device, processes)
    saved = load_saved(options.checkpoint)
    config = saved.recipe.data
    out = options.out or saved.path.parent
    for part in ("annotations", "images"):
        given = getattr(options, part)
        if given is not None:
            # As on any command line, relative to where one is, not to DATA.
            setattr(config, f"{options.split}_{part}", str(Path(given).absolute()))
    with processes.group(device):
        with processes.main_process_first():
            annotations = open_evaluation(
                config, options.data, options.split, saved.classes.names, out / STREAMED
            )
        processes.print_once(f"{saved.path}: step {saved.step}")
        processes.print_once(f"{annotations.source}: {annotations.summary()}")
        started = time.monotonic()
        proposals = open_proposals(saved.recipe, saved.path.parent)
        if proposals is not None:
            proposals.prepare([annotations], processes)
        model = saved.build(device)
        images = evaluate(
            model,
            DetectionDataset(annotations, proposals),
            device=device,
            batch_size=options.batch_size or saved.recipe.evaluation.batch_size,
            workers=config.workers,
            processes=processes,
        )
    if not processes.is_main_process:
        return 0
    result = compute_metrics(model, images, saved.classes)
    seconds = time.monotonic() - started
    print(result.class_table())
    print()
    print(result.table())
    written = write_evaluation(
        out,
        annotations,
        images,
        result,
        saved.classes,
        checkpoint=saved.path,
        step=saved.step,
        seconds=seconds,
        grid=saved.recipe.model.detector == "localizer",
    )
    for path in written:
        print(f"wrote {path}")
    return 0


def _add_detect(parser: argparse.ArgumentParser) -> None:
    _add_checkpoint(parser)
    parser.add_argument(
        "images",
        metavar="IMAGE",
        type=Path,
        nargs="+",
        help="pictures, folders of pictures or of video frames, patterns in quotes, or CSV lists",
    )
    parser.add_argument(
        "--out", metavar="OUT", type=Path, required=True, help="folder for JSON and pictures"
    )
    parser.add_argument(
        "--min-score", type=_part, default=0.05, help="least score in the JSON (default: 0.05)"
    )
    parser.add_argument(
        "--draw-score", type=_part, default=0.5, help="least score in pictures (default: 0.5)"
    )
    parser.add_argument("--no-pictures", action="store_true", help="write the JSON only")
    _add_running(parser)


def _detect(options: argparse.Namespace) -> int:
    from rcnn_ext.predict.detect import detect_to_folder

    detect_to_folder(
        options.checkpoint,
        options.images,
        options.out,
        device_name=options.device,
        batch_size=options.batch_size,
        min_score=options.min_score,
        draw_score=None if options.no_pictures else options.draw_score,
    )
    return 0


def _add_export(parser: argparse.ArgumentParser) -> None:
    _add_checkpoint(parser)
    parser.add_argument(
        "--out", metavar="FILE", type=Path, required=True, help="ends in .safetensors or .pt2"
    )
    parser.add_argument(
        "--size", metavar="WxH", type=_size, help="images of a program (default: the recipe's)"
    )


def _export(options: argparse.Namespace) -> int:
    from rcnn_ext.predict.export import export
    from rcnn_ext.predict.load import load_saved

    saved = load_saved(options.checkpoint)
    export(saved, options.out, options.size)
    print(f"{saved.path}: step {saved.step}, classes {', '.join(saved.classes.names)}")
    print(f"wrote {options.out}")
    return 0


def _size(text: str) -> tuple[int, int]:
    width, cross, height = text.partition("x")
    if not (cross and width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise argparse.ArgumentTypeError(f"must be WIDTHxHEIGHT in pixels, not {text!r}")
    return int(width), int(height)


def _add_checkpoint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint",
        metavar="RUN",
        type=Path,
        help="the --out of a training run (its best.ckpt, else last.ckpt), or a checkpoint",
    )


def _add_running(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch-size", metavar="N", type=_positive, help="images in a batch")
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="where to run (default: a GPU if there is one)",
    )


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {number}")
    return number


def _part(text: str) -> float:
    number = float(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"must be from 0 to 1, not {number}")
    return number
