"""The command ``rcnn-ext push``."""

from __future__ import annotations

import argparse
from pathlib import Path

from rcnn_ext.cli.arguments import add_checkpoint

SUMMARY = "publish a model on the Hugging Face Hub"
EPILOG = """\
examples:
  rcnn-ext push runs/first owner/name
  rcnn-ext push runs/first owner/name --private --license apache-2.0
  rcnn-ext push runs/first owner/name --to FOLDER

The repository gets model.safetensors (weights, recipe and classes), recipe.yaml, config.json and a
model card with the metrics of rcnn-ext eval. Log in first: hf auth login.
With --to nothing is sent: FOLDER holds the same files, to read or to upload later.
rcnn-ext detect hub:owner/name and rcnn_ext.load("hub:owner/name") run the model.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``rcnn-ext push``."""
    add_checkpoint(parser)
    parser.add_argument(
        "repository",
        metavar="owner/name",
        nargs="?",
        help="repository; created where it is missing",
    )
    parser.add_argument(
        "--to", metavar="FOLDER", type=Path, help="write the files to a folder instead"
    )
    parser.add_argument("--license", metavar="ID", help="license of the weights, as apache-2.0")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument(
        "--revision", metavar="BRANCH", help="branch to push to (default: the main one)"
    )
    parser.add_argument(
        "--message", default="Push model with rcnn_ext", help="message of the commit"
    )


def run(options: argparse.Namespace) -> int:
    """Publish a trained model, or write what would be published.

    Args:
        options: The options that :func:`add_arguments` declares.

    Returns:
        0.

    Raises:
        UserError: The checkpoint or the name is wrong, or it cannot be written.
    """
    from rcnn_ext.errors import UserError
    from rcnn_ext.predict import publish
    from rcnn_ext.predict.load import load_saved

    if options.repository is None and options.to is None:
        raise UserError("name a repository (owner/name) or a folder (--to FOLDER)")
    repo_id = None if options.repository is None else publish.hub_id_of(options.repository).repo
    # Trusted, since the code of a package is not run here: packages are refused below.
    saved = load_saved(options.checkpoint, trust=True)
    print(f"{saved.path}: step {saved.step}, classes {', '.join(saved.classes.names)}")
    if options.to is not None:
        for path in publish.save_pretrained(
            saved, options.to, repo_id=repo_id, license=options.license
        ):
            print(f"wrote {path}")
        return 0
    url = publish.push_to_hub(
        saved,
        options.repository,
        license=options.license,
        private=options.private or None,
        revision=options.revision,
        commit_message=options.message,
    )
    print(f"pushed to {url}")
    return 0
