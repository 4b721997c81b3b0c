"""The command ``rcnn-ext train``."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from rcnn_ext.cli.arguments import positive_int
from rcnn_ext.errors import UserError

SUMMARY = "train a detector by a recipe"
EPILOG = """\
A recipe is a YAML file. Replace any of its values on the command line:
  rcnn-ext train faster_rcnn_coco --data DATA --out runs/a optimizer.lr=0.01 data.batch_size=4
  rcnn-ext train faster_rcnn_coco --data DATA --out runs/b data.classes='[cat, dog]'
  rcnn-ext train faster_rcnn_coco --data DATA --out runs/c model.weights_backbone=null
  rcnn-ext train faster_rcnn_finetune --data DATA --out runs/f model.weights=detector.pth
  rcnn-ext train faster_rcnn_synthetic --data shapes --out runs/d --max-steps 100
The last one generates its own data. --show prints a recipe with all its values.

DATA is a folder such as
  DATA/annotations/instances_train2017.json   or   DATA/instances_train.json
  DATA/annotations/instances_val2017.json          DATA/instances_val.json
  DATA/train2017/*.jpg, DATA/val2017/*.jpg         DATA/images/*.jpg
Name other places with data.train_annotations=, data.train_images=, data.val_annotations= and
data.val_images=.

schedule.steps=N or schedule.epochs=N is the length of the whole run; for a recipe with a second
phase, refine.schedule.steps=M besides is the length of that one.

Ctrl-C finishes the step, saves last.ckpt and stops. To continue, no recipe has to be named again:
  rcnn-ext train --data DATA --out runs/a --resume
This takes runs/a/recipe.yaml; key=value still replaces learning rates, lengths and the like.

On several GPUs, and on several machines with torchrun's --nnodes and --rdzv-endpoint:
  torchrun --nproc-per-node 4 -m rcnn_ext train faster_rcnn_coco --data DATA --out runs/e
data.batch_size is the total over all processes, so that results do not depend on their number.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``rcnn-ext train``."""
    from rcnn_ext.config import recipe_names

    names = ", ".join(recipe_names())
    parser.add_argument(
        "recipe",
        metavar="RECIPE",
        nargs="?",
        help=f"one of {names}; or the path of a YAML file (with --resume: default OUT/recipe.yaml)",
    )
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="values to replace")
    parser.add_argument(
        "--data", metavar="DATA", type=Path, help="folder of the data set, or an archive of it"
    )
    parser.add_argument("--out", metavar="OUT", type=Path, help="folder for everything it writes")
    parser.add_argument(
        "--max-steps",
        metavar="N",
        type=positive_int,
        help="train N steps in total; a second phase gets those that are left",
    )
    parser.add_argument("--resume", action="store_true", help="continue from OUT/last.ckpt")
    parser.add_argument("--overwrite", action="store_true", help="replace the run in OUT")
    parser.add_argument(
        "--show", action="store_true", help="print the recipe with all its values, and stop"
    )


def run(options: argparse.Namespace) -> int:
    """Train a detector, or print its recipe.

    Args:
        options: The options that :func:`add_arguments` declares.

    Returns:
        0.

    Raises:
        UserError: An option, the recipe or the data is wrong.
    """
    from rcnn_ext.config import load_recipe, recipe_to_yaml

    name, overrides = _recipe_and_overrides(options)
    said: list[str] = []
    recipe = load_recipe(name, overrides, max_steps=options.max_steps, log=said.append)
    if options.show:
        print(recipe_to_yaml(recipe), end="")
        return 0
    for name in ("data", "out"):
        if getattr(options, name) is None:
            raise UserError(f"train needs --{name}; rcnn-ext train --help explains")
    if options.resume and options.overwrite:
        raise UserError("--resume and --overwrite exclude each other")
    from rcnn_ext.distributed import Processes
    from rcnn_ext.train.run import train

    for line in said:
        Processes.from_environment().print_once(line)
    result = train(
        recipe, options.data, options.out, resume=options.resume, overwrite=options.overwrite
    )
    if result is None:
        return 0  # Only the main process has a result to print.
    print(result.summary())
    print(f"everything is in {options.out}")
    command = ["rcnn-ext", "eval", str(options.out), "--data", str(options.data)]
    if result.validation is not None:
        print(f"next: {shlex.join(command)}")
    else:
        command += ["--split", "train"]
        print(f"next, since the data have no validation split: {shlex.join(command)}")
    return 0


def _recipe_and_overrides(options: argparse.Namespace) -> tuple[str, list[str]]:
    """Tell the recipe from the overrides, wherever each stands; a resumed run has its own.

    Raises:
        UserError: No recipe is given, and none can be found.
    """
    words = [options.recipe] if options.recipe is not None else []
    words += options.overrides
    name = next((word for word in words if "=" not in word or Path(word).is_file()), None)
    if name is not None:
        words.remove(name)
        return name, words
    if not options.resume:
        raise UserError("train needs a RECIPE; only --resume finds that of the run in OUT")
    if options.out is None:
        raise UserError("train needs --out; rcnn-ext train --help explains")
    from rcnn_ext.train.resume import RECIPE

    found = options.out / RECIPE
    if not found.is_file():
        raise UserError(f"nothing to resume: {found} does not exist")
    return str(found), words
