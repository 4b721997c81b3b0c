"""Archives in place of a data folder: unpacked once, safely, and used again.

An archive is input of unknown origin. Nothing is written outside its folder, no link is made,
and its size when unpacked is bounded before and while it is written.
"""

from __future__ import annotations

import errno
import hashlib
import lzma
import os
import posixpath
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from rcnn_ext.data.formats.split_names import splits_in_name
from rcnn_ext.errors import UserError
from rcnn_ext.files import read_json, replacing_folder, write_json
from rcnn_ext.progress import tracked

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")

_MARKER = ".rcnn-ext-archive.json"

# Pictures do not shrink in an archive, but masks and annotations may shrink a hundredfold; the
# files made to fill a disk shrink by thousands.
_MAX_RATIO = 100
_FREE_BYTES = 1 << 30
_MAX_ENTRIES = 5_000_000

_CHUNK = 1 << 20

# Folders that mean something by their names are kept even where they are alone.
_MEANINGFUL = {"annotations", "images", "labels", "jpegimages", "pngimages", "data", "ann", "img"}

_DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
)


@dataclass(frozen=True)
class _Entry:
    """A file in an archive.

    Attributes:
        name: Its name as the archive has it.
        content: Its content; None for a link.
        link: What the link leads to, relative to the archive's top; None for a file.
    """

    name: str
    content: IO[bytes] | None
    link: str | None = None


def is_archive(path: Path) -> bool:
    """Return whether a path is a file with a suffix of archives."""
    return path.name.lower().endswith(SUFFIXES) and path.is_file()


def unpacked(root: Path | str, unpack_to: str | None = None) -> Path:
    """Return the data folder for what a person names: a folder, or an archive, which is unpacked.

    The folder of an archive is reused as long as size and time of the archive stay the same. A
    single top folder in it is entered.

    Args:
        root: A folder, an archive, or anything else, which is returned as it is.
        unpack_to: Folder for the unpacked archives; None: ``data.zip`` becomes
            ``data.zip.unpacked`` beside it.

    Raises:
        UserError: The archive is damaged, encrypted or unsafe, or there is no space for it.
    """
    root = Path(root)
    if not is_archive(root):
        if root.is_file():
            raise UserError(
                f"{root} is a file: name the data folder, or an archive ({', '.join(SUFFIXES)})"
            )
        return root
    folder = _folder_of(root, unpack_to)
    stat_of = root.stat()
    made_from = {"size": stat_of.st_size, "modified_ns": stat_of.st_mtime_ns}
    if not _holds(folder, made_from):
        _unpack(root, folder, made_from)
    return _enter(folder)


def _folder_of(archive: Path, unpack_to: str | None) -> Path:
    if unpack_to is None:
        return archive.with_name(f"{archive.name}.unpacked")
    # Archives of one name from several folders.
    place = hashlib.sha256(os.fsencode(archive.absolute().parent)).hexdigest()[:8]
    return Path(unpack_to) / f"{archive.name}-{place}.unpacked"


def _holds(folder: Path, made_from: dict[str, int]) -> bool:
    marker = folder / _MARKER
    return marker.is_file() and read_json(marker) == made_from


def _unpack(archive: Path, folder: Path, made_from: dict[str, int]) -> None:
    if folder.exists() and any(folder.iterdir()):
        if not (folder / _MARKER).is_file():
            raise UserError(
                f"{archive} is to be unpacked into {folder}, which holds something else: move it "
                "away, or name another folder with data.unpack_to=FOLDER"
            )
        shutil.rmtree(folder)
    try:
        with replacing_folder(folder) as temporary:
            _write_all(archive, temporary)
            write_json(temporary / _MARKER, made_from)
    except NotImplementedError as error:  # A method of compression that Python does not have.
        raise UserError(
            f"{archive} is compressed by a method that is not read: pack its content anew"
        ) from error
    except _DAMAGED as error:
        raise UserError(
            f"{archive} is damaged, or no archive of its suffix: copy or download it again"
        ) from error
    except OSError as error:
        # Another process of this machine may have been faster.
        if _holds(folder, made_from):
            return
        reason = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            hint = "free some space, or name a folder on another disk"
        elif error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            hint = "name a folder that can be written"
        else:
            raise UserError(f"cannot unpack {archive} into {folder}: {reason}") from error
        raise UserError(
            f"cannot unpack {archive} into {folder}: {reason}; {hint} with data.unpack_to=FOLDER"
        ) from error


