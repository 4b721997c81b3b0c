"""Several processes, as torchrun starts them: who am I, who goes first, and gathering rows.

torchrun tells each process by environment variables; without them there is one process, and
everything here does nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import distributed

from rcnn_ext.errors import UserError


@dataclass(frozen=True)
class Processes:
    """This process among those that work together.

    Attributes:
        rank: Its number, from 0.
        count: How many there are, on all machines.
        local_rank: Its number on this machine, which is also that of its GPU.
        local_count: How many there are on this machine.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1

    @classmethod
    def from_environment(cls) -> Processes:
        """What torchrun says; one process without it."""
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            return cls()
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        return cls(*(int(os.environ[name]) for name in names))

    @property
    def first(self) -> bool:
        """Whether this is the one that writes files and talks."""
        return self.rank == 0

    @property
    def machines(self) -> int:
        """Number of machines, each of which runs as many processes."""
        return self.count // self.local_count

    def say(self, text: str) -> None:
        """Prints once, not once a process."""
        if self.first:
            print(text, flush=True)

    @contextmanager
    def group(self, device: torch.device) -> Iterator[None]:
        """Joins the others for the time of the block: NCCL on GPUs, gloo elsewhere."""
        if self.count == 1:
            yield
            return
        if device.type == "cuda":
            torch.cuda.set_device(device)
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
        yield
        # Not after an exception: the others may wait for us forever, and torchrun ends them.
        distributed.destroy_process_group()

    @contextmanager
    def one_after_first(self) -> Iterator[None]:
        """Lets the others do a block after the first has, as when it makes files they read."""
        if self.count > 1 and not self.first:
            distributed.barrier()
        yield
        if self.count > 1 and self.first:
            distributed.barrier()

    def gather_rows(self, rows: np.ndarray, device: torch.device) -> np.ndarray:
        """Puts the rows of all processes together, in the order of their ranks.

        Args:
            rows: float64 [N, C]; N may differ between processes.
            device: Of the group.

        Returns:
            float64 [sum of N, C], in every process.
        """
        if self.count == 1:
            return rows
        own = torch.from_numpy(np.ascontiguousarray(rows)).to(device)
        length = torch.tensor([len(own)], device=device)
        lengths = [torch.zeros_like(length) for _ in range(self.count)]
        distributed.all_gather(lengths, length)
        counts = [int(value) for value in lengths]
        padded = own.new_zeros(max(counts), own.shape[1])
        padded[: len(own)] = own
        parts = [torch.empty_like(padded) for _ in range(self.count)]
        distributed.all_gather(parts, padded)
        together = [part[:count] for part, count in zip(parts, counts, strict=True)]
        return torch.cat(together).cpu().numpy()

    def from_first(self, value: float, device: torch.device) -> float:
        """The value that the first process has, in all of them."""
        if self.count == 1:
            return value
        shared = torch.tensor([value], dtype=torch.float64, device=device)
        distributed.broadcast(shared, 0)
        return float(shared)


def choose_device(name: str, processes: Processes | None = None) -> torch.device:
    """The device that ``auto``, ``cpu`` or ``cuda`` means here.

    Args:
        name: As a recipe or the command line has it.
        processes: Each takes a GPU of its own; None means a single one, and torch's current GPU.

    Raises:
        UserError: It is ``cuda`` and there is none, or not one for each process.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("no CUDA device is available; rcnn-ext doctor says why")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu" or processes is None or processes.count == 1:
        return torch.device(name)
    if processes.local_count > torch.cuda.device_count():
        gpus = torch.cuda.device_count()
        raise UserError(
            f"torchrun started {processes.local_count} processes, but this machine has {gpus} "
            f"GPUs; give it --nproc-per-node {gpus}"
        )
    return torch.device(name, processes.local_rank)
