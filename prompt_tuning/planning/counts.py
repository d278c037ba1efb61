"""Counts over a compiled program: FLOPs of products, bytes of memory, collectives."""

import dataclasses
import json
import math
import re
from collections.abc import Mapping

from prompt_tuning.planning.hlo import Computation, Instruction, Program, Shape, parse
from prompt_tuning.planning.trips import trips

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
# What moves nothing.
_FREE = (
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "after-all",
    "partition-id",
    "replica-id",
    "while",
    "call",
    "conditional",
    "async-start",
    "optimization-barrier",
)

_REORDERED = ("bitcast", "copy", "convert", "reshape", "transpose")


@dataclasses.dataclass(frozen=True)
class Counts:
    """What one run of a program takes, on one device.

    Attributes:
        flops: of all matrix products, 2 for each multiplication and its addition.
        bytes: that go between main memory and the cores; an estimate, as caches are not known.
        collectives: how often, and how many bytes come out, by kind and dtype.
        unknown: what could not be counted, in words.
    """

    flops: float = 0.0
    bytes: float = 0.0
    collectives: Mapping[tuple[str, str], tuple[int, int]] = dataclasses.field(default_factory=dict)
    unknown: frozenset[str] = frozenset()

    def __add__(self, other: "Counts") -> "Counts":
        together = dict(self.collectives)
        for key, (count, size) in other.collectives.items():
            before = together.get(key, (0, 0))
            together[key] = before[0] + count, before[1] + size
        return Counts(
            self.flops + other.flops,
            self.bytes + other.bytes,
            together,
            self.unknown | other.unknown,
        )

    def times(self, n: int) -> "Counts":
        return Counts(
            self.flops * n,
            self.bytes * n,
            {key: (count * n, size * n) for key, (count, size) in self.collectives.items()},
            self.unknown,
        )


def count(text: str, *, most_trips: int | None = None) -> Counts:
    """Counts what `compiled.as_text()` describes, each loop body as often as it runs.

    Args:
        text: of the program.
        most_trips: of a loop that ends when its data say so, such as one that writes answers.
    """
    program = parse(text)
    return _Counter(program, most_trips).computation(program.entry, fused=False)


class _Counter:
    def __init__(self, program: Program, most_trips: int | None):
        self.program = program
        self.most_trips = most_trips
        self.known: dict[tuple[str, bool], Counts] = {}

    def computation(self, name: str, *, fused: bool) -> Counts:
        if (name, fused) not in self.known:
            computation = self.program.computations[name]
            total = Counts()
            for one in computation.values():
                total = total + self._instruction(one, computation, fused=fused)
            self.known[name, fused] = total
        return self.known[name, fused]

    def _instruction(self, one: Instruction, computation: Computation, *, fused: bool) -> Counts:
        # Inside a fusion nothing touches memory but what goes in and comes out of it.
        own = Counts(bytes=0.0 if fused else self._bytes(one, computation))
        kind = one.opcode.removesuffix("-start")
        if kind in COLLECTIVES:
            shapes = _results(one, len(one.operands))
            sizes: dict[tuple[str, str], tuple[int, int]] = {}
            for i, shape in enumerate(shapes):
                before = sizes.get((kind, shape.dtype), (0, 0))
                # Several arrays in one exchange are one exchange.
                sizes[kind, shape.dtype] = before[0] + (i == 0), before[1] + shape.bytes
            return own + Counts(collectives=sizes)
        match one.opcode:
            case "dot":
                return own + Counts(flops=_dot(one, computation))
            case "convolution":
                return own + Counts(flops=_convolution(one, computation))
            case "custom-call":
                return own + _custom_call(one, computation)
            case "fusion":
                return own + self._sum(one.called("calls"), fused=True)
            case "call" | "async-start":
                return own + self._sum(one.called("to_apply", "calls"), fused=fused)
            case "conditional":
                names = one.called("branch_computations", "true_computation", "false_computation")
                branches = [self.computation(name, fused=fused) for name in names]
                return own + max(branches, key=lambda counts: counts.flops, default=Counts())
            case "while":
                n = trips(one, computation, self.program) or self.most_trips
                inside = self._sum(one.called("body", "condition"), fused=fused)
                if n is None:
                    lost = frozenset({f"the trips of the loop {one.name}, counted once"})
                    return own + inside + Counts(unknown=lost if inside.flops else frozenset())
                return own + inside.times(n)
        return own

    def _sum(self, names: list[str], *, fused: bool) -> Counts:
        total = Counts()
        for name in names:
            total = total + self.computation(name, fused=fused)
        return total

    def _bytes(self, one: Instruction, computation: Computation) -> float:
        if one.opcode in _FREE or one.opcode.endswith("-done"):
            return 0.0
        operands = [computation[name].shapes for name in one.operands if name in computation]
        if one.opcode == "fusion":
            (name,) = one.called("calls")
            return self._bytes_of_fusion(one, self.program.computations[name])
        if one.opcode in ("dynamic-slice", "slice", "gather"):
            return 2.0 * sum(map(_in_memory, one.shapes))
        if one.opcode in ("dynamic-update-slice", "scatter"):
            return 2.0 * sum(map(_in_memory, operands[-1 if one.opcode == "scatter" else 1]))
        made = one.shapes[:1] if one.opcode == "copy-start" else one.shapes
        return float(sum(map(_in_memory, made)) + sum(_in_memory(x) for s in operands for x in s))

    def _bytes_of_fusion(self, one: Instruction, inner: Computation) -> float:
        """Counts slices of what is only sliced, and updates of what is only updated in place."""
        total, untouched = 0, 0
        for parameter in inner.values():
            whole = sum(map(_in_memory, parameter.shapes))
            if parameter.opcode != "parameter" or not whole:
                continue
            found = self._taken(parameter, inner)
            read, in_place = (whole, False) if found is None else found
            total += min(whole, read)
            if in_place:
                untouched += whole - min(whole, read)
        return float(total + max(0, sum(map(_in_memory, one.shapes)) - untouched))

    def _taken(self, array: Instruction, inner: Computation) -> tuple[int, bool] | None:
        """Returns the bytes that are taken of an array in parts, and whether parts are replaced.

        None if somebody takes it as a whole.
        """
        total, in_place = 0, False
        for user in inner.values():
            for position, operand in enumerate(user.operands):
                if operand != array.name:
                    continue
                if user.opcode in ("dynamic-slice", "slice", "gather") and position == 0:
                    total += sum(shape.bytes for shape in user.shapes)
                    continue
                if user.opcode == "dynamic-update-slice" and position == 0:
                    total += sum(shape.bytes for shape in inner[user.operands[1]].shapes)
                    in_place = True
                    continue
                found = None
                if user.opcode == "fusion":
                    (name,) = user.called("calls")
                    body = self.program.computations[name]
                    found = self._taken(_parameter(body, position), body)
                # The same numbers in another order, of which a part may be taken then.
                reordered = user.opcode in (*_REORDERED, "fusion") and not user.is_root
                if found is None and reordered and _elements(user) == _elements(array):
                    found = self._taken(user, inner)
                if found is None:
                    return None
                total, in_place = total + found[0], in_place or found[1]
        return total, in_place


