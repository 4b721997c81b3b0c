"""The folder in which the shards of some work keep their results until all are done."""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rcnn_ext.errors import UserError
from rcnn_ext.shards.lines import LineFile, is_locked, last_record, read_records
from rcnn_ext.shards.shard import Shard

_FILE_NAME = re.compile(r"[0-9]+-of-[0-9]+\.jsonl")
_LOCK = "lock"
# Keys of the lines that are no results.
_RUN, _FINISHED = "run", "finished"


@dataclass(frozen=True)
class ShardState:
    """How far a shard is.

    Attributes:
        shard: The shard.
        finished: Whether it is done, with the same list and settings.
        running: Whether a process is at it.
        results: Number of results that it has written.
        process: Machine and process id of who did or does it; empty where nobody has begun.
    """

    shard: Shard
    finished: bool
    running: bool
    results: int = 0
    process: str = ""

    def __str__(self) -> str:
        if self.running:
            return f"{self.shard.name} is still running ({self.process})"
        if not self.process:
            return f"{self.shard.name} has not begun"
        return f"{self.shard.name} has stopped after {self.results} ({self.process})"


class ShardedRun:
    """Append results to a file of one's own, and read those of all shards.

    No process waits for another one: each writes its own file, and whoever finds that all are
    finished puts the results together. Restarting a shard goes on where it stopped, also with
    another number of shards, and results with other settings do not count.

    Args:
        folder: The folder of the files.
        fingerprint: What results must agree in; see :func:`fingerprint_of`.
        shard: The part of this process.
        work: Fingerprint of the list of all work, in which all shards have to agree.
        fresh: Whether to drop the earlier results of this shard and ignore those of runs with
            another number of shards.

    Raises:
        UserError: The folder cannot be written, or another process is at the same shard.
    """

    def __init__(
        self, folder: Path, fingerprint: str, shard: Shard, *, work: str, fresh: bool = False
    ) -> None:
        self.folder = folder
        self.fingerprint = fingerprint
        self.shard = shard
        self.work = work
        self.fresh = fresh
        self._file = LineFile(folder / shard.file_name, empty=fresh and not _is_restart())
        process = f"{socket.gethostname()}, process {os.getpid()}"
        self._file.write({_RUN: fingerprint, "shard": shard.name, "process": process})

    def write(self, record: dict[str, Any], *, allow_nan: bool = False) -> None:
        """Append a result.

        Args:
            record: The result.
            allow_nan: Whether it may have numbers that are not finite, which Python alone reads.

        Raises:
            UserError: The file cannot be written.
            ValueError: The result has numbers that are not finite.
        """
        self._file.write(record, allow_nan=allow_nan)

    def finish(self, *, complete: bool = True) -> list[ShardState]:
        """Mark this shard as finished.

        Args:
            complete: Whether all its results could be written; else it is not marked.

        Returns:
            The states of the other shards that are not finished. One process alone gets an empty
            list, where all shards are complete.

        Raises:
            UserError: The file cannot be written.
        """
        with LineFile(self.folder / _LOCK, wait=True):
            if complete:
                self._file.write({_FINISHED: self.work, _RUN: self.fingerprint})
            states = [self._state(index) for index in range(self.shard.count)]
        return [
            state
            for state in states
            if not state.finished and state.shard.index != self.shard.index
        ]

    def close(self) -> None:
        """Give up the lock of the shard."""
        self._file.close()

    def __enter__(self) -> ShardedRun:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def files(self) -> list[Path]:
        """Return the files of results, of any number of shards."""
        paths = _line_files(self.folder)
        return [path for path in paths if not self.fresh or path.name.endswith(self._suffix)]

    def results(self, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the results in a file that have the settings of this run, and their offsets.

        Raises:
            UserError: It cannot be read.
        """
        counts = False
        for offset, record in read_records(path):
            if _RUN in record:
                counts = record[_RUN] == self.fingerprint
            elif counts and _FINISHED not in record:
                yield offset, record

    def everything(self) -> Iterator[dict[str, Any]]:
        """Yield all records in the folder, also of earlier runs."""
        for path in _line_files(self.folder):
            yield from (record for _, record in read_records(path))

    def remove_stale(self) -> None:
        """Remove the files of other runs, but those that a process writes."""
        own = set(self.files())
        for path in _line_files(self.folder):
            current = path in own and any(True for _ in self.results(path))
            if not current and path != self.folder / self.shard.file_name and not is_locked(path):
                path.unlink(missing_ok=True)

    def _state(self, index: int) -> ShardState:
        shard = self.shard.sibling(index)
        path = self.folder / shard.file_name
        last = last_record(path)
        if last == {_FINISHED: self.work, _RUN: self.fingerprint}:
            return ShardState(shard, finished=True, running=False)
        if not path.exists():
            return ShardState(shard, finished=False, running=False)
        running = index != self.shard.index and is_locked(path)
        results, process = 0, ""
        for _, record in read_records(path):
            process = record.get("process", process)
            results += _RUN not in record
        return ShardState(shard, False, running, results, process)

    @property
    def _suffix(self) -> str:
        return self.shard.file_name.partition("-")[2]


def _line_files(folder: Path) -> list[Path]:
    names = sorted(os.listdir(folder)) if folder.is_dir() else []
    return [folder / name for name in names if _FILE_NAME.fullmatch(name)]


def _is_restart() -> bool:
    """Return whether torchrun or Slurm has started this process again after a failure."""
    names = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
    return any(os.environ.get(name, "0") not in ("", "0") for name in names)


def fingerprint_of(value: Any) -> str:
    """Return a hash of a value of plain types."""
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def check_settings(found: dict[str, Any], settings: dict[str, Any], folder: Path) -> None:
    """Refuse to mix results that were made with different settings.

    Args:
        found: The settings of the results in a folder.
        settings: Those of the run that begins.
        folder: The folder.

    Raises:
        UserError: They differ; the message names those that do.
    """
    names = [name for name in {**found, **settings} if found.get(name) != settings.get(name)]
    if names:
        changed = "; ".join(
            f"{name}: {_shown(found.get(name))} before, {_shown(settings.get(name))} now"
            for name in names
        )
        raise UserError(
            f"{folder} has results with other settings ({changed}): take another --out, or "
            "--overwrite to do all again"
        )


def _shown(value: Any) -> str:
    return "none" if value is None or value == [] else json.dumps(value, ensure_ascii=False)
