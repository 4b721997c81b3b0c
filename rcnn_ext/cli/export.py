"""The command ``rcnn-ext export``."""

from __future__ import annotations

import argparse
from pathlib import Path

from rcnn_ext.cli.arguments import add_checkpoint

SUMMARY = "write a model for use elsewhere"
EPILOG = """\
examples:
  rcnn-ext export runs/first --out detector.safetensors
  rcnn-ext export runs/first --out detector.pt2
  rcnn-ext export runs/first --format pt2 --out detector.pt2 --size 640x480
  rcnn-ext export runs/first --format aoti --out compiled.pt2
  rcnn-ext export runs/first --out detector.onnx --verify-on DATA/images
  rcnn-ext export runs/first --out detector.xml --image-sizes

safetensors holds the weights, with the recipe and the class names in its metadata.
pt2 is a torch.export program for pictures of any size, any number of them at once: it runs with
torch and the operators of this package (import rcnn_ext.ops), without the code of the models.
aoti is the same, compiled by AOTInductor for the CPU of this machine; it takes a C++ compiler and
minutes. It also runs from C++ without Python. As compiled code it needs --trust to be loaded.
onnx is a graph of standard ONNX operators, openvino the files of OpenVINO (.xml, and .bin beside
it), both for pictures of any size, any number of one size at once, or of several sizes with
--image-sizes; the metadata hold the classes, the preprocessing and the recipe. Before such a file
is written it is run in its own runtime and compared with the model, on three pictures.
rcnn-ext detect and rcnn-ext eval accept every format in the place of RUN.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``rcnn-ext export``."""
    add_checkpoint(parser)
    parser.add_argument("--out", metavar="FILE", type=Path, required=True, help="the file to write")
    parser.add_argument(
        "--format",
        metavar="FORMAT",
        help="safetensors, pt2, aoti, onnx or openvino (default: by the suffix of FILE, for .pt2 "
        "pt2)",
    )
    parser.add_argument(
        "--size",
        metavar="WxH",
        type=_size,
        help="make a program for one size, which all pictures are brought to (default: any size)",
    )
    parser.add_argument(
        "--image-sizes",
        action="store_true",
        help="let onnx and openvino files take the size of each picture as a second input, for "
        "batches of padded pictures of several sizes (default: batches are of one size)",
    )
    parser.add_argument(
        "--verify",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compare what onnx and openvino files give with what the model gives (default: yes)",
    )
    parser.add_argument(
        "--verify-on",
        metavar="PICTURES",
        type=Path,
        nargs="+",
        default=[],
        help="picture files or folders to compare on (default: made pictures)",
    )


def run(options: argparse.Namespace) -> int:
    """Export a trained model.

    Args:
        options: The options that :func:`add_arguments` declares.

    Returns:
        0.

    Raises:
        UserError: The checkpoint, the format or the name of the file is wrong, or what was exported
            does not give what the model gives.
    """
    from rcnn_ext.export import ExportOptions, export, format_of
    from rcnn_ext.predict.load import load_saved

    format_of(options.out, options.format)  # a mistake is told before anything is read
    # Trusted, since the code of a package is not run here: packages are refused below.
    saved = load_saved(options.checkpoint, trust=True)
    how = ExportOptions(
        size=options.size,
        verify=options.verify,
        pictures=tuple(options.verify_on),
        takes_sizes=options.image_sizes,
        report=print,
    )
    export(saved, options.out, how, format=options.format)
    print(f"{saved.path}: step {saved.step}, classes {', '.join(saved.classes.names)}")
    print(f"wrote {options.out}")
    return 0


def _size(text: str) -> tuple[int, int]:
    width, cross, height = text.partition("x")
    if not (cross and width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise argparse.ArgumentTypeError(f"must be WIDTHxHEIGHT in pixels, not {text!r}")
    return int(width), int(height)
