"""One hash for the native sources, so that a stale build or a stale figure shows itself.

Imports nothing of this package: ``setup.py`` loads the file by its path, before anything is built.
"""

from __future__ import annotations

import hashlib
import pathlib


def csrc_hash(csrc: pathlib.Path) -> str:
    """Hash every file under a source folder, names included.

    Hidden files and byte-code caches are left out: an editor's swap file or an import from a
    source folder does not change what is compiled.

    Args:
        csrc: The folder of native sources.

    Returns:
        The first 16 hexadecimal digits of a SHA-256 over the sorted relative paths (with ``/``
        between their parts) and the contents.

    Raises:
        FileNotFoundError: ``csrc`` is not a folder.
    """
    if not csrc.is_dir():
        raise FileNotFoundError(f"no source folder {csrc}")
    files = {
        path.relative_to(csrc).as_posix(): path
        for path in csrc.rglob("*")
        if path.is_file() and not _ignored(path.relative_to(csrc))
    }
    digest = hashlib.sha256()
    for name in sorted(files):
        content = files[name].read_bytes()
        # The lengths make the encoding unambiguous: moving bytes from one file to the next, or from
        # a name to a content, changes the hash.
        digest.update(f"{len(name.encode())} {len(content)}\n".encode())
        digest.update(name.encode())
        digest.update(content)
    return digest.hexdigest()[:16]


def _ignored(relative: pathlib.Path) -> bool:
    return any(part.startswith(".") or part == "__pycache__" for part in relative.parts)
