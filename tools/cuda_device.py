"""A model of a GPU of the H200's class: what kernels and calls cost there.

A kernel takes the longest of what it needs of memory, of the second-level cache, of the
schedulers that issue instructions, of atomic units, and of its longest chain of steps that wait for
each other. A call takes the longer of the host's work and the device's. Nothing here was measured
on a device unless a constant says so: take times as +-40% and ratios as +-35%.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence

MULTIPROCESSORS = 132
CLOCK = 1.9e9  # cycles per second
# Bytes per second. Copies were measured at 4.3e12 bytes read and written on an H200; the cache is
# the middle of 5.5e12 to 7e12 that are reported for it.
HBM = 4.3e12
L2 = 6.2e12
# Instructions per cycle and multiprocessor that a loop reaches, of the 4 that its schedulers can
# issue: where the numbers are in registers and shared memory, and where it waits for loads.
IPC_COMPUTE = 3.0
IPC_LOADS = 2.2
# A warp alone issues an instruction every three to four cycles.
IPC_PER_WARP = 0.3
# Cycles until the result is there.
L2_LATENCY = 270
BARRIER = 40
SHARED_LATENCY = 30
# Atomic additions to global memory per second, each sector of 32 bytes counted once per warp: the
# middle of one per cycle and one per two cycles and slice of the cache.
ATOMIC_SECTORS = 110e9

# Seconds. From the end of a kernel to the first instruction of the next in a stream.
KERNEL_START = 2.0e-6
# What a small kernel of PyTorch takes besides, such as a pass of a sort.
SMALL_KERNEL = 1.5e-6
# On the host: a call of an operator of this package from Python, a call of one of PyTorch's from
# C++ through the dispatcher, the same from Python, a launch, and the wait for a number.
OPERATOR_CALL = 8e-6
BOXED_CALL = 2.0e-6
EAGER_CALL = 5e-6
LAUNCH = 2.5e-6
READ_BACK = 10e-6

# What PyTorch launches for a call, by its source: a sort of rows up to 4,096 in one block, or of a
# longer row by radix passes; masked_select is a scan, a reduction and a copy.
SMALL_SORT_ROW = 4096
LAUNCHES_OF_CALL = {
    "aten::sort": 3,
    "aten::sort (radix)": 9,
    "aten::masked_select": 5,
    "aten::empty": 0,
    "aten::empty_strided": 0,
    "aten::narrow": 0,
    "aten::item": 0,
}


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One launch, or several of the same work.

    Attributes:
        name: The kernel.
        blocks: Blocks of each launch.
        instructions: Instructions of all warps of a launch.
        warps: Warps per block.
        waits: Whether the inner loop waits for loads from global memory.
        hbm: Bytes that each launch moves from and to memory.
        l2: Bytes that the multiprocessors of each launch get from the second-level cache.
        chain: Cycles of the longest chain of dependent steps.
        atomics: Sectors that atomic additions reach.
        launches: How many launches.
        inner: Instructions of the inner loop per iteration; None where there is none.
    """

    name: str
    blocks: float
    instructions: float = 0
    warps: int = 8
    waits: bool = False
    hbm: float = 0
    l2: float = 0
    chain: float = 0
    atomics: float = 0
    launches: int = 1
    inner: int | None = None

    @property
    def limits(self) -> dict[str, float]:
        """Seconds that each resource needs, per launch."""
        busy = max(1.0, min(self.blocks, MULTIPROCESSORS))
        # How many of its warps a multiprocessor has to choose from: no more than 64 fit.
        warps = min(64.0, self.warps * max(1.0, self.blocks / MULTIPROCESSORS))
        ipc = min(IPC_LOADS if self.waits else IPC_COMPUTE, IPC_PER_WARP * warps)
        return {
            "memory": self.hbm / HBM,
            "L2": self.l2 / L2,
            "issue": self.instructions / (busy * ipc * CLOCK),
            "latency": self.chain / CLOCK,
            "atomics": self.atomics / ATOMIC_SECTORS,
        }

    @property
    def seconds(self) -> float:
        """All launches, one after another."""
        return self.launches * (KERNEL_START + max(self.limits.values()))

    @property
    def bound(self) -> str:
        """The resource that decides; ``launch`` where all need less than the start."""
        name, longest = max(self.limits.items(), key=lambda item: item[1])
        return name if longest > KERNEL_START else "launch"


@dataclasses.dataclass(frozen=True)
class Work:
    """A call of an operator.

    Attributes:
        kernels: Its own launches.
        calls: Calls of PyTorch's operators from C++, by name.
        eager: Calls of PyTorch's operators from Python.
        syncs: How often the host waits for the device.
        torch_bytes: Bytes that PyTorch's operators move.
        serial: Whether the host waits in the middle, so that its time and the device's add up.
    """

    kernels: Sequence[Kernel]
    calls: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    eager: int = 0
    syncs: int = 0
    torch_bytes: float = 0
    serial: bool = False

    @property
    def launches(self) -> int:
        """Launches of its own kernels."""
        return sum(kernel.launches for kernel in self.kernels)

    @property
    def torch_launches(self) -> int:
        """Launches that PyTorch makes for it."""
        return self.eager + sum(
            count * LAUNCHES_OF_CALL.get(name, 1) for name, count in self.calls.items()
        )

    @property
    def bytes(self) -> float:
        """Bytes moved from and to memory."""
        return self.torch_bytes + sum(k.hbm * k.launches for k in self.kernels)

    @property
    def device_seconds(self) -> float:
        """Time of all kernels, one after another."""
        return (
            sum(kernel.seconds for kernel in self.kernels)
            + self.torch_launches * (KERNEL_START + SMALL_KERNEL)
            + self.torch_bytes / HBM
        )

    @property
    def host_seconds(self) -> float:
        """Time until everything is launched."""
        boxed_launches = self.torch_launches - self.eager
        return (
            OPERATOR_CALL
            + BOXED_CALL * self.calls.total()
            + EAGER_CALL * self.eager  # its launch included
            + LAUNCH * (self.launches + boxed_launches)
        )

    @property
    def seconds(self) -> float:
        """Time of the call until its result is there."""
        both = (self.host_seconds, self.device_seconds)
        return (sum(both) if self.serial else max(both)) + self.syncs * READ_BACK

    @property
    def longest(self) -> Kernel | None:
        """The kernel that takes most of the time."""
        return max(self.kernels, key=lambda kernel: kernel.seconds, default=None)

    @property
    def inner(self) -> Kernel | None:
        """The kernel with an inner loop that takes most of the time."""
        looping = [kernel for kernel in self.kernels if kernel.inner is not None]
        return max(looping, key=lambda kernel: kernel.seconds, default=None)

    @property
    def bound(self) -> str:
        """What decides about the time of the call."""
        if self.host_seconds > self.device_seconds:
            return "host"
        longest = self.longest
        own = sum(kernel.seconds for kernel in self.kernels)
        if longest is None or own < self.device_seconds / 2:
            return "PyTorch's kernels"
        return longest.bound
