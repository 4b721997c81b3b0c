"""What is found in a video, as JSON lines and as an annotated copy, written frame by frame."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

from rcnn_ext.errors import UserError
from rcnn_ext.files import make_folder
from rcnn_ext.predict.video import FrameDetections
from rcnn_ext.predict.video_frames import Video, VideoFrame
from rcnn_ext.predict.video_writer import VideoWriter

# Of entries in a COCO result file: a frame has no id, and all lines are of one file.
_NOT_IN_LINES = ("image_id", "file_name")


class VideoResults:
    """Write the results for one video as they come.

    A file that cannot be written costs that file only.

    Args:
        path: The annotated video; the JSON lines are beside it.
        min_score: Minimum score in the JSON.
        draw_score: Minimum score in the annotated video; None: there is none.

    Attributes:
        num_frames: Number of frames so far.
        num_detections: Number of detections so far.
        errors: Why files could not be written.
    """

    def __init__(self, path: Path, *, min_score: float, draw_score: float | None) -> None:
        self.video_path = path
        self.lines_path = path.with_suffix(".jsonl")
        self.min_score = min_score
        self.draw_score = draw_score
        self.num_frames = 0
        self.num_detections = 0
        self.errors: list[UserError] = []
        self._lines: IO[str] | None = None
        self._lines_failed = False
        self._writer: VideoWriter | None = None
        self._written: list[Path] = []
        self._notes: list[str] = []

    @contextmanager
    def of(self, video: Video) -> Iterator[None]:
        """Take the results for a video; files are finished even if the keyboard interrupts."""
        interrupted: KeyboardInterrupt | None = None
        with ExitStack() as files:
            files.callback(self._close_lines)
            if self.draw_score is not None:
                self._writer = VideoWriter(self.video_path, video)
            try:
                yield
            except KeyboardInterrupt as error:
                interrupted = error
            except BaseException as error:
                self._end_video(error)
                raise
            self._end_video(None)
        if interrupted is not None:
            raise interrupted

    def add(self, one: FrameDetections) -> None:
        """Write the detections in a frame."""
        entries = [
            {key: value for key, value in row.items() if key not in _NOT_IN_LINES}
            for row in one.to_coco()
            if row["score"] >= self.min_score
        ]
        self.num_frames += 1
        self.num_detections += len(entries)
        size = {"width": one.width, "height": one.height}
        time = round(one.time, 6)
        self._write_line({"frame": one.frame, "time": time, **size, "detections": entries})
        if self._writer is not None and self.draw_score is not None:
            assert isinstance(one.source, VideoFrame)
            drawn, exact_time = one.draw(self.draw_score, min_size=0), one.source.time
            self._with_writer(lambda writer: writer.add_frame(drawn, exact_time))

    def add_audio(self, packet: Any, origin: Fraction) -> None:
        """Copy a packet of sound to the annotated video."""
        self._with_writer(lambda writer: writer.add_audio(packet, origin))

    @property
    def written(self) -> list[Path]:
        """The files that are complete."""
        return list(self._written)

    def summary(self, shown: str) -> str:
        """Return in a line what was written.

        Args:
            shown: What messages call the video.
        """
        frames = f"{self.num_frames} frame{'s' * (self.num_frames != 1)}"
        files = " and ".join(map(str, self._written)) or "no file"
        found = f"{self.num_detections} detections in {frames} of {shown}, written to {files}"
        return "; ".join([found, *self._notes])

    def _write_line(self, value: dict[str, Any]) -> None:
        if self._lines_failed:
            return
        try:
            if self._lines is None:
                make_folder(self.lines_path.parent)
                self._lines = self.lines_path.open("w", encoding="utf-8", errors="backslashreplace")
                self._written.append(self.lines_path)
            self._lines.write(json.dumps(value, allow_nan=False) + "\n")
            self._lines.flush()  # Whoever follows the file sees each frame when it is done.
        except (OSError, UserError) as error:
            self._fail_lines(error)

    def _close_lines(self) -> None:
        if self._lines is not None:
            try:
                self._lines.close()
            except OSError as error:
                self._fail_lines(error)

    def _fail_lines(self, error: OSError | UserError) -> None:
        if not self._lines_failed:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            self.errors.append(UserError(f"cannot write {self.lines_path}: {reason}"))
        self._lines_failed = True

    def _with_writer(self, call: Callable[[VideoWriter], None]) -> None:
        if self._writer is None:
            return
        try:
            call(self._writer)
        except UserError as error:
            self.errors.append(error)
            self._end_video(error)

    def _end_video(self, error: BaseException | None) -> None:
        """Finish the annotated video, or remove it after an error."""
        writer, self._writer = self._writer, None
        if writer is None:
            return
        try:
            writer.close(error)
        except UserError as failure:
            self.errors.append(failure)
            return
        if error is None and writer.codec:
            self._written.append(self.video_path)
            if writer.without_audio is not None:
                self._notes.append(f"sound ({writer.without_audio}) is not copied")
            if writer.resized:
                self._notes.append("frames of other sizes are resized to that of the first")
