"""What is done of the videos of a run, so that a restart leaves it out.

Each video is a line in ``detect-shards/videos`` when its results are whole. It is done if its path,
size and time of change are those of a line without an error, the settings and the weights are those
of the run, and the files of its results are there.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rcnn_ext import __version__
from rcnn_ext.errors import UserError
from rcnn_ext.files import file_key, read_json, write_json
from rcnn_ext.predict.detect_run import FOLDER, MANIFEST, RunFolder, settings_in
from rcnn_ext.predict.video_sources import VideoSource
from rcnn_ext.shards import ShardedRun, check_settings

# Folder, below that of all results, of those in videos.
VIDEOS = "videos"
_FORMAT = 1


@dataclass(frozen=True)
class VideoTask:
    """A video and where its results go.

    Attributes:
        source: The video.
        target: The annotated copy; the JSON lines are beside it.
    """

    source: VideoSource
    target: Path

    @property
    def path(self) -> str:
        """What records call it."""
        return os.fspath(self.source.target)

    def record(self, detections: int, files: Sequence[Path], error: str) -> dict[str, Any]:
        """Return the line of the video.

        Args:
            detections: Number of detections in it.
            files: The files of its results.
            error: Why it is not whole; empty if it is.
        """
        size, changed = file_key(self.path) if self.source.is_file else (-1, -1)
        names = [os.path.relpath(file, self.target.parent) for file in files]
        record = {"path": self.path, "bytes": size, "mtime_ns": changed, "files": names}
        return {**record, "detections": detections, **({"error": error} if error else {})}

    def is_done(self, record: dict[str, Any]) -> bool:
        """Return whether a line says that the video is done, and its results are still there."""
        # What streams and cameras show is another video each time.
        if not self.source.is_file or "error" in record:
            return False
        if (record.get("bytes"), record.get("mtime_ns")) != file_key(self.path):
            return False
        files = record.get("files")
        return isinstance(files, list) and all(
            isinstance(name, str) and (self.target.parent / name).is_file() for name in files
        )


@dataclass(frozen=True)
class VideoFolder(RunFolder):
    """The folder that results in videos are written to, and what belongs to the run."""

    @property
    def _folder(self) -> Path:
        return self.out / FOLDER / VIDEOS

    def open(self, tasks: Sequence[VideoTask]) -> ShardedRun:
        """Begin a run, or go on with it.

        Args:
            tasks: The videos of all shards.

        Raises:
            UserError: The folder has results with other settings, or cannot be written, or another
                process is at this shard.
        """
        manifest = self._folder / MANIFEST
        if manifest.exists() and not self.overwrite:
            check_settings(settings_in(manifest), self.settings, self.out / VIDEOS)
        run = self.open_run(self._folder, (task.path for task in tasks))
        value = {
            "format": _FORMAT,
            "command": "detect in videos",
            "rcnn_ext": __version__,
            "settings": self.settings,
        }
        with contextlib.suppress(UserError):
            if read_json(manifest) == value:
                return run
        write_json(manifest, value)
        return run


def latest_records(run: ShardedRun) -> dict[str, dict[str, Any]]:
    """Return the line of each video by its path, of several the last without an error, if any."""
    found: dict[str, dict[str, Any]] = {}
    for file in run.files():
        for _, record in run.results(file):
            path = record.get("path")
            known = found.get(path) if isinstance(path, str) else None
            if isinstance(path, str) and not ("error" in record and known and "error" not in known):
                found[path] = record
    return found
