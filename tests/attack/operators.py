"""Calls of all operators with arguments that are wrong or extreme, in processes of their own."""

from __future__ import annotations

import contextlib
import os
import pickle
import random
import re
import resource
import select
import signal
import struct
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torchvision

from rcnn_ext.ops import use_backend
from tests.attack.calls import TORCHVISION, Operator, public_operators, raw_operators
from tests.attack.judge import Outcome, call, difference
from tests.attack.mutations import draw, mutations_of

SECONDS = 20
GROWTH = 3 << 30
# Of values that torchvision and this package differ in on purpose, see docs/operators.md.
_COMPARED = (
    *("permuted memory", "strided", "unaligned", "large stride", "requires grad"),
    *("channels last", "subclass", "parameter", "inference"),
)


@dataclass
class Report:
    """Counts of the calls of an attack, and examples of what went wrong.

    Attributes:
        calls: Number of calls, of all implementations.
        faults: What went wrong, by kind (crash, hang, unclear, wrong): one text per case.
    """

    calls: int = 0
    faults: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, text: str) -> None:
        self.faults.setdefault(kind, []).append(text)

    def counts(self) -> dict[str, int]:
        kinds = ("crash", "hang", "unclear", "wrong")
        return {"calls": self.calls} | {kind: len(self.faults.get(kind, ())) for kind in kinds}


# Operator and what to change: by name of the argument, the names of mutations.
Case = tuple[int, tuple[tuple[str, str], ...]]


def single_cases(operators: list[Operator]) -> list[Case]:
    """Return every mutation of every argument of every operator."""
    return [
        (index, ((argument, mutation),))
        for index, operator in enumerate(operators)
        for argument, kind in operator.kinds.items()
        for mutation in mutations_of(kind)
    ]


def random_cases(operators: list[Operator], draws: random.Random) -> Iterator[Case]:
    """Yield mutations of two or three arguments, without an end."""
    while True:
        index = draws.randrange(len(operators))
        kinds = operators[index].kinds
        chosen = draws.sample(sorted(kinds), min(len(kinds), draws.choice((2, 2, 3))))
        yield index, tuple((argument, draw(kinds[argument], draws)[0]) for argument in chosen)


def attack(cases: Iterator[Case], seconds: float) -> Report:
    """Run cases until time is over.

    Args:
        cases: What to call.
        seconds: Time in all.
    """
    operators = [*raw_operators(), *public_operators()]
    report = Report()
    end = time.monotonic() + seconds
    # All that is imported late is imported once, not in each process.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for operator in operators:
            _run_case(operator, ())
    while time.monotonic() < end:
        batch = [case for _, case in zip(range(200), cases, strict=False)]
        if not batch:
            break
        while batch and time.monotonic() < end:
            done = _run_batch(operators, batch, report, end)
            batch = batch[done:]
    return report


def _run_batch(operators: list[Operator], batch: list[Case], report: Report, end: float) -> int:
    """Run cases in a forked process until one ends it; return how many are over."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _be_child(operators, batch, writer)
    os.close(writer)
    done, fault = 0, ""
    with os.fdopen(reader, "rb") as stream:
        while True:
            ready, _, _ = select.select([stream], [], [], SECONDS)
            if not ready:
                os.kill(child, signal.SIGKILL)
                fault = "hang"
                break
            header = stream.read(4)
            if len(header) < 4:
                break
            found = pickle.loads(stream.read(struct.unpack("I", header)[0]))
            done += 1
            report.calls += found["calls"]
            for kind, text in found["faults"]:
                report.add(kind, text)
            if time.monotonic() > end:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return len(batch)
    _, status = os.waitpid(child, 0)
    if done < len(batch):
        code = os.waitstatus_to_exitcode(status)
        index, changes = batch[done]
        kind = fault or "crash"
        report.add(kind, f"{operators[index].name} {_shown(changes)}: exit code {code}")
        report.calls += 1
        done += 1
    return done


def _be_child(operators: list[Operator], batch: list[Case], writer: int) -> None:
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        with open("/proc/self/statm", encoding="ascii") as file:
            pages = int(file.read().split()[0])
        limit = pages * resource.getpagesize() + GROWTH
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        torch.set_num_threads(1)
        warnings.simplefilter("ignore")
        for index, changes in batch:
            packed = pickle.dumps(_run_case(operators[index], changes))
            os.write(writer, struct.pack("I", len(packed)) + packed)
        os._exit(0)
    finally:
        os._exit(1)


def _changed(operator: Operator, changes: tuple[tuple[str, str], ...]) -> dict[str, Any] | None:
    """Return the arguments of a case; None where a mutation does not apply to its argument."""
    arguments = dict(operator.arguments)
    for argument, mutation in changes:
        change = mutations_of(operator.kinds[argument])[mutation]
        try:
            arguments[argument] = change(arguments[argument])
        except Exception:  # noqa: BLE001
            return None
    return arguments


def _run_case(operator: Operator, changes: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    faults: list[tuple[str, str]] = []
    outcomes: dict[str, Outcome] = {}
    for implementation in ("native", "reference", "torchvision"):
        if implementation == "torchvision" and not _comparable(operator, changes):
            continue
        arguments = _changed(operator, changes)
        if arguments is None:
            break
        # Equal values in each call, of which one may write to none of them.
        function = operator.function
        context: Any = contextlib.nullcontext()
        if implementation == "torchvision":
            function = getattr(torchvision.ops, operator.name)
            arguments.pop("fmt", None)
        else:
            context = use_backend(implementation)  # type: ignore[arg-type]
        with context:
            outcomes[implementation] = call(function, arguments, operator.plain_name)
    where = f"{operator.name} {_shown(changes)}"
    native = outcomes.get("native")
    for name, outcome in outcomes.items():
        if name != "torchvision" and not outcome.clear:
            faults.append(("unclear", f"{where} ({name}): {outcome.error[:300]}"))
        if name != "native" and native is not None:
            if name == "torchvision" and (native.results is None or outcome.results is None):
                continue
            if _may_differ(operator, changes):
                continue
            text = difference(native, outcome)
            if text:
                faults.append(("wrong", f"{where}, native and {name}: {text[:300]}"))
    return {"calls": len(outcomes), "faults": faults}


def _may_differ(operator: Operator, changes: tuple[tuple[str, str], ...]) -> bool:
    """Return whether implementations may differ, as where they overflow in different places.

    The derivative of an IoU divides by squared areas, so by fourth powers of coordinates: from
    4e9 on they exceed float32, and the order of operations decides what is left.
    """
    if operator.plain_name.startswith("conv3x3_winograd"):
        # One number that is large or not finite reaches all outputs of its tile, and numbers that
        # are no packed filters have no filters that the reference could find.
        return any(
            argument == "packed" or re.search(r"value|all", mutation)
            for argument, mutation in changes
        )
    return operator.plain_name == "box_iou_backward" and any(
        re.search(r"e\+(20|38)$", mutation) for _, mutation in changes
    )


def _comparable(operator: Operator, changes: tuple[tuple[str, str], ...]) -> bool:
    return operator.name in TORCHVISION and all(name in _COMPARED for _, name in changes)


def _shown(changes: tuple[tuple[str, str], ...]) -> str:
    return ", ".join(f"{argument}={mutation}" for argument, mutation in changes) or "as it is"


def kinds_of(texts: list[str]) -> Counter[str]:
    """Count faults by operator and message, without numbers and values."""
    return Counter(re.sub(r"\d+|'[^']*'", "#", text)[:110] for text in texts)
