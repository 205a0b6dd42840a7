"""Counts the multiplications and additions of a compiled program from its HLO text.

XLA's own cost analysis does not see into library calls on CPU. Convolutions and dot
products, wherever they are called from, are counted by their shapes: 2 FLOPs for every
pair of numbers that are multiplied. What falls on padding or between dilated elements
is not counted. Element-wise work is left out.
"""

import dataclasses
import math
import re
from collections.abc import Sequence

_LINE = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
_SHAPE = re.compile(r"^\w+\[([\d,]*)\]")
_CALLEE = re.compile(
    r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_OPAQUE = re.compile(r"conv|dot|gemm|matmul", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class _Call:
    callee: str
    times: int | None  # None: a loop whose trips the program does not tell


@dataclasses.dataclass
class _Computation:
    flops: int = 0
    calls: list[_Call] = dataclasses.field(default_factory=list)


def flops(text: str) -> int:
    """Returns the FLOPs of all convolutions and dot products of a program.

    Args:
        text: of a module: `compiled.as_text()`.

    Raises:
        ValueError: a loop around them of unknown length, or a library call that may
            hide some.
    """
    computations: dict[str, _Computation] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    entry = None
    current = _Computation()
    for line in text.splitlines():
        if line.endswith("{") and not line.startswith((" ", "HloModule")):
            name = line.removeprefix("ENTRY ").lstrip("%").split(" ")[0].split("(")[0]
            current = computations[name] = _Computation()
            shapes = {}
            if line.startswith("ENTRY "):
                entry = name
            continue
        found = _LINE.match(line)
        if not found:
            continue
        name, result, kind, rest = found.groups()
        if shape := _SHAPE.match(result):
            shapes[name] = _sizes(shape[1])
        if kind == "convolution":
            current.flops += _convolution(shapes[name], _operands(rest, shapes), rest)
        elif kind == "dot":
            current.flops += _dot(shapes[name], _operands(rest, shapes), rest)
        elif kind == "custom-call" and _OPAQUE.search(rest.split("metadata=")[0]):
            raise ValueError(f"a library call that may hide products: {line.strip()}")
        times: int | None = 1
        if kind == "while":
            trips = _TRIPS.search(rest)
            times = int(trips[1]) if trips else None
        callees = _CALLEE.findall(rest)
        for branches in _BRANCHES.findall(rest):
            callees += [branch.strip().lstrip("%") for branch in branches.split(",")]
        current.calls += [_Call(callee, times) for callee in callees]
    if entry is None:
        raise ValueError("no ENTRY computation: is this the text of a module?")
    return _total(entry, computations, {})


def _total(
    name: str, computations: dict[str, _Computation], known: dict[str, int]
) -> int:
    if name not in known:
        computation = computations[name]
        known[name] = computation.flops
        for call in computation.calls:
            inside = _total(call.callee, computations, known)
            if inside and call.times is None:
                raise ValueError(f"{call.callee}: products in a loop of unknown length")
            known[name] += inside * (call.times or 0)
    return known[name]


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(int(size) for size in text.split(",") if size)


def _operands(
    rest: str, shapes: dict[str, tuple[int, ...]]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the shapes of the first two operands."""
    names = re.findall(r"%([\w.\-]+)", rest.split("), ")[0])
    return shapes[names[0]], shapes[names[1]]


def _dot(
    result: Sequence[int], operands: tuple[Sequence[int], Sequence[int]], rest: str
) -> int:
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", rest)
    dims = _sizes(contracted[1]) if contracted else ()
    return 2 * math.prod(result) * math.prod(operands[0][dim] for dim in dims)


def _convolution(
    result: Sequence[int], operands: tuple[Sequence[int], Sequence[int]], rest: str
) -> int:
    lhs, rhs = operands
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", rest)
    assert labels, rest
    lhs_labels, rhs_labels, out_labels = labels.groups()
    spatial = sorted(label for label in lhs_labels if label.isdigit())
    window = re.search(r"window=\{([^}]*)\}", rest)
    options = dict(
        word.split("=") for word in (window[1].split() if window else ()) if word
    )
    pairs = 1
    for i, label in enumerate(spatial):

        def option(name: str, default: int, i: int = i) -> int:
            return int(options[name].split("x")[i]) if name in options else default

        low = int(options["pad"].split("x")[i].split("_")[0]) if "pad" in options else 0
        pairs *= _pairs(
            lhs[lhs_labels.index(label)],
            rhs[rhs_labels.index(label)],
            result[out_labels.index(label)],
            stride=option("stride", 1),
            low=low,
            holes=option("lhs_dilate", 1),
            spacing=option("rhs_dilate", 1),
        )
    # The kernel's input features are those of one group already; with groups of the
    # batch, so are the result's examples.
    depth = rhs[rhs_labels.index("i")]
    batch, features = (result[out_labels.index(label)] for label in "bf")
    return 2 * batch * features * depth * pairs


def _pairs(
    size: int, kernel: int, out: int, *, stride: int, low: int, holes: int, spacing: int
) -> int:
    """Returns how often a kernel's element meets one of the input along one axis."""
    dilated = (size - 1) * holes + 1
    places = (
        position * stride + tap * spacing - low
        for position in range(out)
        for tap in range(kernel)
    )
    return sum(0 <= place < dilated and place % holes == 0 for place in places)