def _write_all(archive: Path, folder: Path) -> None:
    limit = _FREE_BYTES + _MAX_RATIO * archive.stat().st_size
    links: list[tuple[Path, _Entry]] = []
    written = 0
    for count, entry in enumerate(_entries(archive, folder, limit), start=1):
        if count > _MAX_ENTRIES:
            raise UserError(f"{archive} has more than {_MAX_ENTRIES} files: unpack it yourself")
        if _is_junk(entry.name):
            continue
        target = _target(archive, folder, entry.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        if entry.content is None:
            links.append((target, entry))
            continue
        with entry.content as source, target.open("wb") as file:
            while chunk := source.read(_CHUNK):
                written += len(chunk)
                if written > limit:
                    raise _too_large(archive, limit)
                file.write(chunk)
    for target, entry in links:
        source_path = _target(archive, folder, str(entry.link))
        if not source_path.is_file():
            raise UserError(
                f"{archive}: {entry.name} is a link to {entry.link}, which is no file in the "
                "archive; nothing was unpacked"
            )
        written += source_path.stat().st_size
        if written > limit:
            raise _too_large(archive, limit)
        shutil.copyfile(source_path, target)


def _too_large(archive: Path, limit: int) -> UserError:
    return UserError(
        f"{archive} unpacks to more than {limit / 1e9:.1f} GB from "
        f"{archive.stat().st_size / 1e9:.3g} GB, as files do that are made to fill a disk; if it "
        "is to be trusted, unpack it yourself and name the folder"
    )


def _is_junk(name: str) -> bool:
    """Return whether an entry is what macOS adds to archives."""
    parts = name.split("/")
    return "__MACOSX" in parts or parts[-1].startswith("._") or parts[-1] == ".DS_Store"


def _target(archive: Path, folder: Path, name: str) -> Path:
    """Return where an entry goes.

    Raises:
        UserError: It would be outside the folder.
    """
    plain = name.replace("\\", "/")
    parts = [part for part in plain.split("/") if part not in ("", ".")]
    if plain.startswith("/") or ".." in parts or ":" in (parts[0] if parts else "") or not parts:
        raise UserError(
            f"{archive} has the entry {name!r:.100}, which leads out of the folder that it is "
            "unpacked into; nothing was unpacked"
        )
    return folder.joinpath(*parts)


def _entries(archive: Path, folder: Path, limit: int) -> Iterator[_Entry]:
    if archive.name.lower().endswith(".zip"):
        with zipfile.ZipFile(archive) as file:
            yield from _zip_entries(archive, folder, file, limit)
    else:
        with tarfile.open(archive, "r:*") as file:
            yield from _tar_entries(archive, file)


def _zip_entries(
    archive: Path, folder: Path, file: zipfile.ZipFile, limit: int
) -> Iterator[_Entry]:
    entries = [entry for entry in file.infolist() if not entry.is_dir()]
    total = sum(entry.file_size for entry in entries)
    if total > limit:
        raise _too_large(archive, limit)
    free = shutil.disk_usage(folder).free
    if total > free:
        raise UserError(
            f"{archive} needs {total / 1e9:.1f} GB when unpacked, and {folder.parent} has "
            f"{free / 1e9:.1f} GB left: name a folder on another disk with data.unpack_to=FOLDER"
        )
    for entry in tracked(entries, "Unpacking", len(entries), "file"):
        if entry.flag_bits & 1:
            raise UserError(f"{archive} is encrypted: unpack it yourself and name the folder")
        name = _zip_name(entry)
        if stat.S_ISLNK(entry.external_attr >> 16):
            with file.open(entry) as content:
                link = content.read(4096).decode("utf-8", "replace")
            yield _Entry(name, None, _beside(name, link))
        else:
            yield _Entry(name, file.open(entry))


def _zip_name(entry: zipfile.ZipInfo) -> str:
    """Return the name of an entry, which some programs write in UTF-8 without saying so."""
    if entry.flag_bits & 0x800:
        return entry.filename
    try:
        return entry.filename.encode("cp437").decode("utf-8")
    except UnicodeError:
        return entry.filename


def _tar_entries(archive: Path, file: Any) -> Iterator[_Entry]:
    for member in file:
        if member.isdir():
            continue
        if member.issym():
            yield _Entry(member.name, None, _beside(member.name, member.linkname))
        elif member.islnk():
            yield _Entry(member.name, None, member.linkname)
        elif member.isreg():
            yield _Entry(member.name, file.extractfile(member))
        else:
            raise UserError(
                f"{archive} has the entry {member.name!r:.100}, which is neither a file nor a "
                "folder; nothing was unpacked"
            )


def _beside(name: str, link: str) -> str:
    """Return what a link leads to, relative to the archive's top."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(name), link))


def _enter(folder: Path) -> Path:
    """Return the folder, or the only one in it where that is a mere wrapping."""
    while True:
        inside = [path for path in folder.iterdir() if not path.name.startswith(".")]
        if len(inside) != 1 or not inside[0].is_dir():
            return folder
        name = inside[0].name
        if name.lower() in _MEANINGFUL or splits_in_name(name):
            return folder
        folder = inside[0]
