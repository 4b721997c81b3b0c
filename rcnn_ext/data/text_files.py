"""Reading lists, labels and names that other programs wrote."""

from __future__ import annotations

from pathlib import Path

from rcnn_ext.errors import UserError


def read_lines(path: Path) -> list[str]:
    """Return the lines of a file of UTF-8 text, with or without the mark of Windows' editors.

    Raises:
        UserError: It cannot be read, or is in another encoding.
    """
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: save it as UTF-8 ({error.reason})") from error
