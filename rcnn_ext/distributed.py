"""Process groups as torchrun starts them: ranks, barriers and collectives.

torchrun describes each process in environment variables; without them there is one process, and
every collective returns its own input.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import torch
from torch import distributed

from rcnn_ext.errors import UserError


@dataclass(frozen=True)
class Processes:
    """Describe this process and the group it belongs to.

    Attributes:
        rank: Global rank, from 0.
        count: World size: number of processes on all machines.
        local_rank: Rank on this machine, which is also the index of its GPU.
        local_count: Number of processes on this machine.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1

    @classmethod
    def from_environment(cls) -> Processes:
        """Return the group that torchrun describes, or a single process without torchrun."""
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            return cls()
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        return cls(*(int(os.environ[name]) for name in names))

    @property
    def is_main_process(self) -> bool:
        """Whether this is rank 0, which writes files and prints."""
        return self.rank == 0

    @property
    def machines(self) -> int:
        """Number of machines, which all run the same number of processes."""
        return self.count // self.local_count

    def print_once(self, text: str) -> None:
        """Print in the main process only."""
        if self.is_main_process:
            print(text, flush=True)

    @contextmanager
    def group(self, device: torch.device) -> Iterator[None]:
        """Join the process group within the block: NCCL on GPUs, gloo elsewhere."""
        if self.count == 1:
            yield
            return
        if device.type == "cuda":
            torch.cuda.set_device(device)
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
        yield
        # Skipped after an exception: destroying the group can hang while other processes wait in a
        # collective. torchrun terminates them.
        distributed.destroy_process_group()

    @contextmanager
    def main_process_first(self) -> Iterator[None]:
        """Run the block in the main process first, then in the others.

        Serves blocks in which the main process makes files that the others read.
        """
        if self.count > 1 and not self.is_main_process:
            distributed.barrier()
        yield
        if self.count > 1 and self.is_main_process:
            distributed.barrier()

    def all_gather(self, rows: np.ndarray, device: torch.device) -> np.ndarray:
        """Concatenate the rows of all processes in the order of their ranks.

        Args:
            rows: float64 [N, C]; N may differ between processes.
            device: Device of the process group.

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

    def count_in_main(self, own: int) -> int:
        """Wait until all processes are here, however long they take; they are in no group yet.

        Args:
            own: A count.

        Returns:
            The sum of the counts in the main process; 0 in the others.
        """
        if self.count == 1:
            return own
        forever = timedelta(days=365)
        distributed.init_process_group("gloo", timeout=forever)
        counts = self.all_gather(np.array([[float(own)]]), torch.device("cpu"))
        return int(counts.sum()) if self.is_main_process else 0

    def broadcast_from_main(self, value: float, device: torch.device) -> float:
        """Return the main process's value in every process."""
        if self.count == 1:
            return value
        shared = torch.tensor([value], dtype=torch.float64, device=device)
        distributed.broadcast(shared, 0)
        return float(shared)


def choose_device(name: str | torch.device, processes: Processes | None = None) -> torch.device:
    """Return the device that a name means on this machine.

    Args:
        name: ``auto`` (a GPU where there is one, else the CPU), or a device as PyTorch names it:
            ``cpu``, ``cuda``, ``cuda:1``.
        processes: Each takes a GPU of its own where the name has no index; None means a single
            process on torch's current GPU.

    Raises:
        UserError: There is no such device, or there are fewer GPUs than processes.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise UserError(f"{name!r} is no device: take auto, cpu, cuda or cuda:<index>") from None
    if device.type != "cuda":
        _check_usable(device)
        return device
    if not torch.cuda.is_available():
        raise UserError("no CUDA device is available; rcnn-ext doctor says why")
    gpus = torch.cuda.device_count()
    if device.index is not None:
        if device.index >= gpus:
            raise UserError(f"there is no device {device}: this machine has {gpus} GPUs")
        return device
    if processes is None or processes.count == 1:
        return device
    if processes.local_count > gpus:
        raise UserError(
            f"torchrun started {processes.local_count} processes, but this machine has {gpus} "
            f"GPUs; give it --nproc-per-node {gpus}"
        )
    # srun may show each process one GPU.
    return torch.device("cuda", processes.local_rank % gpus)


def _check_usable(device: torch.device) -> None:
    """Refuse a device that this build of PyTorch cannot use."""
    try:
        torch.empty(0, device=device)
    except (AssertionError, ModuleNotFoundError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"the device {device} cannot be used: {reason}") from error
