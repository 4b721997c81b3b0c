"""What the stages of the GPU gate are made of."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]

PASSED = "passed"
FAILED = "failed"
# A tool that this machine lacks, or no time: no fault of the code, but said, and not counted as
# passed.
MISSING = "missing"


@dataclasses.dataclass(frozen=True)
class Gpu:
    """The device that the gate runs on."""

    name: str
    capability: str


@dataclasses.dataclass(frozen=True)
class Context:
    """Shared input of the stages.

    Attributes:
        out: folder for the result.
        scratch: folder for what stages read back; the logs are archived from it.
        gpu: the device.
        notes: what an earlier stage leaves for a later one, by name.
    """

    out: pathlib.Path
    scratch: pathlib.Path
    gpu: Gpu
    notes: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Command:
    """A process to run.

    Attributes:
        arguments: program and arguments.
        environment: variables beside the present ones.
    """

    arguments: list[str]
    environment: dict[str, str] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        variables = [f"{name}={value}" for name, value in self.environment.items()]
        return " ".join([*variables, *self.arguments])


@dataclasses.dataclass(frozen=True)
class Finished:
    """A process that ended.

    Attributes:
        code: its exit status.
        timed_out: whether it was stopped at its time limit.
        output: stdout and stderr, as far as kept.
        flooded: whether it was stopped since it wrote too much.
    """

    code: int
    timed_out: bool
    output: str
    flooded: bool = False


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Result of a stage.

    Attributes:
        status: ``passed``, ``failed`` or ``missing``.
        summary: one line for the table.
        details: more, for the JSON.
    """

    status: str
    summary: str
    details: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of the gate.

    Attributes:
        name: for the table, the log and ``--only``.
        least: seconds kept free for it while earlier stages run.
        prepare: gives the command for a time limit in seconds, or an outcome where there is nothing
            to run.
        judge: reads the outcome off the finished process.
        may_be_stopped: whether it does as much as its time allows, so that being stopped at the
            limit is no fault.
        takes: seconds that it may take although the least times of later stages do not leave them:
            what all others need.
    """

    name: str
    least: float
    prepare: Callable[[Context, float], Command | Outcome]
    judge: Callable[[Context, Finished], Outcome]
    may_be_stopped: bool = False
    takes: float = 0.0
