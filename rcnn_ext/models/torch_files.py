"""Files of ``torch.save``, read without running code, and named where that is not possible."""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from rcnn_ext.errors import UserError


def read_torch_file(path: Path, *, allowed: Sequence[Any] = (), check_sums: bool = False) -> Any:
    """Return the content of a file of ``torch.save``: tensors, plain values and containers of them.

    Args:
        path: The file.
        allowed: Classes whose objects may be in it, too.
        check_sums: Whether to compare the checksums of its entries, which PyTorch writes unless it
            is told not to, and never reads.

    Raises:
        UserError: It cannot be read, is no such file, is damaged, or holds something else.
    """
    with torch.serialization.safe_globals(list(allowed)), warnings.catch_warnings():
        # Of protocols of pickles, which decide nothing that the result does not show.
        warnings.simplefilter("ignore")
        try:
            if check_sums and zipfile.is_zipfile(path):
                _check_sums(path)
            return torch.load(path, map_location="cpu", weights_only=True)
        except (torch.OutOfMemoryError, MemoryError):
            raise UserError(
                f"{path} does not fit into memory, or is damaged: its size is "
                f"{path.stat().st_size:,} bytes"
            ) from None
        except UserError:
            raise
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror or error}") from error
        # Damage can make the unpickler do anything.
        except Exception as error:
            raise UserError(
                f"{path} is not a checkpoint, or is damaged: {_fault(path, error)}"
            ) from error


def _check_sums(path: Path) -> None:
    """Read all entries of an archive.

    Raises:
        UserError: One has another checksum than was written.
    """
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise UserError(
            f"{path} is damaged: its entry {damaged.partition('/')[2]} has another checksum than "
            "when it was written; take another checkpoint, or an earlier copy of this one"
        )


def _fault(path: Path, error: Exception) -> str:
    """Return what is wrong with a file, in our words: PyTorch's advise to run code in the file."""
    unsafe = re.search(r"(?:Unsupported \w+|GLOBAL|callable):? ([\w.]+\.\w+)", str(error))
    if unsafe is not None:
        return (
            f"it holds more than tensors and plain values, since it asks for {unsafe[1]}, which "
            "could run code; where you trust it, load it yourself and save its state dict alone, "
            'with torch.save(model.state_dict(), "model.pth")'
        )
    if path.stat().st_size == 0:
        return "it is empty"
    with path.open("rb") as file:
        is_archive = file.read(4) == b"PK\3\4"
    if is_archive:
        return "it is no whole archive of torch.save; copy or download it again"
    return "it is no file of torch.save"
