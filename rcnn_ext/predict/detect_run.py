"""The part of ``detect`` that survives: results in JSON lines, and what is still to be done.

Each picture is one line, written when it is done. A picture is done if its path, size and time of
change are those of a line, and the settings and the weights are those of the run.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from rcnn_ext import __version__
from rcnn_ext.data.images import PictureList
from rcnn_ext.distributed import choose_device
from rcnn_ext.errors import UserError
from rcnn_ext.files import file_hash, file_key, read_json, write_json
from rcnn_ext.predict.load import load
from rcnn_ext.predict.predictor import Predictor
from rcnn_ext.shards import Shard, ShardedRun, check_settings, fingerprint_of

FOLDER = "detect-shards"
MANIFEST = "manifest.json"
PICTURES = "pictures"
OVERVIEW = "overview.jpg"
_FORMAT = 1


def loaded(
    checkpoint: str | os.PathLike[str] | Predictor,
    device_name: str,
    shard: Shard,
    *,
    trust: bool = False,
) -> Predictor:
    """Return a model on the device of a shard; one that is loaded already as it is.

    Args:
        checkpoint: As for :func:`rcnn_ext.load`, or the model.
        device_name: ``auto``, ``cpu`` or ``cuda``.
        shard: The part of this process.
        trust: Whether compiled code in a package may run.

    Raises:
        UserError: The checkpoint is wrong, or there is no such device.
    """
    if isinstance(checkpoint, Predictor):
        return checkpoint
    return load(checkpoint, device=choose_device(device_name, shard.processes), trust=trust)


def weights_hash(model: Predictor) -> str:
    """Return a hash of the file of a model, or of its weights where there is none."""
    if model.path is not None and model.path.is_file():
        return file_hash(model.path)
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        if isinstance(value, torch.Tensor):
            content = value.detach().cpu().contiguous().flatten().view(torch.uint8)
            digest.update(content.numpy().tobytes())
    return digest.hexdigest()[:16]


def is_result(path: str) -> bool:
    """Return whether a picture is the result of an earlier ``detect``, drawn or overview."""
    parent, name = os.path.split(path)
    if name == OVERVIEW and _has_manifest(parent):
        return True
    while parent and os.path.basename(parent) != parent:
        above, name = os.path.split(parent)
        if name == PICTURES and _has_manifest(above):
            return True
        if above == parent:
            break
        parent = above
    return False


class Results:
    """Where the results of the pictures of a list are, in the files of all shards.

    Args:
        images: The pictures.
        run: The run.
    """

    def __init__(self, images: PictureList, run: ShardedRun) -> None:
        self.files: list[Path] = []
        self._file = array("i", [-1]) * len(images)
        self._offset = array("q", [0]) * len(images)
        self._done = bytearray(len(images))
        index_of = {images.path(index): index for index in range(len(images))}
        for path in run.files():
            self.files.append(path)
            for offset, record in run.results(path):
                index = index_of.get(record.get("path", ""))
                if index is None or self._done[index]:
                    continue
                if (record.get("bytes"), record.get("mtime_ns")) == file_key(images.path(index)):
                    self._file[index] = len(self.files) - 1
                    self._offset[index] = offset
                    self._done[index] = "error" not in record

    def is_done(self, index: int) -> bool:
        """Return whether a picture is done, without an error."""
        return bool(self._done[index])

    def place(self, index: int) -> tuple[Path, int] | None:
        """Return the file and the offset of the result of a picture, or None."""
        file = self._file[index]
        return None if file < 0 else (self.files[file], self._offset[index])


@dataclass(frozen=True)
class RunFolder:
    """A folder that results are written to, and what belongs to the run.

    Attributes:
        out: The folder.
        settings: What changes results: settings and the hash of the weights.
        shard: The part of this process.
        overwrite: Whether to do all again.
    """

    out: Path
    settings: dict[str, Any]
    shard: Shard
    overwrite: bool = False
    fingerprint: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "fingerprint", fingerprint_of(self.settings))

    def open_run(self, folder: Path, paths: Iterable[str | Path]) -> ShardedRun:
        """Begin a run over files, or go on with it.

        Args:
            folder: The folder of the files of shards.
            paths: The files of all shards.

        Raises:
            UserError: The folder cannot be written, or another process is at this shard.
        """
        digest = hashlib.sha256()
        for path in paths:
            digest.update(os.fsencode(path) + b"\0")
        work = digest.hexdigest()[:16]
        return ShardedRun(folder, self.fingerprint, self.shard, work=work, fresh=self.overwrite)


@dataclass(frozen=True)
class DetectFolder(RunFolder):
    """The folder that ``detect`` writes to: detections in pictures, and what belongs to the run."""

    @property
    def manifest(self) -> Path:
        """The file that says what the folder holds."""
        return self.out / FOLDER / MANIFEST

    def check(self) -> None:
        """Refuse results of another run.

        Raises:
            UserError: The folder has results with other settings.
        """
        if self.manifest.exists() and not self.overwrite:
            check_settings(settings_in(self.manifest), self.settings, self.out)

    def own_pictures(self, images: PictureList) -> PictureList:
        """Return the pictures without those that are results of ``detect``.

        Raises:
            UserError: No others are left; or some are where the results would go.
        """
        rest = images.without(is_result)
        if not rest:
            raise UserError(f"{images.path(0)} is a result of detect, and there are no others")
        for index in range(len(rest)) if self._has_drawings else ():
            path = Path(rest.path(index))
            if path.name == OVERVIEW or PICTURES in path.parts:
                inside = os.path.relpath(path.resolve(), self.out.resolve())
                if inside == OVERVIEW or inside.startswith(PICTURES + os.sep):
                    raise UserError(f"{path} is where results would be drawn: take another --out")
        return rest

    @property
    def _has_drawings(self) -> bool:
        return any((self.out / name).exists() for name in (PICTURES, OVERVIEW))

    def open(self, images: PictureList) -> ShardedRun:
        """Begin a run, or go on with it.

        Raises:
            UserError: The folder cannot be written, or another process is at this shard.
        """
        paths = (images.path(index) for index in range(len(images)))
        run = self.open_run(self.out / FOLDER, paths)
        manifest = {
            "format": _FORMAT,
            "command": "detect",
            "rcnn_ext": __version__,
            "settings": self.settings,
            "pictures": {"count": len(images), "sha256": run.work},
        }
        with contextlib.suppress(UserError):
            if read_json(self.manifest) == manifest:
                return run
        # Before the manifest: who is killed between them finds another manifest, not old results.
        self.remove_results()
        write_json(self.manifest, manifest)
        return run

    def remove_results(self) -> None:
        """Remove the merged files, which are not those of the run until it is done.

        Raises:
            UserError: One cannot be removed.
        """
        for name in ("detections.json", "errors.jsonl", "submission.csv", OVERVIEW):
            path = self.out / name
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise UserError(f"cannot remove {path}: {error.strerror}") from error


def _has_manifest(folder: str) -> bool:
    return os.path.exists(os.path.join(folder, FOLDER, MANIFEST))


def settings_in(manifest: Path) -> dict[str, Any]:
    """Return the settings in a manifest.

    Raises:
        UserError: It is none.
    """
    value = read_json(manifest)
    settings = value.get("settings") if isinstance(value, dict) else None
    if not isinstance(settings, dict):
        raise UserError(f"{manifest} is not a manifest of detect: take another --out")
    return settings
