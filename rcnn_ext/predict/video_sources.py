"""Videos among what a person names: files, folders, patterns, pipes, URLs and cameras."""

from __future__ import annotations

import glob
import os
import re
import stat
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from rcnn_ext.data.images import IMAGE_SUFFIXES, is_picture
from rcnn_ext.data.images.finding import files_below, natural_key
from rcnn_ext.errors import UserError
from rcnn_ext.predict.sources import path_of

VIDEO_SUFFIXES = (
    *(".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".ogv"),
    *(".m2ts", ".mts", ".3gp", ".3g2", ".asf", ".vob", ".mxf", ".m2v", ".mpv", ".nut", ".y4m"),
    *(".h264", ".h265", ".hevc", ".264", ".265", ".ivf", ".dv", ".rm", ".rmvb", ".f4v", ".divx"),
)
# Files that are named are opened, and said to have no video; those in a folder are passed over.
_AUDIO_SUFFIXES = (".mp3", ".m4a", ".wav", ".flac", ".ogg", ".opus", ".aac", ".wma")
# Suffixes that other files have too.
_CHECKED_SUFFIXES = (".ts", ".dat", ".bin", "")

# How videos begin: MP4 and its kin, Matroska, AVI, FLV, Ogg, program and transport streams.
_MAGIC = re.compile(
    rb"....(ftyp|moov|mdat|wide)|\x1aE\xdf\xa3|RIFF....AVI |FLV\x01|OggS|\0\0\x01\xba"
    rb"|G.{187}G|0&\xb2u",
    re.DOTALL,
)
# How each line of results for a video begins.
LINE_BEGIN = b'{"frame": '
_STANDARD_INPUT = "-"
_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+://")


@dataclass(frozen=True)
class VideoSource:
    """A video that was named.

    Attributes:
        target: Its path, its URL, or ``-`` for standard input.
        name: Under which results about it are stored, as for pictures.
    """

    target: str | Path
    name: Path

    @property
    def is_standard_input(self) -> bool:
        """Whether it comes from standard input."""
        return self.target == _STANDARD_INPUT

    @property
    def is_url(self) -> bool:
        """Whether it is read over a network."""
        return isinstance(self.target, str) and not self.is_standard_input

    @property
    def is_file(self) -> bool:
        """Whether it is a regular file."""
        return isinstance(self.target, Path) and self.target.is_file()

    @property
    def is_camera(self) -> bool:
        """Whether it is a device."""
        return isinstance(self.target, Path) and _mode_is(self.target, stat.S_ISCHR)

    @property
    def shown(self) -> str:
        """What messages call it; a password in a URL is hidden."""
        if self.is_standard_input:
            return "standard input"
        text = str(self.target)
        return re.sub(r"://[^/@]*@", "://***@", text) if self.is_url else text

    @classmethod
    def of(cls, value: str | os.PathLike[str]) -> VideoSource:
        """Return the video of a path, a URL, or ``-``.

        Raises:
            UserError: There is no such file.
        """
        text = os.fspath(value)
        if text == _STANDARD_INPUT:
            return cls(text, Path("stdin"))
        if text.lower().startswith("file://"):
            return cls.of(path_of(text))
        if _URL.match(text):
            return cls(text, _name_of_url(text))
        path = Path(text).expanduser()
        if not path.exists():
            raise UserError(f"{path} does not exist: name a video")
        if path.is_dir():
            raise UserError(f"{path} is a folder: name a video")
        return cls(path, Path(path.name))


def split_sources(
    sources: Sequence[str | os.PathLike[str]],
) -> tuple[list[str | os.PathLike[str]], list[VideoSource]]:
    """Tell the videos among sources of pictures.

    Args:
        sources: Files, folders, patterns, URLs, devices, pipes, and ``-`` for standard input.

    Returns:
        The sources that pictures come from, and the videos. A folder and a pattern may be both; the
        annotated copies of earlier results in them are left out.

    Raises:
        UserError: A folder cannot be read, or a URL is that of a picture.
    """
    pictures: list[str | os.PathLike[str]] = []
    videos: dict[str, VideoSource] = {}
    for source in sources:
        text = os.fspath(source)
        path = Path(text)
        if path.is_dir():
            files, has_pictures = _videos_among(files_below(path))
            found = [VideoSource(Path(file), Path(file).relative_to(path)) for file in files]
        elif not path.exists() and not _URL.match(text) and glob.has_magic(text):
            files, has_pictures = _videos_among(glob.iglob(text, recursive=True))
            found = [VideoSource(Path(file), Path(Path(file).name)) for file in files]
        else:
            found = [VideoSource.of(text)] if _is_named_video(text, path) else []
            has_pictures = False
        for video in found:
            target = video.target
            key = target.resolve() if isinstance(target, Path) else target
            videos.setdefault(str(key), video)
        if has_pictures or not found:
            pictures.append(source)
    return pictures, list(videos.values())


def _videos_among(files: Iterable[str]) -> tuple[list[str], bool]:
    """Return the videos, sorted, and whether there are pictures too."""
    videos, has_pictures = [], False
    for file in files:
        path = Path(file)
        if is_video(path):
            if not _is_result(path):
                videos.append(file)
        elif not has_pictures:
            has_pictures = is_picture(path)
    return sorted(videos, key=natural_key), has_pictures


def _is_result(path: Path) -> bool:
    """Return whether a video is the annotated copy of another one, whose lines are beside it."""
    try:
        with path.with_suffix(".jsonl").open("rb") as file:
            return file.read(len(LINE_BEGIN)) == LINE_BEGIN
    except OSError:
        return False


def is_video(path: Path) -> bool:
    """Return whether a file is a video, by its suffix or else by its first bytes."""
    if path.name.startswith("."):
        return False
    suffix = path.suffix.lower()
    if suffix in VIDEO_SUFFIXES:
        return path.is_file()
    if suffix not in _CHECKED_SUFFIXES or is_picture(path):
        return False
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return _MAGIC.match(file.read(192)) is not None
    except OSError:
        return False


def _is_named_video(text: str, path: Path) -> bool:
    suffix = path.suffix.lower()
    if text == _STANDARD_INPUT or (_URL.match(text) and not text.lower().startswith("file:")):
        if Path(urlsplit(text).path).suffix.lower() in IMAGE_SUFFIXES:
            raise UserError(f"{text} is a picture on another machine: download it first")
        return True
    if text.lower().startswith("file:"):
        return is_video(path_of(text))
    if _mode_is(path, stat.S_ISFIFO) or (os.name == "posix" and text.startswith("/dev/video")):
        return path.exists()
    return is_video(path) or (suffix in _AUDIO_SUFFIXES and path.is_file())


def _mode_is(path: Path, check: Callable[[int], bool]) -> bool:
    try:
        return check(path.stat().st_mode)
    except (OSError, ValueError):
        return False


def _name_of_url(url: str) -> Path:
    parts = urlsplit(url)
    name = Path(parts.path).name or (parts.hostname or "stream")
    return Path(re.sub(r"[^\w.-]", "_", name).lstrip(".") or "stream")
