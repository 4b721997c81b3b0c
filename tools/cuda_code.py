"""Facts about the machine code of CUDA kernels: read from modules, recorded, and compared.

The record, ``tools/cuda_kernels.json``, holds registers, spilled registers and inner loops of all
kernels for sm_90 and one version of nvcc, and of torchvision's kernels that the model looks at.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
import subprocess
from collections.abc import Iterable, Sequence
from typing import Any

import sass
from gate_reports import parse_resources
from gate_toolkit import find_tool

ARCHITECTURE = "sm_90"
RECORD = pathlib.Path(__file__).with_name("cuda_kernels.json")
# How much longer an inner loop may become.
MAX_GROWTH = 0.10
# What the model looks at of torchvision.
TORCHVISION_KERNELS = re.compile(
    r"^(nms_kernel_impl|gather_keep_from_mask|roi_align_\w+)(<float>)?$"
)


class ToolError(RuntimeError):
    """A program of the CUDA toolkit is missing or failed; the message says what to do."""


@dataclasses.dataclass(frozen=True)
class KernelFacts:
    """What the compiler made of a kernel.

    Attributes:
        registers: Per thread.
        stack: Bytes of local memory per thread.
        spills: Instructions that read or write local memory.
        loops: The inner loops in order of their addresses.
    """

    registers: int
    stack: int
    spills: int
    loops: tuple[sass.Loop, ...]

    def as_json(self) -> dict[str, Any]:
        """Return them for JSON, without addresses, which change with every build."""
        loops = [
            [loop.instructions, loop.screened, loop.shortest, loop.kinds] for loop in self.loops
        ]
        return {
            "registers": self.registers,
            "stack": self.stack,
            "spills": self.spills,
            "loops": loops,
        }

    @classmethod
    def from_json(cls, entry: dict[str, Any]) -> KernelFacts:
        """Read what ``as_json`` returns."""
        loops = tuple(sass.Loop(0, 0, *loop) for loop in entry["loops"])
        return cls(entry["registers"], entry["stack"], entry["spills"], loops)


@dataclasses.dataclass(frozen=True)
class Code:
    """A record.

    Attributes:
        compiler: Version of nvcc, major and minor, such as ``13.0``.
        kernels: Ours by name.
        torchvision_version: The version whose kernels were read.
        torchvision: Theirs by name.
        torchvision_calls: By the name of a case, how many operators torchvision's Python code calls
            and how often it waits.
    """

    compiler: str
    kernels: dict[str, KernelFacts]
    torchvision_version: str
    torchvision: dict[str, KernelFacts]
    torchvision_calls: dict[str, tuple[int, int]]

    def loops(self, kernel: str, *kinds: str) -> list[sass.Loop]:
        """Return the inner loops of a kernel of ours that have instructions of all kinds."""
        return _select(self.kernels, kernel, kinds)

    def loop(self, kernel: str, *kinds: str) -> sass.Loop:
        """Return the longest of those loops."""
        return max(self.loops(kernel, *kinds), key=lambda loop: loop.instructions)

    def torchvision_loop(self, kernel: str, *kinds: str) -> sass.Loop:
        """Return the longest such loop of a kernel of torchvision's."""
        return max(_select(self.torchvision, kernel, kinds), key=lambda loop: loop.instructions)


def _select(kernels: dict[str, KernelFacts], kernel: str, kinds: Sequence[str]) -> list[sass.Loop]:
    if kernel not in kernels:
        raise KeyError(f"no kernel {kernel!r} was recorded: run tools/cuda_model.py --record")
    found = [loop for loop in kernels[kernel].loops if all(k in loop.kinds for k in kinds)]
    if not found:
        raise KeyError(f"{kernel} has no inner loop with {', '.join(kinds)}")
    return found


def load(path: pathlib.Path = RECORD) -> Code:
    """Read a record."""
    data = json.loads(path.read_text())
    ours, theirs = (
        {name: KernelFacts.from_json(entry) for name, entry in data[key].items()}
        for key in ("kernels", "torchvision_kernels")
    )
    calls = {name: tuple(counts) for name, counts in data["torchvision_calls"].items()}
    return Code(data["compiler"], ours, data["torchvision"], theirs, calls)


