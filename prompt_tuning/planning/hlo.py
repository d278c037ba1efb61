"""What a compiled program computes and moves, counted from the compiler's own text of it.

XLA's cost analysis counts the body of a loop once, whatever its trips, and a model of scanned
layers is two loops. Here every computation is counted as often as it runs.

A program is a list of computations, each a list of instructions, one a line:

    %convolution.59 = bf16[8,640,384]{1,2,0} convolution(%a, %b), window={size=8}, dim_labels=...
"""

import dataclasses
import re

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_ASSIGNMENT = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = ")
_OPCODE = re.compile(r"\s*([\w\-]+)\(")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](?:\{([^}]*)\})?")
_NAME = re.compile(r"%([\w.\-]+)")
_BITS = re.compile(r"\d+")


@dataclasses.dataclass(frozen=True)
class Shape:
    """One array: `memory` is the space in which it lies, 0 for the main one."""

    dtype: str
    sizes: tuple[int, ...]
    memory: int

    @property
    def elements(self) -> int:
        count = 1
        for size in self.sizes:
            count *= size
        return count

    @property
    def bytes(self) -> int:
        return -(-self.elements * _bits(self.dtype) // 8)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line: `shapes` are of the arrays that it makes, `attributes` all after its operands."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    attributes: str
    argument: str
    is_root: bool

    def called(self, *attributes: str) -> list[str]:
        """Returns the computations under these attributes, such as `body`."""
        found = []
        for attribute in attributes:
            if match := re.search(rf"\b{attribute}=(\{{[^}}]*\}}|%[\w.\-]+)", self.attributes):
                found += _NAME.findall(match[1])
        return found


Computation = dict[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Program:
    """All computations by name, and which one is run."""

    computations: dict[str, Computation]
    entry: str


def parse(text: str) -> Program:
    """Reads what `compiled.as_text()` returns."""
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        if current is None:
            if header := _HEADER.match(line):
                current = computations[header[2]] = {}
                entry = header[2] if header[1] else entry
        elif line.startswith("}"):
            current = None
        elif (one := _instruction(line)) is not None:
            current[one.name] = one
    return Program(computations, entry)


def _instruction(line: str) -> Instruction | None:
    match = _ASSIGNMENT.match(line)
    if match is None:
        return None
    rest = line[match.end() :]
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    shapes, rest = rest[:end], rest[end:]
    opcode = _OPCODE.match(rest)
    if opcode is None:
        return None
    end = _closing(rest, opcode.end() - 1)
    argument = rest[opcode.end() : end]
    return Instruction(
        name=match[1],
        opcode=opcode[1],
        shapes=tuple(_shape(*found) for found in _ARRAY.findall(shapes)),
        operands=tuple(_NAME.findall(argument)),
        attributes=rest[end + 1 :],
        argument=argument,
        is_root=line.lstrip().startswith("ROOT "),
    )


def _shape(dtype: str, sizes: str, layout: str) -> Shape:
    space = re.search(r"S\((\d+)\)", layout)
    return Shape(
        dtype, tuple(map(int, filter(None, sizes.split(",")))), int(space[1]) if space else 0
    )


def _closing(text: str, start: int) -> int:
    """Returns where the parenthesis that opens at `start` is closed."""
    depth = 0
    for match in re.finditer(r"[()]", text[start:]):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return start + match.start()
    return len(text)


def _bits(dtype: str) -> int:
    if dtype == "pred":
        return 8
    if dtype == "token":
        return 0
    # bf16, f8e4m3fn and s4 alike have their bits in front; complex numbers are c64 and c128.
    found = _BITS.search(dtype)
    return int(found[0]) if found else 0
