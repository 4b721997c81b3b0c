"""Reads the machine code (SASS) of CUDA kernels: instructions, loops and spilled registers.

The text is what ``cuobjdump -sass`` prints of a module. Loops are natural loops: a branch back to
an instruction that every path to the branch passes through. An out-of-line slow path that returns
into a loop is thus no loop of its own.
"""

from __future__ import annotations

import collections
import dataclasses
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator

_FUNCTION = re.compile(r"^\s*Function : (\S+)")
# "/*0a30*/  @!P0 BRA 0x4f0 ;", with the encoding behind it
_INSTRUCTION = re.compile(
    r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:\{\s*)?(@\S+\s+)?([A-Z][\w.]*)\s*([^;]*);"
)
_ADDRESS = re.compile(r"0x([0-9a-f]+)\s*$")

# What the model and the check look at, by the beginning of the opcode.
KINDS = {
    "global_loads": ("LDG", "LD."),
    "global_stores": ("STG", "ST."),
    "shared": ("LDS", "STS"),
    "atomics": ("ATOM", "RED.", "REDG."),
    "spills": ("LDL", "STL"),
    "multiply_adds": ("FFMA", "HFMA2", "DFMA"),
    "reciprocals": ("MUFU.RCP",),
    "barriers": ("BAR.SYNC", "BAR.RED"),
    "votes": ("VOTE", "MATCH", "REDUX", "SHFL"),
}


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        address: In bytes from the function's first.
        opcode: With its modifiers, such as ``LDG.E.128``.
        conditional: Whether a predicate decides about it.
        target: Where a branch goes; None for all else.
    """

    address: int
    opcode: str
    conditional: bool
    target: int | None


@dataclasses.dataclass(frozen=True)
class Loop:
    """An innermost loop.

    Attributes:
        first: Address of its first instruction.
        last: Address of the branch back.
        instructions: How many an iteration issues on the main path: those between the two but for
            blocks that call a subroutine, which are slow paths.
        screened: How many of them lie outside of blocks that divide: where a cheap test comes
            first, most iterations issue no more.
        shortest: How many the shortest way through an iteration issues.
        kinds: How many of them are of each of ``KINDS``; kinds without any are left out.
    """

    first: int
    last: int
    instructions: int
    screened: int
    shortest: int
    kinds: dict[str, int]


@dataclasses.dataclass(frozen=True)
class Function:
    """The machine code of a kernel.

    Attributes:
        name: As the compiler mangled it.
        code: Instructions in order of their addresses.
    """

    name: str
    code: tuple[Instruction, ...]

    @property
    def spills(self) -> int:
        """How many instructions read or write local memory."""
        return sum(kind_of(i.opcode) == "spills" for i in self.code)


def kind_of(opcode: str) -> str | None:
    """Return the kind of ``KINDS`` that an opcode belongs to, or None."""
    for kind, beginnings in KINDS.items():
        if opcode.startswith(beginnings):
            return kind
    return None


def parse_sass(text: str) -> Iterator[Function]:
    """Read all functions of the output of ``cuobjdump -sass``."""
    name: str | None = None
    code: list[Instruction] = []
    for line in text.splitlines():
        found = _FUNCTION.match(line)
        if found:
            if name is not None:
                yield Function(name, tuple(code))
            name, code = found[1], []
            continue
        found = _INSTRUCTION.match(line)
        if found and name is not None:
            code.append(_parse_instruction(found))
    if name is not None:
        yield Function(name, tuple(code))


def _parse_instruction(found: re.Match[str]) -> Instruction:
    predicate, opcode, operands = found[2], found[3], found[4].strip()
    target = None
    conditional = predicate is not None
    if opcode.split(".")[0] == "BRA":
        address = _ADDRESS.search(operands)
        target = int(address[1], 16) if address else None
        # "BRA.U !UP0, 0x..", "BRA P1, 0x..", "BRA.DIV UR4, 0x..": a condition as an operand.
        conditional = conditional or "," in operands
    return Instruction(int(found[1], 16), opcode, conditional, target)


def inner_loops(function: Function) -> list[Loop]:
    """Find the innermost loops of a function, in order of their addresses."""
    blocks = _basic_blocks(function.code)
    if not blocks:
        return []
    index = {block[0].address: i for i, block in enumerate(blocks)}
    successors = [_successors(block, i, index, len(blocks)) for i, block in enumerate(blocks)]
    order = _reverse_postorder(successors)
    dominators = _immediate_dominators(successors, order)
    position = {block: n for n, block in enumerate(order)}
    # header -> the last block that goes back to it
    back: dict[int, int] = {}
    for block in order:
        for target in successors[block]:
            is_idle = target == block and len(blocks[block]) == 1  # the padding behind the code
            if _dominates(dominators, position, target, block) and not is_idle:
                back[target] = max(back.get(target, -1), block)
    loops = []
    for header, source in sorted(back.items()):
        if any(header < other and back[other] <= source for other in back):
            continue  # it has a loop inside
        if source < header:
            continue  # out of line altogether
        shortest = _shortest_way(blocks, successors, header, source)
        loops.append(_make_loop(blocks[header : source + 1], shortest))
    return loops


def _shortest_way(
    blocks: list[list[Instruction]], successors: list[list[int]], header: int, source: int
) -> int:
    """Return the fewest instructions from a loop's header to a branch back to it."""
    best = {header: len(blocks[header])}
    queue = [header]
    shortest: int | None = None
    while queue:
        block = min(queue, key=best.__getitem__)
        queue.remove(block)
        for target in successors[block]:
            if target == header:
                shortest = best[block] if shortest is None else min(shortest, best[block])
            elif header < target <= source:
                length = best[block] + len(blocks[target])
                if length < best.get(target, length + 1):
                    best[target] = length
                    queue.append(target)
    return shortest if shortest is not None else best.get(source, len(blocks[header]))


