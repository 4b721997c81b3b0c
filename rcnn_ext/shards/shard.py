"""The part of some work that one of several processes does."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from rcnn_ext.distributed import Processes
from rcnn_ext.errors import UserError

_ARRAY = "SLURM_ARRAY_TASK_ID"


@dataclass(frozen=True)
class Shard:
    """One of several equal parts of a list.

    Attributes:
        index: Its number, from 0.
        count: Number of parts.
        origin: The option or the variables that say so; empty for the whole.
        local_rank: Number of this process among those of the same machine that share its GPUs.
        local_count: Number of these processes.
    """

    index: int = 0
    count: int = 1
    origin: str = ""
    local_rank: int = 0
    local_count: int = 1

    @classmethod
    def of(cls, text: str | None, environment: Mapping[str, str] | None = None) -> Shard:
        """Return the shard that an option names, else that of the environment.

        Args:
            text: ``I/N``, I from 1 to N, or None.
            environment: Variables; None means those of this process.

        Raises:
            UserError: The text or a variable is wrong.
        """
        if text is None:
            return cls.from_environment(os.environ if environment is None else environment)
        match = re.fullmatch(r"\s*([0-9]+)\s*/\s*([0-9]+)\s*", text)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise UserError(f"--shard must be I/N with I from 1 to N, such as 2/4, not {text!r}")
        return cls(int(match[1]) - 1, int(match[2]), "--shard")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Shard:
        """Return the shard of a process of torchrun, of Slurm, or of who else sets its rank.

        ``RANK`` and ``WORLD_SIZE`` count processes, else those of ``srun``. Each task of a Slurm
        array has as many of them.

        Raises:
            UserError: A variable is no number, or out of range.
        """
        index, count, origin = 0, 1, []
        if _ARRAY in environment:
            index, count = _array_task(environment)
            origin = [_ARRAY] if count > 1 else []
        rank, size = "RANK", "WORLD_SIZE"
        if not (rank in environment and size in environment):
            # SLURM_NTASKS is there in a batch script too, which runs once.
            rank, size = "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"
        local_rank, local_count = 0, 1
        if rank in environment and size in environment:
            own, others = _number(environment, rank), _number(environment, size)
            if not 0 <= own < others:
                raise UserError(f"{rank}={own} and {size}={others}: expected 0 <= {rank} < {size}")
            index, count = index * others + own, count * others
            origin += [rank] if others > 1 else []
            local = "LOCAL_RANK" if "LOCAL_RANK" in environment else "SLURM_LOCALID"
            local_rank = _number(environment, local) if local in environment else 0
            if "LOCAL_WORLD_SIZE" in environment:
                local_count = _number(environment, "LOCAL_WORLD_SIZE")
        return cls(index, count, " and ".join(origin), local_rank, local_count)

    @property
    def processes(self) -> Processes:
        """The same as :class:`Processes`, by which each takes a GPU of its own."""
        return Processes(self.index, self.count, self.local_rank, self.local_count)

    @property
    def name(self) -> str:
        """Name for messages, such as ``shard 2 of 4``."""
        return f"shard {self.index + 1} of {self.count}"

    @property
    def option(self) -> str:
        """The option that names it."""
        return f"--shard {self.index + 1}/{self.count}"

    @property
    def file_name(self) -> str:
        """Name of the file of its results."""
        return f"{self.index + 1:05d}-of-{self.count:05d}.jsonl"

    def sibling(self, index: int) -> Shard:
        """Return another shard of the same work."""
        return Shard(index, self.count)

    def batches(self, total: int, batch_size: int) -> list[range]:
        """Return the batches of this shard, as ranges of positions.

        Whole batches are divided, so that each is as in one process, and with it its results.

        Args:
            total: Length of the list.
            batch_size: Number of its entries per batch.
        """
        starts = range(self.index * batch_size, total, self.count * batch_size)
        return [range(start, min(start + batch_size, total)) for start in starts]


def _array_task(environment: Mapping[str, str]) -> tuple[int, int]:
    own = _number(environment, _ARRAY)
    values = [_number(environment, f"SLURM_ARRAY_TASK_{name}") for name in ("COUNT", "MIN", "MAX")]
    count, low, high = values
    if count == 1:
        return 0, 1
    if (high - low) % (count - 1) or (own - low) % ((high - low) // (count - 1) or 1):
        raise UserError(
            f"the {count} tasks of this Slurm array, from {low} to {high}, are not evenly spaced: "
            "say which part each does with --shard I/N"
        )
    return (own - low) // ((high - low) // (count - 1)), count


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name, "")
    if not re.fullmatch(r"[0-9]+", text):
        raise UserError(f"the variable {name} must be a whole number, not {text!r}")
    return int(text)
