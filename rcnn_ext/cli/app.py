"""The command ``rcnn-ext``: parse the arguments, run a command, map errors to exit codes.

Nothing heavy is imported before a command runs, so that ``--help`` is immediate and ``doctor``
works on a broken installation.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import signal
import sys
import warnings
from collections.abc import Sequence

from rcnn_ext import __version__
from rcnn_ext.cli.doctor import EXTRAS
from rcnn_ext.errors import UserError, one_line

DESCRIPTION = "Train, evaluate and run R-CNN detectors, and compare their operators."
EPILOG = """\
Try it without any data:
  rcnn-ext demo --out demo-out

With your own data, COCO, VOC, YOLO or CSV:
  rcnn-ext train faster_rcnn_coco_small --data DATA --out runs/first
  rcnn-ext eval runs/first --data DATA
  rcnn-ext detect runs/first photo.jpg folder/ --out found

rcnn-ext COMMAND --help explains a command.
"""

# Each has a module of its name in rcnn_ext.cli, with SUMMARY, add_arguments, run and maybe EPILOG.
COMMANDS = (
    "train",
    "eval",
    "detect",
    "export",
    "push",
    "selective-search",
    "bench",
    "doctor",
    "check",
    "convert",
    "demo",
)
# Former names of commands.
_RENAMED_COMMANDS = {"proposals": "selective-search"}

# The modules of distributions that have another name.
_MODULE_NAMES = {"pyyaml": "yaml", "faster-coco-eval": "faster_coco_eval"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: The arguments; None takes those of the process.

    Returns:
        The exit code: 0 for success, 2 for what the user can fix, 128 + n for signal n (130 for
        Ctrl-C), 1 for anything else.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    # Pillow warns of odd metadata, which are no matter here.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Names of files need not be text in the encoding of the terminal.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        options = _parse(arguments)
        return int(options.run(options))
    except UserError as error:
        return _fail(debug, _one_line(error), 2)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in {_MODULE_NAMES.get(name, name) for name in EXTRAS["train"]}:
            return _fail(debug, f"{error}; rcnn-ext doctor shows what is installed", 1)
        return _fail(
            debug,
            f"this command needs {package}, which is not installed: pip install 'rcnn-ext[train]'",
            2,
        )
    except BrokenPipeError:
        # The reader of our output has closed it. Python would complain again at exit.
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
    print(f"rcnn-ext: {one_line(message)}", file=sys.stderr)
    return code


def _one_line(error: UserError) -> str:
    """Return the message in one line, out of the traceback that a DataLoader worker adds."""
    text = str(error)
    if "Original Traceback" in text:
        text = text.rpartition("UserError: ")[2]
    return " ".join(text.split("\n")).strip()


def _command_name(arguments: Sequence[str]) -> str | None:
    return next((word for word in arguments if not word.startswith("-")), None)


def _parse(arguments: list[str]) -> argparse.Namespace:
    command = _command_name(arguments)
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
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[common],
    )
    parser.add_argument("--version", action="version", version=f"rcnn-ext {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name in COMMANDS:
        module = importlib.import_module(f"rcnn_ext.cli.{name.replace('-', '_')}")
        summary = module.SUMMARY
        command = subparsers.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog=getattr(module, "EPILOG", ""),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            parents=[common],
        )
        command.set_defaults(run=module.run)
        if name == _command_name(arguments):
            # Options may take their choices from modules that the others do not need.
            module.add_arguments(command)
    return parser