def _make_loop(blocks: list[list[Instruction]], shortest: int) -> Loop:
    parts = [block for block in blocks if not any(i.opcode.startswith("CALL") for i in block)]
    main = [instruction for block in parts for instruction in block]
    screened = sum(
        len(block) for block in parts if all(kind_of(i.opcode) != "reciprocals" for i in block)
    )
    kinds = collections.Counter(kind_of(i.opcode) for i in main)
    counted = {kind: kinds[kind] for kind in KINDS if kinds[kind]}
    return Loop(
        blocks[0][0].address, blocks[-1][-1].address, len(main), screened, shortest, counted
    )


def _ends_block(instruction: Instruction) -> bool:
    return instruction.opcode.split(".")[0] in ("BRA", "BRX", "JMX", "EXIT", "RET", "BREAK", "CALL")


def _basic_blocks(code: Iterable[Instruction]) -> list[list[Instruction]]:
    code = list(code)
    targets = {i.target for i in code if i.target is not None}
    blocks: list[list[Instruction]] = []
    begin = True
    for instruction in code:
        if begin or instruction.address in targets:
            blocks.append([])
        blocks[-1].append(instruction)
        begin = _ends_block(instruction)
    return blocks


def _successors(
    block: list[Instruction], number: int, index: dict[int, int], count: int
) -> list[int]:
    last = block[-1]
    name = last.opcode.split(".")[0]
    following = []
    if last.target is not None and last.target in index:
        following.append(index[last.target])
    leaves = name in ("BRA", "BRX", "JMX", "EXIT", "RET") and not last.conditional
    if not leaves and number + 1 < count:
        following.append(number + 1)
    return following


def _reverse_postorder(successors: list[list[int]]) -> list[int]:
    seen = {0}
    order: list[int] = []
    stack = [(0, iter(successors[0]))]
    while stack:
        block, following = stack[-1]
        for target in following:
            if target not in seen:
                seen.add(target)
                stack.append((target, iter(successors[target])))
                break
        else:
            order.append(block)
            stack.pop()
    return order[::-1]


def _immediate_dominators(successors: list[list[int]], order: list[int]) -> dict[int, int]:
    position = {block: n for n, block in enumerate(order)}
    predecessors: dict[int, list[int]] = {block: [] for block in order}
    for block in order:
        for target in successors[block]:
            predecessors[target].append(block)
    dominators = {order[0]: order[0]}
    changed = True
    while changed:
        changed = False
        for block in order[1:]:
            known = [p for p in predecessors[block] if p in dominators]
            new = known[0]
            for other in known[1:]:
                while new != other:
                    while position[new] > position[other]:
                        new = dominators[new]
                    while position[other] > position[new]:
                        other = dominators[other]
            if dominators.get(block) != new:
                dominators[block] = new
                changed = True
    return dominators


def _dominates(dominators: dict[int, int], position: dict[int, int], a: int, b: int) -> bool:
    while position[b] > position[a]:
        b = dominators[b]
    return a == b


def demangle(names: Iterable[str]) -> dict[str, str]:
    """Return readable names of kernels, without their parameters.

    They lack what differs from build to build, such as the hash of an unnamed namespace.

    Raises:
        FileNotFoundError: There is no ``c++filt``, which comes with every compiler.
    """
    names = list(names)
    program = shutil.which("cu++filt") or shutil.which("c++filt")
    if program is None:
        raise FileNotFoundError("c++filt is not installed: install binutils")
    answer = subprocess.run(
        [program], input="\n".join(names), capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return {name: short_name(full) for name, full in zip(names, answer, strict=True)}


def short_name(full: str) -> str:
    """Cut return type, parameters and namespaces off a demangled name."""
    text = full.replace("(anonymous namespace)::", "").removeprefix("void ")
    depth = 0
    for at, letter in enumerate(text):
        depth += {"<": 1, ">": -1}.get(letter, 0)
        if letter == "(" and depth == 0:
            text = text[:at]
            break
    for namespace in ("rcnn_ext::", "vision::ops::", "c10::", "static "):
        text = text.replace(namespace, "")
    return text
