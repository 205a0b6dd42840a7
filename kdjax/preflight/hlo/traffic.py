"""Bytes that the kernels of a compiled program read and write in main memory.

Every instruction outside fusions is a kernel: it reads its operands and writes its
result, once. Arrays in on-chip memory are not counted. Where a kernel reads only slices
or rows of an operand, only these are counted.
"""

from collections.abc import Iterable, Iterator, Mapping

from kdjax.preflight.hlo.module import Array, Instruction, Module

# These move no data worth counting: most only name or forward arrays.
_FREE = frozenset(
    (
        "parameter",
        "constant",
        "tuple",
        "get-tuple-element",
        "bitcast",
        "after-all",
        "add-dependency",
        "opt-barrier",
        "optimization-barrier",
        "partition-id",
        "replica-id",
        "domain",
        "iota",
    )
)
CALLS = frozenset(("while", "call", "conditional"))
"""Instructions whose computations' instructions are kernels themselves."""
_ASYNC = ("async-start", "async-update")
_SLICES = frozenset(("dynamic-slice", "slice", "gather"))


def traffic(text: str, *, unknown: int = 1) -> int:
    """Returns bytes read and written in one run of a program, on one device.

    Args:
        text: of a module: `compiled.as_text()`.
        unknown: how often the body of a loop without a known trip count runs.
    """
    return sum(runs * moved for _, runs, moved in kernels(text, unknown=unknown))


def kernels(text: str, *, unknown: int = 1) -> Iterator[tuple[Instruction, int, int]]:
    """Yields every kernel, how often it runs, and the bytes that one run moves.

    An instruction outside of fusions counts as one kernel; a library call may launch
    several. Instructions that only name or forward arrays count for nothing.

    Args:
        text: as for `traffic`.
        unknown: as for `traffic`.
    """
    module = Module.parse(text)
    runs = module.runs(unknown)
    for name in kernel_computations(module):
        for instruction in module.computations[name].values():
            if is_kernel(instruction):
                yield instruction, runs[name], _moved(module, name, instruction)


def kernel_computations(module: Module) -> set[str]:
    """Returns the computations whose instructions are kernels."""
    reached, waiting = set(), [module.entry]
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            for instruction in module.computations[name].values():
                if instruction.kind in CALLS or instruction.kind in _ASYNC:
                    waiting += instruction.callees
    return reached


def is_kernel(instruction: Instruction) -> bool:
    """Returns whether an instruction outside of fusions is a kernel."""
    kind = instruction.kind
    harmless = kind in _FREE or kind in CALLS or kind in _ASYNC
    return not harmless and not kind.endswith("-done")


def _moved(module: Module, computation: str, instruction: Instruction) -> int:
    """Returns the bytes that one instruction reads and writes."""
    kind = instruction.kind
    around = module.computations[computation]
    if kind != "fusion":
        return _alone(around, instruction)
    inside = module.computations[instruction.callees[0]]
    parameters = sorted(
        (one for one in inside.values() if one.kind == "parameter"),
        key=lambda one: int(one.rest.split(")")[0]),  # parameter(0), ...
    )
    read = 0
    for parameter, name in zip(parameters, instruction.operands, strict=True):
        whole = _main(around[name].result)
        # Several slices of one operand may overlap; none is of on-chip memory.
        read += min(whole, _touched(inside, parameter.name)) if whole else 0
    updates = [one for one in inside.values() if one.kind == "dynamic-update-slice"]
    written = _main(instruction.result)
    for update in updates:  # in place: the rest of the result stays as it is
        if written >= update.result[0].bytes:
            written -= update.result[0].bytes - _size(inside, update.operands[1])
    return read + written


def _alone(around: Mapping[str, Instruction], instruction: Instruction) -> int:
    """Returns the bytes that an instruction outside fusions reads and writes."""
    kind, written = instruction.kind, _main(instruction.result)
    if kind in _SLICES:  # reads as much as it writes
        return 2 * written
    if kind == "dynamic-update-slice":
        update = around[instruction.operands[1]].result
        return _main(update) + (update[0].bytes if written else 0)
    if kind == "copy-start":  # such as from main to on-chip memory
        return _main(instruction.result[:1]) + _size(around, instruction.operands[0])
    if kind.endswith("-start"):  # its result names its operands as well
        return 2 * sum(_size(around, name) for name in instruction.operands)
    names = dict.fromkeys(name for name in instruction.operands if name in around)
    return written + sum(_main(around[name].result) for name in names)


def _touched(inside: Mapping[str, Instruction], name: str) -> int:
    """Returns how many bytes of a parameter a fused computation reads."""
    total = 0
    for user in inside.values():
        if name not in user.operands:
            continue
        if user.kind in _SLICES and user.operands[0] == name:
            total += user.result[0].bytes
        elif user.kind == "dynamic-update-slice" and user.operands[0] == name:
            total += 0  # overwritten in part, and not read
        elif user.kind in ("bitcast", "convert", "reshape"):
            total += _touched(inside, user.name)
        else:
            return inside[name].result[0].bytes
    return total


def _size(around: Mapping[str, Instruction], name: str) -> int:
    return _main(around[name].result) if name in around else 0


def _main(arrays: Iterable[Array]) -> int:
    return sum(array.bytes for array in arrays if array.space == 0)
