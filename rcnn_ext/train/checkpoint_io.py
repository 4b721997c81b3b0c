"""Write Lightning's checkpoints whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from rcnn_ext.files import replacing


class AtomicCheckpointIO(TorchCheckpointIO):
    """Save checkpoints so that a crash or power loss leaves the old file or the new one.

    Lightning's own plugin writes to ``$TMPDIR`` and moves the file from there, which on another
    file system is a copy that can be cut short.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Write a temporary file in the folder of ``path``, flush it to disk, and rename it.

        Args:
            checkpoint: State of the model and the trainer.
            path: The file to write or replace.
            storage_options: Must be None.

        Raises:
            TypeError: ``storage_options`` were given.
            UserError: The folder cannot be made or written.
        """
        if storage_options is not None:
            raise TypeError("AtomicCheckpointIO takes no storage_options")
        with replacing(Path(path), sync=True) as temporary, temporary.open("wb") as file:
            torch.save(checkpoint, file)
