"""How many kernels a compiled program launches, and what they move, by kind."""

import re
from collections import Counter
from typing import NamedTuple

from kdjax.preflight.hlo import traffic
from kdjax.preflight.hlo.module import Instruction, Module

UPDATE = "update"
"""The scope of the optimiser's operations in the train step."""

_NUMBER = re.compile(r"(\.\d+)*$")
_OPERATION = re.compile(r'op_name="([^"]*)"')
# The beginnings of names that XLA gives to kernels of GPUs.
_KINDS = {
    "cudnn-conv": "convolutions",
    "gemm": "products",
    "input": "reductions",
    "loop": "elementwise",
}


class Part(NamedTuple):
    """Kernels of a step of one kind, and the bytes that they move."""

    kernels: int
    bytes: int


def kernels(text: str, *, unknown: int = 1) -> Counter[str]:
    """Returns how often kernels of each name run in one run of a program.

    Args:
        text: of a module: `compiled.as_text()`.
        unknown: how often the body of a loop without a known trip count runs.

    Returns:
        Counts by the instructions' names without their numbers, such as
        'loop_add_fusion', 'input_reduce_fusion' or 'cudnn-conv'.
    """
    counts = Counter[str]()
    for instruction, runs, _ in traffic.kernels(text, unknown=unknown):
        counts[_NUMBER.sub("", instruction.name)] += runs
    return counts


def step_by_kind(text: str, steps: int) -> dict[str, Part]:
    """Returns what one step consists of in a program for GPUs.

    Args:
        text: of a program that makes several steps in a loop.
        steps: how many; what runs less often, before or after the loop, is left out.

    Returns:
        By kind: 'convolutions', 'products', 'reductions', 'elementwise', 'update' (the
        optimiser's kernels, and BatchNorm's of few numbers that XLA fuses with them)
        and 'other', such as copies.
    """
    counts, sizes = Counter[str](), Counter[str]()
    for instruction, runs, size in traffic.kernels(text):
        times, kind = runs // steps, _kind(instruction)
        counts[kind] += times
        sizes[kind] += times * size
    return {kind: Part(counts[kind], sizes[kind]) for kind in counts if counts[kind]}


def longest_chain(text: str, steps: int) -> int:
    """Returns how many kernels of one step must run one after the other.

    Each of them reads, if perhaps through others, what the one before it writes. The
    other kernels could run beside these.

    Args:
        text: as for `step_by_kind`.
        steps: likewise.
    """
    module = Module.parse(text)
    runs = module.runs(unknown=1)
    bodies = [
        name for name in traffic.kernel_computations(module) if runs[name] == steps
    ]
    return max(_chain(module, name) for name in bodies)


def _chain(module: Module, computation: str) -> int:
    """Returns the length of the longest chain of kernels in a computation."""
    depths: dict[str, int] = {}
    for name, instruction in module.computations[computation].items():
        before = max((depths.get(one, 0) for one in instruction.operands), default=0)
        own = int(traffic.is_kernel(instruction))
        if instruction.kind in traffic.CALLS:
            inside = (_chain(module, callee) for callee in instruction.callees)
            own = max(inside) * (instruction.trips or 1)
        depths[name] = before + own
    return max(depths.values())


def _kind(instruction: Instruction) -> str:
    operation = _OPERATION.search(instruction.rest)
    if operation and UPDATE in operation[1].split("/"):
        return "update"
    return next(
        (kind for start, kind in _KINDS.items() if instruction.name.startswith(start)),
        "other",
    )
