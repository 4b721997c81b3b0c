"""A picture's results as one line of JSON, and many lines as the files that people read."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TextIO

from PIL import Image

from rcnn_ext.data.images import PictureList
from rcnn_ext.errors import UserError
from rcnn_ext.files import replacing
from rcnn_ext.predict.detect_run import OVERVIEW, PICTURES, Results
from rcnn_ext.predict.detections import Detections
from rcnn_ext.predict.submission import SUBMISSION, submission_header, submission_row
from rcnn_ext.shards import ShardedRun
from rcnn_ext.viz import contact_sheet, save_picture

DETECTIONS, ERRORS = "detections.json", "errors.jsonl"
_MAX_IN_OVERVIEW = 16
_encode = json.JSONEncoder(allow_nan=False).encode


def image_ids(names: Iterable[str]) -> Sequence[int]:
    """Return ids for a result file: COCO's, where file names are numbers, else 1, 2, ..."""
    numbers: list[int] = []
    count, all_numbers = 0, True
    for name in names:
        count += 1
        stem = os.path.splitext(os.path.basename(name))[0]
        # Longer ones are no numbers that programs can read.
        all_numbers = all_numbers and stem.isascii() and stem.isdigit() and len(stem) <= 18
        if all_numbers:
            numbers.append(int(stem))
    if all_numbers and len(set(numbers)) == count:
        return numbers
    return range(1, count + 1)


def distinct_names(names: Iterable[str], suffix: str = ".jpg") -> list[str]:
    """Return names for files of results, with numbers where they would be equal.

    Args:
        names: Names of pictures or videos.
        suffix: The suffix of the results.
    """
    taken: set[str] = set()
    result = []
    for name in names:
        stem, number = os.path.splitext(name)[0], 2
        candidate = f"{stem}{suffix}"
        while candidate in taken:
            candidate = f"{stem}-{number}{suffix}"
            number += 1
        taken.add(candidate)
        result.append(candidate)
    return result


def picture_record(
    path: str, key: tuple[int, int], found: Detections | UserError
) -> dict[str, Any]:
    """Return the line of a picture.

    Args:
        path: The picture's file.
        key: Its size in bytes and its time of change.
        found: The detections, or why there are none.
    """
    record: dict[str, Any] = {"path": path, "bytes": key[0], "mtime_ns": key[1]}
    if isinstance(found, UserError):
        return {**record, "error": str(found)}
    entries = found.to_coco()
    for entry in entries:
        del entry["image_id"], entry["file_name"]
    return {**record, "width": found.width, "height": found.height, "detections": entries}


@dataclass
class Merged:
    """What putting the results together gave.

    Attributes:
        detections: Number of detections.
        images: Number of pictures that could be read.
        errors: Number of pictures that have an error.
        first_error: The first of their errors.
        unwritten: Why files could not be written.
    """

    detections: int = 0
    images: int = 0
    errors: int = 0
    first_error: str = ""
    unwritten: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Merger:
    """Put the results of all shards together. Memory does not grow with the detections.

    Attributes:
        out: The folder to write to.
        images: The pictures.
        run: The run.
        min_score: Minimum score in ``detections.json``.
        localizes: Whether the model gives one detection per picture, with any score.
    """

    out: Path
    images: PictureList
    run: ShardedRun
    min_score: float
    localizes: bool

    def merge(self) -> Merged:
        """Write ``detections.json``, ``errors.jsonl``, the overview and what else there is."""
        result = Merged()
        steps = [self._write_detections, self._write_errors, self._write_overview]
        if self.localizes:
            steps.append(self._write_submission)
        for step in steps:
            try:
                step(result)
            except UserError as error:
                result.unwritten.append(str(error))
            except OSError as error:
                result.unwritten.append(f"{error.filename or self.out}: {error.strerror}")
        return result

    @cached_property
    def _results(self) -> Results:
        return Results(self.images, self.run)

    def _records(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the records of the pictures in order; of one without a record, an error."""
        results = self._results
        with contextlib.ExitStack() as stack:
            files = {path: stack.enter_context(path.open("rb")) for path in results.files}
            for index in range(len(self.images)):
                place = results.place(index)
                if place is None:
                    path = self.images.path(index)
                    reason = f"{path} has no result: it could not be written, or the file changed"
                    yield index, {"path": path, "error": reason}
                else:
                    file = files[place[0]]
                    file.seek(place[1])
                    yield index, json.loads(file.readline())

    def _write_detections(self, result: Merged) -> None:
        ids = image_ids(map(self.images.name, range(len(self.images))))
        with replacing(self.out / DETECTIONS) as temporary, _text_file(temporary) as file:
            file.write("[")
            for index, record in self._records():
                if "error" in record:
                    result.errors += 1
                    result.first_error = result.first_error or record["error"]
                result.images += "detections" in record
                for entry in self._entries(index, ids[index], record):
                    if entry["score"] >= self.min_score:
                        file.write(",\n" if result.detections else "\n")
                        file.write(_encode(entry))
                        result.detections += 1
            file.write("\n]\n" if result.detections else "]\n")

    def _entries(
        self, index: int, image_id: int, record: dict[str, Any]
    ) -> Iterator[dict[str, Any]]:
        name = Path(self.images.name(index)).as_posix()
        for entry in record.get("detections", ()):
            yield {"image_id": image_id, "file_name": name, **entry}

    def _write_errors(self, result: Merged) -> None:
        path = self.out / ERRORS
        if not result.errors:
            path.unlink(missing_ok=True)
            return
        with replacing(path) as temporary, _text_file(temporary) as file:
            for index, record in self._records():
                if "error" in record:
                    name = Path(self.images.name(index)).as_posix()
                    values = {"file_name": name, "path": record["path"], "error": record["error"]}
                    file.write(_encode(values) + "\n")

    def _write_overview(self, result: Merged) -> None:
        pictures: list[Image.Image] = []
        drawn: set[str] = set()
        for _, record in self._records():
            name = record.get("picture")
            if name is None:
                continue
            drawn.add(name)
            if len(pictures) < _MAX_IN_OVERVIEW:
                # Drawn pictures may have been removed meanwhile.
                with contextlib.suppress(OSError), Image.open(self.out / PICTURES / name) as one:
                    one.load()
                    pictures.append(one)
        if pictures:
            save_picture(contact_sheet(pictures), self.out / OVERVIEW)
        self._remove_old_pictures(drawn)

    def _remove_old_pictures(self, drawn: set[str]) -> None:
        """Remove what earlier runs drew of pictures that are not among those of this one."""
        for record in self.run.everything():
            name = record.get("picture")
            if isinstance(name, str) and name not in drawn:
                with contextlib.suppress(OSError):
                    (self.out / PICTURES / name).unlink()
        self.run.remove_stale()

    def _write_submission(self, result: Merged) -> None:
        with replacing(self.out / SUBMISSION) as temporary, _text_file(temporary) as file:
            file.write(submission_header())
            for index, record in self._records():
                for entry in self._entries(index, 0, record):
                    file.write(submission_row(entry))


def _text_file(path: Path) -> TextIO:
    # Names of files that are no text are written with escapes, as everywhere in results.
    return path.open("w", encoding="utf-8", errors="backslashreplace")
