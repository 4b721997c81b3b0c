"""Write trained models to folders and repositories of the Hugging Face Hub, and read them."""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from pathlib import Path

from torch import nn

from rcnn_ext.errors import UserError
from rcnn_ext.files import make_folder
from rcnn_ext.hub import (
    PREFIX,
    HubError,
    HubId,
    how_to_bring,
    hub_errors,
    hub_is_reachable,
    hub_library,
    parse_hub_id,
)
from rcnn_ext.predict.checkpoint import PRETRAINED, SavedDetector
from rcnn_ext.predict.exported.program import SavedProgram


def save_pretrained(
    saved: SavedDetector,
    folder: str | os.PathLike[str],
    *,
    repo_id: str | None = None,
    license: str | None = None,
) -> list[Path]:
    """Write the files of a repository to a folder, without a network.

    Args:
        saved: The model.
        folder: The folder; it may hold other files. A ``README.md`` there is kept.
        repo_id: ``owner/name`` by which the card calls the model.
        license: Identifier of the license of the weights, such as ``apache-2.0``.

    Returns:
        The files.

    Raises:
        UserError: The model is a program, an extra is missing, or the folder cannot be written.
    """
    hub_library()
    from rcnn_ext.predict.hub_model import CARD, HubModel

    model = HubModel.of(_publishable(saved), license)
    folder = make_folder(Path(folder))
    written = []
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as temporary:
            name = repo_id or folder.resolve().name
            model.save_pretrained(temporary, model_card_kwargs={"repo_id": name})
            for path in sorted(Path(temporary).iterdir()):
                if path.name != CARD or not (folder / CARD).exists():
                    os.replace(path, folder / path.name)
                written.append(folder / path.name)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror or error}") from error
    return written


def push_to_hub(
    saved: SavedDetector,
    repo_id: str,
    *,
    license: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str = "Push model with rcnn_ext",
    token: str | None = None,
) -> str:
    """Write a model to a repository of the Hub, which is created where it is missing.

    Args:
        saved: The model.
        repo_id: ``owner/name``, with or without ``hub:`` before it.
        license: Identifier of the license of the weights, such as ``apache-2.0``.
        private: Whether a new repository is private; None leaves it to the owner's settings.
        revision: The branch to push to; None means the main one.
        commit_message: Message of the commit.
        token: An access token; None takes that of ``hf auth login`` or ``HF_TOKEN``.

    Returns:
        The URL of the commit.

    Raises:
        HubError: There is no network, or the token may not write there.
        UserError: The id is malformed, the model is a program, or an extra is missing.
    """
    hub_id = hub_id_of(repo_id)
    if hub_id.file is not None or hub_id.revision is not None:
        raise UserError(f"{repo_id} must be owner/name: a branch is given separately")
    library = hub_library()
    from rcnn_ext.predict.hub_model import HubModel

    model = HubModel.of(_publishable(saved), license)
    remedy = "check the network, or write a folder (--to FOLDER) and upload it later"
    if not hub_is_reachable(library):
        raise HubError(f"cannot push to {hub_id}: there is no connection to the Hub; {remedy}")
    with hub_errors(f"cannot push to {hub_id}", remedy):
        return str(
            model.push_to_hub(
                hub_id.repo,
                private=private,
                branch=revision,
                commit_message=commit_message,
                token=token,
                model_card_kwargs={"repo_id": hub_id.repo},
            )
        )


def from_pretrained(
    name_or_folder: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
) -> SavedDetector:
    """Read a model from a folder or a repository of the Hub.

    Args:
        name_or_folder: A folder that :func:`save_pretrained` wrote, or ``owner/name``.
        revision: Branch, tag or commit; None means the main branch.
        token: An access token; None takes that of ``hf auth login`` or ``HF_TOKEN``.
        cache_dir: Folder to keep downloads in; None means the library's.
        force_download: Whether to download anew what is in the cache.
        local_files_only: Whether to use no network.

    Raises:
        HubError: It cannot be fetched.
        UserError: It is malformed, or an extra is missing.
    """
    library = hub_library()
    from rcnn_ext.predict.hub_model import HubModel

    name, remedy = os.fspath(name_or_folder), "check the folder"
    if not Path(name).is_dir():
        hub_id = hub_id_of(name)
        name, revision = hub_id.repo, revision or hub_id.revision
        remedy = how_to_bring(HubId(name, None, revision), PRETRAINED)
        local_files_only = local_files_only or not hub_is_reachable(library)
    with hub_errors(f"cannot fetch {name}", remedy):
        model = HubModel.from_pretrained(
            name,
            revision=revision,
            token=token,
            cache_dir=None if cache_dir is None else Path(cache_dir),
            force_download=force_download,
            local_files_only=local_files_only,
        )
    return model.saved


def hub_id_of(text: str) -> HubId:
    """Parse an id with or without ``hub:`` before it."""
    return parse_hub_id(text if text.startswith(PREFIX) else PREFIX + text)


def with_weights_of(saved: SavedDetector, detector: nn.Module) -> SavedDetector:
    """Return a saved model with the weights that a detector has now."""
    weights = {name: value.detach().cpu() for name, value in detector.state_dict().items()}
    return replace(saved, weights=weights)


def _publishable(saved: SavedDetector) -> SavedDetector:
    if isinstance(saved, SavedProgram):
        raise UserError(
            f"{saved.path} is a program, which others could not train on: push the run or "
            "checkpoint that it was exported from"
        )
    return saved
