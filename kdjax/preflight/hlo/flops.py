"""Counts the multiplications and additions of a compiled program from its HLO text.

XLA's own cost analysis does not see into library calls. Here convolutions and dot
products, wherever they are called from, are counted by their shapes: 2 FLOPs for every
pair of numbers that are multiplied. Products with padding or with the zeros between
dilated elements are not counted. Element-wise work is left out.
"""

import math
import re
from collections.abc import Sequence

from kdjax.preflight.hlo.module import Instruction, Module

_OPAQUE = re.compile(r"conv|dot|gemm|matmul", re.IGNORECASE)
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_GEMM = re.compile(r'"lhs_contracting_dimensions":\[([^\]]*)\]')
# cuDNN's calls have the window and the labels of the forward convolution. By call, the
# operands that are its input, kernel and output; None is the result of the call.
_CUDNN = {
    "__cudnn$convForward": (0, 1, None),
    "__cudnn$convForwardGraph": (0, 1, None),
    "__cudnn$convBiasActivationForward": (0, 1, None),
    "__cudnn$convBackwardInput": (None, 1, 0),
    "__cudnn$convBackwardFilter": (0, None, 1),
}
# Calls that match `_OPAQUE` by their names, but multiply nothing.
_HARMLESS = ("ConvertBF16", "convert")


def flops(text: str, *, unknown: int | None = None) -> int:
    """Returns the FLOPs of all convolutions and dot products of a program.

    Args:
        text: of a module: `compiled.as_text()`.
        unknown: how often a loop without a known trip count runs; None raises an error
            if there are products in one.

    Raises:
        ValueError: a loop around them of unknown length, or a library call that may
            hide some.
    """
    module = Module.parse(text)
    of = {
        (name, instruction.name): product
        for instruction, _, name in module.instructions()
        if (product := _products(module, name, instruction))
    }

    def total(unknown: int) -> int:
        runs = module.runs(unknown)
        return sum(runs[name] * product for (name, _), product in of.items())

    if unknown is None:
        # The total depends on the assumed count only if such a loop has products.
        if total(0) != total(1):
            raise ValueError("products in a loop of unknown length")
        unknown = 0
    return total(unknown)


def _products(module: Module, computation: str, instruction: Instruction) -> int:
    """Returns the FLOPs of one instruction, without what it calls."""
    kind, rest = instruction.kind, instruction.rest
    if kind not in ("convolution", "dot", "custom-call"):
        return 0
    around = module.computations[computation]
    operands = [
        around[name].result[0].shape
        for name in instruction.operands
        if name in around and around[name].result
    ]
    result = instruction.result[0].shape if instruction.result else ()
    if kind == "convolution":
        return _convolution(operands[0], operands[1], result, rest)
    if kind == "dot":
        match = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", rest)
        return _dot(result, operands[0], match[1] if match else "")
    match = _TARGET.search(rest)
    target = match[1] if match else ""
    if target in _CUDNN:
        lhs, rhs, out = (
            result if at is None else operands[at] for at in _CUDNN[target]
        )
        return _convolution(lhs, rhs, out, rest)
    if target.startswith("__cublas$") and (dims := _GEMM.search(rest)):
        return _dot(result, operands[0], dims[1].replace('"', ""))
    if _OPAQUE.search(target) and target not in _HARMLESS:
        line = f"{instruction.name} = {kind}({rest}"
        raise ValueError(f"a library call that may hide products: {line}")
    return 0


def _dot(result: Sequence[int], left: Sequence[int], contracted: str) -> int:
    dims = [int(dim) for dim in contracted.split(",") if dim]
    return 2 * math.prod(result) * math.prod(left[dim] for dim in dims)


def _convolution(
    lhs: Sequence[int], rhs: Sequence[int], result: Sequence[int], rest: str
) -> int:
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

        # 'pad=1_1x0_2': low and high of each axis. The result's size implies the high.
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
    # With groups, the kernel's input features are those of one group already; with
    # groups of the batch (a weight gradient), so are the examples in the result.
    depth = rhs[rhs_labels.index("i")]
    batch, features = (result[out_labels.index(label)] for label in "bf")
    return 2 * batch * features * depth * pairs


def _pairs(
    size: int, kernel: int, out: int, *, stride: int, low: int, holes: int, spacing: int
) -> int:
    """Returns how often a kernel's element meets one of the input along one axis."""
    # Input elements lie `holes` apart, taps of the kernel `spacing`.
    dilated = (size - 1) * holes + 1
    places = (
        position * stride + tap * spacing - low
        for position in range(out)
        for tap in range(kernel)
    )
    return sum(0 <= place < dilated and place % holes == 0 for place in places)
