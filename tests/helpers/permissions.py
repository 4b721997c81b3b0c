"""Files that the user who reads them has no right to read."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

_NOBODY = 65534


@contextlib.contextmanager
def folder_without_privileges() -> Iterator[Path]:
    """Yield an empty folder, and be a user whom file modes bind, as they do not bind root.

    Only the process's effective user changes: modules are still to be imported before, as their
    files may be root's alone.
    """
    if os.name != "posix":
        pytest.skip("needs POSIX file modes")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        is_root = os.geteuid() == 0
        if is_root:
            os.chown(folder, _NOBODY, -1)
            os.seteuid(_NOBODY)
        try:
            yield folder
        finally:
            if is_root:
                os.seteuid(0)
            for path in [folder, *folder.rglob("*")]:
                if path.is_dir():
                    path.chmod(0o700)