def dump(code: Code) -> str:
    """Return a record as JSON with a line per kernel, so that a change shows as a short diff."""
    lines = [
        f'"architecture": "{ARCHITECTURE}"',
        f'"compiler": "{code.compiler}"',
        f'"torchvision": "{code.torchvision_version}"',
        f'"torchvision_calls": {json.dumps(code.torchvision_calls, sort_keys=True)}',
    ]
    for key, kernels in (("kernels", code.kernels), ("torchvision_kernels", code.torchvision)):
        entries = ",\n".join(
            f"  {json.dumps(name)}: {json.dumps(kernels[name].as_json())}"
            for name in sorted(kernels)
        )
        lines.append(f'"{key}": {{\n{entries}\n }}')
    return "{\n " + ",\n ".join(lines) + "\n}\n"


def read_modules(paths: Iterable[pathlib.Path]) -> dict[str, KernelFacts]:
    """Read the kernels for sm_90 in shared libraries, cubins or fat binaries.

    Raises:
        ToolError: ``cuobjdump`` or ``c++filt`` is missing, a file can't be read, or there is no
            kernel for sm_90 in it.
    """
    kernels: dict[str, KernelFacts] = {}
    for path in paths:
        code = _cuobjdump("-arch", ARCHITECTURE, "-sass", str(path))
        usage = _cuobjdump("-arch", ARCHITECTURE, "-res-usage", str(path))
        resources = {entry["kernel"].rstrip(":"): entry for entry in parse_resources(usage)}
        functions = [f for f in sass.parse_sass(code) if f.name in resources]
        if not functions:
            raise ToolError(
                f"{path}: expected kernels for {ARCHITECTURE}, found none:"
                " build with TORCH_CUDA_ARCH_LIST=9.0"
            )
        try:
            names = sass.demangle(function.name for function in functions)
        except FileNotFoundError as error:
            raise ToolError(str(error)) from None
        for function in functions:
            entry = resources[function.name]
            kernels[names[function.name]] = KernelFacts(
                entry["registers"],
                entry["stack"],
                function.spills,
                tuple(sass.inner_loops(function)),
            )
    return kernels


def _cuobjdump(*arguments: str) -> str:
    program = find_tool("cuobjdump")
    if program is None:
        raise ToolError("cuobjdump is not installed: install triton or a CUDA toolkit")
    done = subprocess.run([program, *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        message = (done.stderr or done.stdout).strip().splitlines()
        raise ToolError(f"cuobjdump cannot read {arguments[-1]}: {message[-1] if message else ''}")
    return done.stdout


def compiler_version() -> str | None:
    """Return major and minor version of nvcc, or None where there is none."""
    program = find_tool("nvcc")
    if program is None:
        return None
    text = subprocess.run([program, "--version"], capture_output=True, text=True).stdout
    found = re.search(r"release (\d+\.\d+)", text)
    return found[1] if found else None


def compare(recorded: dict[str, KernelFacts], found: dict[str, KernelFacts]) -> list[str]:
    """Return what became worse or needs another record, a line each."""
    problems = [f"{name}: is not recorded" for name in sorted(found.keys() - recorded.keys())]
    problems += [
        f"{name}: is recorded, and is not in the module"
        for name in sorted(recorded.keys() - found.keys())
    ]
    for name in sorted(found.keys() & recorded.keys()):
        problems += [f"{name}: {what}" for what in _compare_kernel(recorded[name], found[name])]
    return problems


def _compare_kernel(before: KernelFacts, after: KernelFacts) -> list[str]:
    problems = []
    if after.spills > before.spills:
        problems.append(f"{after.spills} instructions spill registers, {before.spills} recorded")
    if after.stack > before.stack:
        problems.append(f"{after.stack} bytes of stack, {before.stack} recorded")
    if len(after.loops) != len(before.loops):
        problems.append(f"{len(after.loops)} inner loops, {len(before.loops)} recorded")
        return problems
    for number, (old, new) in enumerate(zip(before.loops, after.loops, strict=True), start=1):
        if new.instructions > old.instructions * (1 + MAX_GROWTH):
            problems.append(
                f"inner loop {number} has {new.instructions} instructions, "
                f"{old.instructions} recorded (+{new.instructions / old.instructions - 1:.0%})"
            )
    return problems
