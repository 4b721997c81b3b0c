"""Run cases: make inputs, compute the truth, compare, and only then time."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from rcnn_ext import _extension, ops
from rcnn_ext.bench import atomic, memory
from rcnn_ext.bench.cases import Case
from rcnn_ext.bench.contenders import ATOMIC, AVX2, BASELINE, OURS, REFERENCE, TORCHVISION
from rcnn_ext.bench.timing import Contender, Timing, TimingConfig, clock_for, time_interleaved

_FORCED = {AVX2: "avx2", BASELINE: "baseline"}


def default_contenders(device_type: str) -> tuple[str, ...]:
    """Return the contenders that run unless the user names others.

    Args:
        device_type: ``cpu`` or ``cuda``.
    """
    if device_type == "cuda":
        with_atomic = atomic.library() is not None
        return (OURS, *([ATOMIC] if with_atomic else []), TORCHVISION, REFERENCE)
    with_avx2 = _extension.instruction_set() == "avx512"
    return (OURS, *([AVX2] if with_avx2 else []), TORCHVISION, REFERENCE)


SEED = 20
# Inputs rotate over this many times the L2 cache, within limits that keep set-up short.
_L2_MULTIPLE = 3
_MAX_INPUT_SETS = 64
_DEFAULT_L2 = 64 << 20


@dataclasses.dataclass(frozen=True)
class Settings:
    """Device, dtypes, threads and timing of a run.

    Attributes:
        device: The device.
        dtypes: Dtypes for every case; empty for each case's own.
        threads: Numbers of threads, with one row for each; on CUDA only the first counts.
        timing: How long to measure.
        contenders: Names of the contenders to run.
        time_limit: Seconds after which no further case is started; None for no limit.
    """

    device: torch.device
    dtypes: tuple[torch.dtype, ...] = ()
    threads: tuple[int, ...] = (1,)
    timing: TimingConfig = TimingConfig()
    contenders: tuple[str, ...] = (OURS, TORCHVISION, REFERENCE)
    time_limit: float | None = None


@dataclasses.dataclass
class Row:
    """One case in one dtype with one number of threads.

    Attributes:
        case: The case.
        dtype: The dtype of the inputs.
        threads: Number of CPU threads.
        timings: The contenders that were timed.
        errors: Error of each contender, in the measure ``case.measure``.
        problems: Reason why a contender is missing or wrong, by contender.
        failures: Problems of this package itself, or of the float64 truth.
        kernels: Names, counts and times of the kernels a call launches on CUDA, by contender.
        extra_bytes: Peak of memory beyond the result, by contender.
        moved_bytes: Minimum memory traffic of the work: every input and result once.
    """

    case: Case
    dtype: torch.dtype
    threads: int
    timings: dict[str, Timing] = dataclasses.field(default_factory=dict)
    errors: dict[str, float] = dataclasses.field(default_factory=dict)
    problems: dict[str, str] = dataclasses.field(default_factory=dict)
    failures: list[str] = dataclasses.field(default_factory=list)
    kernels: dict[str, memory.KernelTimes] = dataclasses.field(default_factory=dict)
    extra_bytes: dict[str, int] = dataclasses.field(default_factory=dict)
    moved_bytes: int | None = None

    def ratio(self, contender: str, ours: str = OURS) -> float | None:
        """Return how many times faster ours is than a contender; None where one was not timed."""
        if ours not in self.timings or contender not in self.timings:
            return None
        return self.timings[contender].median / self.timings[ours].median

    def kernel_count(self, contender: str) -> int | None:
        """Return how many kernels a call of a contender launches; None where that is unknown."""
        found = self.kernels.get(contender)
        return None if found is None else sum(count for count, _ in found.values())

    def time_ratio_to_atomic(self) -> float | None:
        """Return our time relative to the atomic variant's; None where one was not timed."""
        faster = self.ratio(ATOMIC)
        return None if faster is None else 1 / faster

    def copy_bandwidth_fraction(self, copy_bandwidth: float | None) -> float | None:
        """Return the fraction of the copy bandwidth (bytes per second) that ours reaches.

        None where it is unknown or ours was not timed.
        """
        if copy_bandwidth is None or self.moved_bytes is None or OURS not in self.timings:
            return None
        return self.moved_bytes / self.timings[OURS].median / copy_bandwidth

    def target(self, device: str, ours: str = OURS) -> float | None:
        """Return the target speed-up over torchvision in this row, if any."""
        if self.dtype not in self.case.dtypes:
            return None
        targets = self.case.targets
        if device == "cuda":
            return targets.cuda
        if self.threads != 1:
            return None
        if _FORCED.get(ours, _extension.instruction_set()) == "avx512":
            return targets.cpu
        return targets.cpu_avx2 or targets.cpu


