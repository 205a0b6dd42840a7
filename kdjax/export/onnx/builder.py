"""An ONNX graph while it is written, with the order in which every axis lies.

JAX's maps are `[N, H, W, C]`, those of ONNX `[N, C, H, W]`. Instead of transposing them
back and forth, every tensor knows which of JAX's axes each of its axes is; it is
transposed only where an operation wants another order than it has.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import helper, numpy_helper

from kdjax.export.graph import BATCH, Input, Operation, Value, depends_on_batch
from kdjax.runtime.errors import UserError

IMAGES, LOGITS = "images", "logits"
"""The names of the model's input and output."""


class Tensor(NamedTuple):
    """A tensor of the ONNX graph.

    Attributes:
        name: in the graph.
        order: the axis of JAX's value that each axis is.
    """

    name: str
    order: tuple[int, ...]

    def axis(self, axis: int) -> int:
        """Returns where one of JAX's axes is."""
        return self.order.index(axis)


def channels_first(rank: int) -> tuple[int, ...]:
    """Returns the order `[N, C, ...]` of a value that is `[N, ..., C]`."""
    return (0, rank - 1, *range(1, rank - 1)) if rank > 2 else tuple(range(rank))


class Builder:
    """Collects nodes and constants.

    Attributes:
        opset: the version of ONNX's operators that the nodes are of.
        tensors: those of the values that are computed so far.
    """

    def __init__(self, opset: int):
        """Starts an empty graph."""
        self.opset = opset
        self.tensors: dict[Value, Tensor] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self._known: dict[Any, str] = {}

    def add(
        self, kind: str, inputs: Sequence[str], outputs: int = 1, **attributes: Any
    ) -> Any:
        """Appends a node.

        Args:
            kind: ONNX's operator.
            inputs: names of tensors.
            outputs: how many it has.
            **attributes: the operator's.

        Returns:
            The name of its output; a list if there are several.
        """
        name = f"{kind}_{len(self.nodes)}"
        names = [name] if outputs == 1 else [f"{name}_{i}" for i in range(outputs)]
        node = helper.make_node(kind, list(inputs), names, name, **attributes)
        self.nodes.append(node)
        return name if outputs == 1 else names

    def constant(self, array: Any, dtype: Any = None) -> str:
        """Returns the name of a constant; equal ones are stored once."""
        array = np.ascontiguousarray(np.asarray(array, dtype))
        if array.dtype == np.float64:
            array = array.astype(np.float32)
        key = array.dtype.str, array.shape, array.tobytes()
        if key not in self._known:
            name = self._known[key] = f"constant_{len(self.initializers)}"
            self.initializers[name] = numpy_helper.from_array(array, name)
        return self._known[key]

    def tensor(self, one: Input) -> Tensor:
        """Returns the tensor of an operation's input."""
        if isinstance(one, Value):
            return self.tensors[one]
        return Tensor(self.constant(one), tuple(range(one.ndim)))

    def ordered(self, one: Input, order: Sequence[int]) -> str:
        """Returns an input with its axes in some order; transposes it if it must."""
        order = tuple(order)
        if not isinstance(one, Value):
            return self.constant(one.transpose(order) if one.ndim else one)
        tensor = self.tensors[one]
        return tensor.name if tensor.order == order else self.transpose(tensor, order)

    def transpose(self, tensor: Tensor, order: Sequence[int]) -> str:
        """Returns a tensor with its axes in another order; once for each order."""
        key = tensor.name, tuple(order)
        if key not in self._known:
            perm = [tensor.axis(axis) for axis in order]
            self._known[key] = self.add("Transpose", [tensor.name], perm=perm)
        return self._known[key]

    def plain(self, one: Input) -> str:
        """Returns an input with its axes in JAX's order."""
        rank = len(one.shape)
        return self.ordered(one, range(rank))

    def reshape(self, name: str, sides: Sequence[int]) -> str:
        """Returns a tensor in another shape, one side of which may be the batch's."""
        if sum(map(depends_on_batch, sides)) > 1:
            raise UserError("onnx: a shape in which two sides depend on the batch")
        shape = [-1 if depends_on_batch(side) else side for side in sides]
        return self.add("Reshape", [name, self.constant(shape, np.int64)])

    def shape(self, sides: Sequence[int]) -> str:
        """Returns the name of a shape that may hold the number of images."""
        if not any(map(depends_on_batch, sides)):
            return self.constant(sides, np.int64)
        if "batch" not in self._known:
            whole = self.add("Shape", [IMAGES])
            first = self.constant([0], np.int64)
            self._known["batch"] = self.add("Gather", [whole, first], axis=0)
        batch, parts = self._known["batch"], []
        for side in sides:
            if not depends_on_batch(side):
                parts.append(self.constant([side], np.int64))
            elif side == BATCH:
                parts.append(batch)
            else:
                factor = self.constant([side // BATCH], np.int64)
                parts.append(self.add("Mul", [batch, factor]))
        return self.add("Concat", parts, axis=0)

    def finish(self, output: Input) -> None:
        """Names the model's output, and leaves out what nothing needs."""
        self.nodes.append(
            helper.make_node("Identity", [self.plain(output)], [LOGITS], LOGITS)
        )
        self._rename_last()
        needed, kept = {LOGITS}, []
        for node in reversed(self.nodes):
            if needed.intersection(node.output):
                needed.update(node.input)
                kept.append(node)
        self.nodes = kept[::-1]
        self.initializers = {
            name: one for name, one in self.initializers.items() if name in needed
        }

    def _rename_last(self) -> None:
        """Lets the node that computes the output have its name, where one does."""
        *nodes, last = self.nodes
        readers = sum(list(node.input).count(last.input[0]) for node in nodes)
        for node in nodes:
            if list(node.output) == list(last.input) and not readers:
                node.output[0] = LOGITS
                self.nodes = nodes


def refusal(operation: Operation, why: str = "") -> UserError:
    """Returns the error for an operation that cannot be written."""
    where = f" ({operation.source})" if operation.source else ""
    known = f"; {why}" if why else ""
    return UserError(
        f"onnx: JAX's operation {operation.name!r}{where} cannot be exported{known}; "
        "choices: --format stablehlo, which takes every operation"
    )
