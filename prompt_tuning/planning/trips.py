"""How often the body of a loop runs."""

import re

from prompt_tuning.planning.hlo import Computation, Instruction, Program

_KNOWN = re.compile(r'known_trip_count"?:\{"n":"(\d+)"')
# What hands on a number as it is.
_SAME = ("copy", "bitcast", "convert", "reshape", "broadcast")


def trips(loop: Instruction, computation: Computation, program: Program) -> int | None:
    """Returns the trips of a `while`, the most that it may make if it can end early.

    The compiler says it, or the condition compares a counter with a constant. None if neither.
    """
    if known := _KNOWN.search(loop.attributes):
        return int(known[1])
    (condition,) = loop.called("condition")
    limits = [
        (limit - _start(loop, counter, computation))
        for limit, counter in _limits(condition, program)
    ]
    return max(limits) if limits else None


def _limits(name: str, program: Program) -> list[tuple[int, int | None]]:
    """Returns the constants that a condition compares with, and which loop variable each limits."""
    computation = program.computations[name]
    found = []
    for one in computation.values():
        # On some backends the comparison is a fusion of its own.
        if one.opcode == "fusion":
            (inner,) = one.called("calls")
            outside = {i: computation.get(operand) for i, operand in enumerate(one.operands)}
            compared = program.computations[inner]
        else:
            outside, compared = {}, {one.name: one}
        for comparison in compared.values():
            if comparison.opcode != "compare" or "direction=LT" not in comparison.attributes:
                continue
            sides = [
                _outside(side, compared if outside else computation, outside)
                for side in comparison.operands
            ]
            limit, counter = _constant(sides[1]), _index(sides[0])
            if limit is not None and counter is not None:
                found.append((limit, counter))
    return found


def _outside(
    name: str, computation: Computation, outside: dict[int, Instruction | None]
) -> Instruction | None:
    """Returns the instruction behind a name; of a parameter of a fusion what was passed."""
    one = computation.get(name)
    while one is not None and one.opcode in _SAME and one.operands:
        one = computation.get(one.operands[0])
    if one is not None and one.opcode == "parameter" and outside:
        return outside.get(int(one.argument))
    return one


def _constant(one: Instruction | None) -> int | None:
    if one is None or one.opcode != "constant" or not _is_count(one):
        return None
    return int(one.argument)


def _index(one: Instruction | None) -> int | None:
    if one is None or one.opcode != "get-tuple-element" or not _is_count(one):
        return None
    found = re.search(r"index=(\d+)", one.attributes)
    return int(found[1]) if found else None


def _is_count(one: Instruction) -> bool:
    """Tells whether this is one integer: what else is compared counts no trips."""
    (shape,) = one.shapes
    return shape.sizes == () and shape.dtype[0] in "su"


def _start(loop: Instruction, counter: int | None, computation: Computation) -> int:
    """Returns where the counter of a loop starts, 0 unless a constant says otherwise."""
    initial = computation.get(loop.operands[0])
    if initial is None or initial.opcode != "tuple" or counter is None:
        return 0
    return _constant(_outside(initial.operands[counter], computation, {})) or 0