def contender_ops(name: str) -> Any:
    """Return the module whose operators a contender uses."""
    if name == TORCHVISION:
        import torchvision.ops

        return torchvision.ops
    return atomic.load() if name == ATOMIC else ops


@contextlib.contextmanager
def active(name: str, case: Case) -> Iterator[None]:
    """Activate the backend and gradient mode that a contender needs for a case."""
    # Ours is what a user gets without asking: the dispatcher's choice.
    backend: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if name == REFERENCE:
        backend = ops.use_backend("reference")
    elif name in _FORCED:
        backend = _extension.use_instruction_set(_FORCED[name])
    gradients = torch.enable_grad() if case.differentiates else torch.no_grad()
    with backend, gradients:
        yield


@contextlib.contextmanager
def _on_device(name: str, case: Case, device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """As ``active``, and where torchvision lacks a dtype, with its users' way to do without."""
    casts: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    if name == TORCHVISION and device.type == "cuda" and dtype == torch.bfloat16:
        # It has no kernels for this type; autocast converts to float32 and back.
        casts = torch.autocast("cuda", torch.bfloat16)
    with active(name, case), casts:
        yield


class DeviceFaultError(RuntimeError):
    """A kernel made the CUDA context unusable: nothing of this process can be believed any more."""

    def __init__(self, case: str) -> None:
        super().__init__(f"the device cannot be used any more after {case}")
        self.case = case


def device_works(device: torch.device) -> bool:
    """Return whether a device can still be used by this process."""
    if device.type != "cuda":
        return True
    try:
        torch.cuda.synchronize(device)
    except RuntimeError:
        return False
    return True


def run_cases(
    cases: Sequence[Case],
    settings: Settings,
    report: Callable[[Row], None],
    begin: Callable[[Case], None] | None = None,
) -> tuple[list[Row], list[str]]:
    """Run cases in turn.

    Args:
        cases: The cases to run.
        settings: Device, dtypes, threads and timing.
        report: Called with each finished row, for progress.
        begin: Called with each case before anything of it runs.

    Returns:
        The rows, and the names of the cases that ``settings.time_limit`` left no time for.

    Raises:
        DeviceFaultError: A kernel faulted; its row was reported.
    """
    start = time.monotonic()
    threads_before = torch.get_num_threads()
    rows: list[Row] = []
    skipped: list[str] = []
    try:
        for case in cases:
            if settings.time_limit is not None and time.monotonic() - start > settings.time_limit:
                skipped.append(case.name)
                continue
            if begin is not None:
                begin(case)
            for dtype in settings.dtypes or case.dtypes:
                for row in run_case(case, dtype, settings):
                    rows.append(row)
                    report(row)
                    if not device_works(settings.device):
                        raise DeviceFaultError(case.name)
    finally:
        torch.set_num_threads(threads_before)
    return rows, skipped


def run_case(case: Case, dtype: torch.dtype, settings: Settings) -> Iterator[Row]:
    """Run one case in one dtype, with one row per number of threads."""
    device = settings.device
    threads = settings.threads[:1] if device.type == "cuda" else settings.threads
    inputs = case.make(SEED, device, dtype)
    try:
        with active(REFERENCE, case):
            check = case.check(inputs)
    except Exception as error:  # whatever it is, it is reported and the suite goes on
        row = Row(case, dtype, threads[0])
        row.failures.append(f"no float64 truth to compare with: {_first_line(error)}")
        yield row
        return
    sets = [inputs, *_more_inputs(case, dtype, device, inputs)]
    for count in threads:
        torch.set_num_threads(count)
        row = Row(case, dtype, count)
        contenders = [
            contender
            for name in _contenders_of(case, settings.contenders)
            if (contender := _verified(name, row, sets, check, device)) is not None
        ]
        if contenders:
            row.timings = time_interleaved(contenders, clock_for(device), settings.timing)
        yield row
        del contenders  # they hold recorded graphs
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


def _contenders_of(case: Case, names: Sequence[str]) -> tuple[str, ...]:
    """Return the contenders that can run a case."""
    if not case.has_atomic_variant:
        names = [name for name in names if name != ATOMIC]
    if case.only_ours:
        return tuple(name for name in names if name not in (TORCHVISION, REFERENCE))
    if not case.has_counterpart:
        # The reference takes torchvision's place, once.
        return tuple(dict.fromkeys(REFERENCE if name == TORCHVISION else name for name in names))
    return tuple(names)


def _verified(
    name: str, row: Row, sets: Sequence[Any], check: Callable[[Any], float], device: torch.device
) -> Contender | None:
    """Compare one contender with the truth; return it for timing, or None if it fails."""
    case = row.case
    try:
        with _on_device(name, case, device, row.dtype):
            calls = [case.bind(contender_ops(name), inputs) for inputs in sets]
            result = calls[0]()
            error = check(result)
            if name == OURS:
                row.moved_bytes = _input_bytes(sets[0]) + memory.bytes_of(result)
            del result
            extra = kernels = None
            # Memory of the reference is not reported, and calling it once more may take seconds.
            if name != REFERENCE:
                extra = memory.extra_bytes(calls[0], device)
                kernels = memory.kernel_times(calls[0], device)
    except Exception as failure:  # whatever it is, it is reported and the suite goes on
        # Another library that lacks a dtype, or runs out of memory, is no failure of ours.
        row.problems[name] = f"{type(failure).__name__}: {_first_line(failure)}"
        if name not in (TORCHVISION, REFERENCE):
            row.failures.append(f"{name} raised {row.problems[name]}")
        return None
    row.errors[name] = error
    if extra is not None:
        row.extra_bytes[name] = extra
    if kernels is not None:
        row.kernels[name] = kernels
    tolerance = case.tolerance(row.dtype, other_library=name == TORCHVISION)
    if not error <= tolerance:  # NaN is wrong too
        row.problems[name] = f"{case.measure} {error:.3g}, at most {tolerance:.3g} is right"
        row.failures.append(f"{name}: {row.problems[name]}")
        return None
    return Contender(
        name,
        calls,
        lambda: _on_device(name, case, device, row.dtype),
        may_be_slow=name == REFERENCE,
    )


def _more_inputs(
    case: Case, dtype: torch.dtype, device: torch.device, inputs: Any
) -> Iterator[Any]:
    """Draw further inputs for a GPU, until a round of them does not fit in its L2 cache."""
    if device.type != "cuda":
        return
    properties = torch.cuda.get_device_properties(device)
    cache = getattr(properties, "L2_cache_size", 0) or _DEFAULT_L2
    size = max(1, _input_bytes(inputs))
    sets = min(_MAX_INPUT_SETS, -(-_L2_MULTIPLE * cache // size))
    for seed in range(SEED + 1, SEED + sets):
        yield case.make(seed, device, dtype)


def _input_bytes(inputs: Any) -> int:
    if isinstance(inputs, torch.Tensor):
        return inputs.numel() * inputs.element_size()
    if isinstance(inputs, dict):
        return sum(_input_bytes(value) for value in inputs.values())
    if dataclasses.is_dataclass(inputs):
        values = (getattr(inputs, field.name) for field in dataclasses.fields(inputs))
        return sum(_input_bytes(value) for value in values)
    return 0


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
