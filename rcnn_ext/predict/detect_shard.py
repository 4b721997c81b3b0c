"""Detection in the pictures of one shard, each written as a line of JSON when it is done."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from rcnn_ext.data.images import PictureList
from rcnn_ext.errors import UserError
from rcnn_ext.files import file_key
from rcnn_ext.predict.detect_record import distinct_names, picture_record
from rcnn_ext.predict.detect_run import PICTURES, DetectFolder, Results
from rcnn_ext.predict.detections import Detections
from rcnn_ext.predict.pictures import PictureFile
from rcnn_ext.predict.predictor import Predictor
from rcnn_ext.predict.tiles import Tiling
from rcnn_ext.progress import Progress
from rcnn_ext.shards import ShardedRun
from rcnn_ext.viz import save_picture


@dataclass
class Outcome:
    """What went wrong in a shard.

    Attributes:
        errors: Number of its pictures that have an error.
        first_error: The first of these errors.
        lost: Why results could not be written: the first reason.
    """

    errors: int = 0
    first_error: str = ""
    lost: list[str] = field(default_factory=list)

    def add(self, error: str) -> None:
        """Count a picture that has an error."""
        self.errors += 1
        self.first_error = self.first_error or error


class ShardDetector:
    """Do the pictures of a shard that are not done.

    Args:
        model: The model.
        images: The pictures of all shards.
        folder: Where to write.
        run: The results of all shards.
        batch_size: Number of pictures per batch.
        min_score: Minimum score of what is written.
        draw_score: Minimum score in pictures; None draws none.
        tiling: The division of large pictures into tiles, or None.
    """

    def __init__(
        self,
        model: Predictor,
        images: PictureList,
        folder: DetectFolder,
        run: ShardedRun,
        *,
        batch_size: int,
        min_score: float,
        draw_score: float | None,
        tiling: Tiling | None,
    ) -> None:
        self.model = model
        self.images = images
        self.folder = folder
        self.run = run
        self.batch_size = batch_size
        self.min_score = min_score
        self.draw_score = draw_score
        self.tiling = tiling
        names = map(images.name, range(len(images)))
        self._drawn = [] if draw_score is None else distinct_names(names)

    def detect(self) -> Outcome:
        """Detect, draw and write.

        A batch of which a picture is not done is done as a whole, so that the results of a run that
        was interrupted are those of one that was not.

        Raises:
            UserError: The model cannot be run.
        """
        shard = self.run.shard
        # Tiles fill the batches of a picture.
        batches = shard.batches(len(self.images), 1 if self.tiling else self.batch_size)
        results = Results(self.images, self.run)
        todo = [batch for batch in batches if not all(map(results.is_done, batch))]
        del results
        total, rest = (sum(map(len, part)) for part in (batches, todo))
        if shard.count > 1:
            print(f"{shard.name} (by {shard.origin}): {total} of {len(self.images)} pictures")
        if rest < total:
            print(f"{total - rest} of {total} pictures are done already")
        if not rest:
            return Outcome()
        self.folder.remove_results()
        with Progress("Detecting", total, "image", total - rest) as progress:
            return self._detect(todo, progress)

    def _detect(self, todo: Sequence[range], progress: Progress) -> Outcome:
        started: deque[tuple[int, tuple[int, int]]] = deque()

        def opened() -> Iterator[PictureFile]:
            for batch in todo:
                for index in batch:
                    path, name = self.images[index]
                    # Before it is read: a picture that changes later is not done.
                    started.append((index, file_key(self.images.path(index))))
                    yield PictureFile(path, name, self.model.reader)

        found = self.model.stream(
            opened(),
            min_score=self.min_score,
            batch_size=self.batch_size,
            tiling=self.tiling,
            keep_pictures=self.draw_score is not None,
        )
        outcome = Outcome()
        for one in found:
            index, key = started.popleft()
            self._write(index, key, one, outcome)
            progress.advance()
        return outcome

    def _write(
        self, index: int, key: tuple[int, int], found: Detections | UserError, outcome: Outcome
    ) -> None:
        path = self.images.path(index)
        record = picture_record(path, key, found)
        if isinstance(found, Detections):
            record.update(self._draw(index, found))
        try:
            try:
                self.run.write(record)
            except ValueError:
                reason = UserError(f"{path}: the model gives numbers that are not finite")
                record = picture_record(path, key, reason)
                self.run.write(record)
        except UserError as error:
            # The disk may be full. The picture is done again when the command is.
            outcome.lost = outcome.lost or [str(error)]
            outcome.add(str(error))
            return
        if "error" in record:
            outcome.add(record["error"])

    def _draw(self, index: int, found: Detections) -> dict[str, Any]:
        """Save a picture with detections, and return what its line says of that."""
        if self.draw_score is None:
            return {}
        if found.height * found.width > self.model.reader.max_pixels:
            print(f"{found.name} is {found.width}x{found.height} pixels: too large to be drawn")
            return {}
        name = self._drawn[index]
        target = self.folder.out / PICTURES / name
        try:
            save_picture(found.draw(self.draw_score), target)
        except UserError as error:
            return {"error": str(error)}
        except (MemoryError, OSError, ValueError) as error:
            return {"error": f"cannot draw {target}: {error}"}
        return {"picture": name}