def _parameter(computation: Computation, number: int) -> Instruction:
    return next(
        one
        for one in computation.values()
        if one.opcode == "parameter" and one.argument == str(number)
    )


def _elements(one: Instruction) -> int:
    return sum(shape.elements for shape in one.shapes)


def _in_memory(shape: Shape) -> int:
    return shape.bytes if shape.memory == 0 else 0


def _results(one: Instruction, operands: int) -> tuple[Shape, ...]:
    """Returns what a collective makes; the start of an asynchronous one lists its input first."""
    if not one.opcode.endswith("-start") or one.opcode == "all-reduce-start":
        return one.shapes
    return one.shapes[operands : 2 * operands]


def _dot(one: Instruction, computation: Computation) -> float:
    left = computation[one.operands[0]].shapes[0]
    match = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", one.attributes)
    contracted = [int(i) for i in filter(None, match[1].split(","))] if match else []
    return 2.0 * one.shapes[0].elements * math.prod(left.sizes[i] for i in contracted)


def _convolution(one: Instruction, computation: Computation) -> float:
    """Counts the products that meet no padding: a TPU has its batched products as convolutions."""
    match = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", one.attributes)
    assert match is not None
    left, right = (computation[name].shapes[0].sizes for name in one.operands[:2])
    window = _window(one.attributes, sum(label.isdigit() for label in match[2]))
    sizes = dict(zip(match[2], right, strict=True))
    total = 2.0 * sizes["i"] * sizes["o"] * dict(zip(match[1], left, strict=True))["b"]
    groups = re.search(r"batch_group_count=(\d+)", one.attributes)
    total /= int(groups[1]) if groups else 1
    for axis, dimension in enumerate(window):
        label = str(axis)
        inputs = left[match[1].index(label)]
        outputs = one.shapes[0].sizes[match[3].index(label)]
        total *= _meetings(inputs, outputs, **dimension)
    return total


def _window(attributes: str, axes: int) -> list[dict[str, int]]:
    match = re.search(r"window=\{([^}]*)\}", attributes)
    given = dict(part.split("=") for part in match[1].split()) if match else {}

    def along(name: str, default: str) -> list[str]:
        return given[name].split("x") if name in given else [default] * axes

    return [
        {
            "kernel": int(size),
            "stride": int(stride),
            "padding": int(pad.split("_")[0]),
            "inputs_apart": int(left),
            "kernel_apart": int(right),
        }
        for size, stride, pad, left, right in zip(
            along("size", "1"),
            along("stride", "1"),
            along("pad", "0_0"),
            along("lhs_dilate", "1"),
            along("rhs_dilate", "1"),
            strict=True,
        )
    ]


def _meetings(
    inputs: int,
    outputs: int,
    *,
    kernel: int,
    stride: int,
    padding: int,
    inputs_apart: int,
    kernel_apart: int,
) -> int:
    """Returns for how many pairs of output and kernel position there is an input between them."""
    if (kernel, stride, padding, inputs_apart) == (1, 1, 0, 1):
        return outputs
    last = (inputs - 1) * inputs_apart
    found = 0
    for position in range(outputs):
        first = position * stride - padding
        for tap in range(kernel):
            at = first + tap * kernel_apart
            found += 0 <= at <= last and at % inputs_apart == 0
    return found


def _custom_call(one: Instruction, computation: Computation) -> Counts:
    """Counts a kernel by its own estimate, if it has one, and a library's product by its shapes."""
    match = re.search(r'custom_call_target="([^"]+)"', one.attributes)
    target = match[1] if match else ""
    if re.search(r"gemm|matmul|dot", target, re.I) and len(one.operands) >= 2:
        left, right = (computation[name].shapes[0] for name in one.operands[:2])
        made = one.shapes[0].elements
        # Of the three sizes of a product each is in two of its three arrays.
        return Counts(flops=2.0 * math.sqrt(left.elements * right.elements * made))
    if estimate := re.search(r'"cost_estimate":(\{[^}]*\})', one.attributes):
        found = json.loads(estimate[1])
        return Counts(flops=float(found.get("flops", 0)))
    if target in ("tpu_custom_call", "__gpu$xla.gpu.triton") or "attention" in target.lower():
        return Counts(unknown=frozenset({f"the FLOPs of the kernel {target}"}))
    return Counts()
