"""Programs of ``torch.export`` (``.pt2``), read back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rcnn_ext.predict.checkpoint import ModelFormatError, SavedDetector, read_entry
from rcnn_ext.predict.exported.model import ExportedModel, ModelFacts, naming
from rcnn_ext.predict.program_file import read_program


@dataclass(frozen=True)
class SavedProgram(SavedDetector):
    """A detector as a file holds it that has its code too, for some runtime.

    Attributes:
        program: The program, for the CPU, where the runtime is PyTorch's.
        facts: What is known of the model.
    """

    program: Any = None
    facts: ModelFacts | None = None

    def build(self, device: torch.device) -> nn.Module:
        """Return the program as a model in evaluation mode on a device.

        Raises:
            ModelFormatError: Its graph is damaged.
        """
        assert self.facts is not None
        program = self.program
        if device.type != "cpu":
            from torch.export.passes import move_to_device_pass

            program = move_to_device_pass(program, str(device))
        with naming(self.path):
            module = program.module()
        return ExportedModel(module, self.facts, self.path)


def load_program(path: Path) -> SavedProgram:
    """Read a program that ``rcnn-ext export`` wrote, after a check of all that is in its file.

    Raises:
        ProgramError: It holds more than such programs do, or is damaged.
        ModelFormatError: What it says of its model is damaged.
    """
    program, content = read_program(path)
    entry = content.get("entry")
    if not isinstance(entry, dict):
        raise ModelFormatError(f"{path} was not written by rcnn-ext export")
    return SavedProgram(
        path=path,
        weights=dict(program.state_dict),
        program=program,
        facts=ModelFacts.from_dict(path, content.get("facts")),
        **read_entry(path, entry),
    )
