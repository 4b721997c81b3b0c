"""Files of the Hugging Face Hub, by ids such as ``hub:owner/name``. Needs the extra ``hf``."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from rcnn_ext.errors import UserError

PREFIX = "hub:"

_PART = re.compile(r"[\w.-]+")
_MAX_FILES_SHOWN = 8
_CONNECT_SECONDS = 10.0


@dataclass(frozen=True)
class HubId:
    """A repository on the Hub, or a file in it.

    Attributes:
        repo: Owner and name, such as ``owner/name``.
        file: Path of the file in the repository, or None.
        revision: Branch, tag or commit; None means the main branch.
    """

    repo: str
    file: str | None = None
    revision: str | None = None

    def __str__(self) -> str:
        file = "" if self.file is None else f"/{self.file}"
        revision = "" if self.revision is None else f"@{self.revision}"
        return f"{PREFIX}{self.repo}{file}{revision}"


class HubError(UserError):
    """A file of the Hub cannot be fetched or written."""


def is_hub_id(text: object) -> bool:
    """Return whether a value is meant as an id of the Hub: text that begins with ``hub:``."""
    return isinstance(text, str) and text.startswith(PREFIX)


def parse_hub_id(text: str) -> HubId:
    """Parse ``hub:owner/name``, ``hub:owner/name@revision`` or ``hub:owner/name/file@revision``.

    Raises:
        UserError: It is none of these.
    """
    place, at, revision = text.removeprefix(PREFIX).partition("@")
    parts = place.split("/")
    if (
        not text.startswith(PREFIX)
        or len(parts) < 2
        or not all(_PART.fullmatch(part) for part in parts)
        or {".", ".."} & set(parts)
        or bool(at) != bool(revision)
    ):
        raise UserError(
            f"{text!r} is no id of the Hugging Face Hub: write hub:owner/name, "
            "hub:owner/name@revision or hub:owner/name/file"
        )
    return HubId("/".join(parts[:2]), "/".join(parts[2:]) or None, revision or None)


def fetch_hub_file(source: str | HubId, names: Sequence[str]) -> Path:
    """Return the local copy of a file of the Hub, from the library's cache or downloaded into it.

    Args:
        source: The id of a repository or of a file.
        names: Names of the file, looked for in this order where the id names none.

    Returns:
        The path of the file in the cache of ``huggingface_hub``.

    Raises:
        HubError: There is no such repository, revision or file, it may not be read, or there is no
            network and the file is not in the cache.
        UserError: The id is malformed, or ``huggingface_hub`` is missing.
    """
    hub_id = parse_hub_id(source) if isinstance(source, str) else source
    library = hub_library()
    wanted = [hub_id.file] if hub_id.file is not None else list(names)
    offline = not hub_is_reachable(library)
    missing: HubError | None = None
    for name in wanted:
        try:
            with hub_errors(f"cannot fetch {name} of {hub_id}", how_to_bring(hub_id, name)):
                return Path(
                    library.hf_hub_download(
                        hub_id.repo, name, revision=hub_id.revision, local_files_only=offline
                    )
                )
        except HubError as error:
            if not isinstance(error.__cause__, library.errors.EntryNotFoundError):
                raise
            missing = missing or error
    assert missing is not None, "no names"
    if isinstance(missing.__cause__, library.errors.LocalEntryNotFoundError):
        raise missing
    with hub_errors(f"cannot list the files of {hub_id}", "check the network"):
        present = library.HfApi().list_repo_files(hub_id.repo, revision=hub_id.revision)
    shown = ", ".join(present[:_MAX_FILES_SHOWN]) + (
        ", ..." if len(present) > _MAX_FILES_SHOWN else ""
    )
    raise HubError(
        f"{hub_id} has no {' or '.join(wanted)}; its files are {shown or 'none'}: "
        f"name one as {PREFIX}{hub_id.repo}/FILE"
    )


def hub_library() -> ModuleType:
    """Return the module ``huggingface_hub``.

    Raises:
        UserError: It is not installed.
    """
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "huggingface_hub":
            raise
        raise UserError(
            "models on the Hugging Face Hub need huggingface_hub, which is not installed: "
            "pip install 'rcnn-ext[hf]'"
        ) from None
    return huggingface_hub


@contextmanager
def hub_errors(what: str, remedy: str) -> Iterator[None]:
    """Turn the errors of ``huggingface_hub`` within the block into one line each.

    Args:
        what: The failure, in words such as ``cannot fetch FILE of ID``.
        remedy: What to do where there is no network.

    Raises:
        HubError: Something failed; its cause is the library's error.
    """
    library = hub_library()
    errors = library.errors
    try:
        yield
    except errors.GatedRepoError as error:
        reason = "it is gated: ask for access on its page, then run hf auth login"
        raise HubError(f"{what}: {reason}") from error
    except errors.RepositoryNotFoundError as error:
        reason = (
            "there is no such repository, or it is private: check the name, or run hf auth login"
        )
        raise HubError(f"{what}: {reason}") from error
    except errors.RevisionNotFoundError as error:
        raise HubError(f"{what}: the repository has no such revision") from error
    except errors.LocalEntryNotFoundError as error:
        reason = "there is no connection to the Hub, and the file is not in the cache"
        raise HubError(f"{what}: {reason}; {remedy}") from error
    except errors.EntryNotFoundError as error:
        raise HubError(f"{what}: the repository has no such file") from error
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if status in (401, 403):
            reason = "you may not do this: run hf auth login with a token that may"
        else:
            reason = _first_line(error)
        raise HubError(f"{what}: {reason}") from error
    except errors.HFValidationError as error:
        raise HubError(f"{what}: {_first_line(error)}") from error
    except errors.LocalTokenNotFoundError as error:
        raise HubError(f"{what}: you are not logged in: run hf auth login") from error
    except _connection_errors(library) as error:
        raise HubError(f"{what}: {_first_line(error)}; {remedy}") from error


def hub_is_reachable(library: ModuleType) -> bool:
    """Return whether the Hub answers at all, with whatever status.

    The library repeats requests for half a minute per file, which no network makes useless.

    Args:
        library: The module of :func:`hub_library`.
    """
    try:
        library.get_session().head(
            library.constants.ENDPOINT, timeout=_CONNECT_SECONDS, follow_redirects=False
        )
    except _connection_errors(library):
        return False
    return True


@contextmanager
def cache_only_without_network() -> Iterator[None]:
    """Let the libraries within the block use the cache at once where the Hub does not answer.

    timm and others fetch through ``huggingface_hub``, which would repeat each request for half a
    minute. Nothing changes where it is not installed.
    """
    try:
        library = hub_library()
    except UserError:
        yield
        return
    before = library.constants.HF_HUB_OFFLINE
    library.constants.HF_HUB_OFFLINE = before or not hub_is_reachable(library)
    try:
        yield
    finally:
        library.constants.HF_HUB_OFFLINE = before


def _connection_errors(library: ModuleType) -> tuple[type[Exception], ...]:
    """Return what the library raises without a network, or in its offline mode."""
    # The HTTP client has changed between versions; its base of errors is one of these.
    return (OSError, *library.errors.HfHubHTTPError.__bases__)


def how_to_bring(hub_id: HubId, name: str) -> str:
    """Return what to do about a file where there is no network, for messages."""
    words = ["hf", "download", hub_id.repo, name, "--local-dir", "FOLDER"]
    if hub_id.revision is not None:
        words += ["--revision", hub_id.revision]
    return (
        f"check the network, or run {shlex.join(words)} where there is one, and give "
        f"FOLDER/{name} instead"
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
