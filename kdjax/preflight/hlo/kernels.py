"""How many kernels a compiled program launches, by kind."""

import re
from collections import Counter

from kdjax.preflight.hlo.module import Module
from kdjax.preflight.hlo.traffic import kernel_computations, moves_data

_NUMBER = re.compile(r"(\.\d+)*$")


def kernels(text: str, *, unknown: int = 1) -> Counter[str]:
    """Returns how often kernels of each kind run in one run of a program.

    An instruction outside of fusions counts as one kernel; a library call may launch
    several. Instructions that only name or forward arrays count for nothing.

    Args:
        text: of a module: `compiled.as_text()`.
        unknown: how often the body of a loop without a known trip count runs.

    Returns:
        Counts by the instructions' names without their numbers, such as
        'loop_add_fusion', 'input_reduce_fusion' or 'cudnn-conv'.
    """
    module = Module.parse(text)
    runs = module.runs(unknown)
    counts = Counter[str]()
    for name in kernel_computations(module):
        for instruction in module.computations[name].values():
            if moves_data(instruction):
                counts[_NUMBER.sub("", instruction.name)] += runs[name]
    return counts
