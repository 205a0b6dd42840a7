"""A traced function as a list of operations that passes can rewrite.

    graph = trace(function, (32, 32, 3), jnp.float32)
    logits = graph(images)

It is JAX's jaxpr with calls inlined, constant expressions evaluated, and unused
operations removed.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from kdjax.runtime import equations, private_names

BATCH = 7919
"""The batch's size in a traced graph: a prime that no other side is a multiple of.

JAX's symbolic sizes fail in networks that call `len(images)`.
"""


@dataclasses.dataclass(eq=False)
class Value:
    """The shape and dtype of a value.

    Attributes:
        shape: its sizes; some depend on the batch's size: see `depends_on_batch`.
        dtype: of its elements.
    """

    shape: tuple[int, ...]
    dtype: np.dtype


Input = Value | np.ndarray
"""A computed value, or a constant."""


@dataclasses.dataclass(eq=False)
class Operation:
    """One operation of a graph.

    Attributes:
        name: of JAX's primitive, or one of `OWN`.
        inputs: each a `Value` or, if it is constant, a NumPy array.
        outputs: the values that it computes.
        params: the primitive's parameters.
        source: the line of Python that it comes from.
        primitive: JAX's primitive; None for those of `OWN`.
    """

    name: str
    inputs: list[Any]
    outputs: list[Value]
    params: dict[str, Any]
    source: str = ""
    primitive: Any = None

    @property
    def values(self) -> list[Value]:
        """The inputs that are not constants."""
        return [one for one in self.inputs if isinstance(one, Value)]

    @property
    def output(self) -> Value:
        """The only output."""
        (output,) = self.outputs
        return output

    def __call__(self, *inputs: Any, batch: Any = BATCH) -> list[Any]:
        """Computes the outputs for a batch of any size."""
        params = {key: _for_batch(one, batch) for key, one in self.params.items()}
        if self.primitive is None:
            results = OWN[self.name](*inputs, **params)
            return results if isinstance(results, list) else [results]
        if self.name in BIASED:  # a third input, if there is one, is added
            out = self.primitive.bind(*inputs[:2], **params)
            return [out + inputs[2] if len(inputs) > 2 else out]
        out = self.primitive.bind(*inputs, **params)
        return list(out) if self.primitive.multiple_results else [out]


BIASED = ("conv_general_dilated", "dot_general")
"""Operations that a pass may give a bias: a constant third input, on the last axis."""


def _average_pool(x: jax.Array, **params: Any) -> jax.Array:
    sums = jax.lax.reduce_window_sum_p.bind(x, **params)
    return sums / math.prod(params["window_dimensions"])


OWN: dict[str, Callable[..., Any]] = {
    "affine": lambda x, scale, shift: x * scale + shift,
    "average_pool": _average_pool,
    "mean": lambda x, axes: jnp.mean(x, axes),
    "split": lambda x, sizes, axis: list(jax.lax.split(x, sizes, axis)),
}
"""Operations that passes write in place of several of JAX's."""


def _broadcast(x: np.ndarray, **params: Any) -> np.ndarray:
    sides = np.ones(len(params["shape"]), int)
    sides[list(params["broadcast_dimensions"])] = x.shape
    return np.broadcast_to(x.reshape(sides), params["shape"])


_OF_CONSTANTS: dict[str, Callable[..., np.ndarray]] = {
    "add": lambda x, y, **_: np.add(x, y),
    "broadcast_in_dim": _broadcast,
    "mul": lambda x, y, **_: np.multiply(x, y),
    "rsqrt": lambda x, **_: 1 / np.sqrt(x),
}
"""Arithmetic with constants that NumPy does, as JAX would compile it per shape."""


@dataclasses.dataclass(eq=False)
class Graph:
    """Operations, in the order in which they are computed.

    Attributes:
        input: the images.
        output: the logits.
        operations: each one after those that compute its inputs.
    """

    input: Value
    output: Input
    operations: list[Operation]

    def __call__(self, images: jax.Array) -> jax.Array:
        """Computes the output; also under `jax.jit` and `jax.export`."""
        env: dict[Value, Any] = {self.input: images}

        def read(one: Input) -> Any:
            return env[one] if isinstance(one, Value) else jnp.asarray(one)

        for operation in self.operations:
            inputs = map(read, operation.inputs)
            results = operation(*inputs, batch=images.shape[0])
            env.update(zip(operation.outputs, results, strict=True))
        return read(self.output)

    def producers(self) -> dict[Value, Operation]:
        """Returns the operation that computes each value."""
        return {
            output: operation
            for operation in self.operations
            for output in operation.outputs
        }

    def uses(self) -> dict[Value, list[Operation]]:
        """Returns the operations that read each value, once for each reading."""
        uses: dict[Value, list[Operation]] = {}
        for operation in self.operations:
            for value in operation.values:
                uses.setdefault(value, []).append(operation)
        return uses

    def prune(self) -> None:
        """Removes the operations whose results are not used."""
        needed = {self.output} if isinstance(self.output, Value) else set()
        kept = []
        for operation in reversed(self.operations):
            if needed.intersection(operation.outputs):
                needed.update(operation.values)
                kept.append(operation)
        self.operations = kept[::-1]

    def replace(self, old: Value, new: Input) -> None:
        """Replaces a value by another one wherever it is read."""
        for operation in self.operations:
            operation.inputs = [new if one is old else one for one in operation.inputs]
        if self.output is old:
            self.output = new


def depends_on_batch(side: int) -> bool:
    """Returns whether an axis's size is the batch's size, or a multiple of it."""
    return side >= BATCH and side % BATCH == 0


def _for_batch(param: Any, batch: Any) -> Any:
    """Returns an operation's parameter for another batch size."""
    if isinstance(param, tuple):
        sides = [_for_batch(one, batch) for one in param]
        return type(param)(*sides) if hasattr(param, "_fields") else tuple(sides)
    if type(param) is int and depends_on_batch(param):
        return param // BATCH * batch
    return param


def trace(
    function: Callable[[jax.Array], jax.Array],
    image_shape: tuple[int, ...],
    dtype: Any,
) -> Graph:
    """Returns the graph of a function of a batch of images, for any batch size.

    Args:
        function: of images `[N, *image_shape]` to one array.
        image_shape: of one image.
        dtype: of the images.
    """
    spec = jax.ShapeDtypeStruct((BATCH, *image_shape), dtype)
    closed = jax.make_jaxpr(function)(spec)
    images = Value(spec.shape, np.dtype(dtype))
    operations: list[Operation] = []
    constants = [np.asarray(const) for const in closed.consts]
    (output,) = _inline(closed.jaxpr, constants, [images], operations)
    graph = Graph(images, output, operations)
    graph.prune()
    return graph


def _inline(
    jaxpr: core.Jaxpr,
    constants: Sequence[Input],
    inputs: Sequence[Input],
    operations: list[Operation],
    caller: str = "",
) -> list[Input]:
    """Appends a jaxpr's operations and returns its outputs.

    Args:
        jaxpr: the function's.
        constants: the jaxpr's.
        inputs: the jaxpr's arguments.
        operations: the list to append to.
        caller: the line of Python that calls it, for operations in JAX's own code.
    """
    env: dict[Any, Input] = {
        **dict(zip(jaxpr.constvars, constants, strict=True)),
        **dict(zip(jaxpr.invars, inputs, strict=True)),
    }

    def read(var: Any) -> Input:
        if isinstance(var, core.Literal):
            return np.asarray(var.val, getattr(var.aval, "dtype", None))
        return env[var]

    results: Sequence[Input]
    for eqn in jaxpr.eqns:
        arguments = [read(var) for var in eqn.invars]
        source = private_names.source_line(eqn) or caller
        if eqn.primitive.name in _IDENTITIES:
            results = arguments
        elif (called := equations.called(eqn)) is not None:
            consts = [np.asarray(const) for const in called.consts]
            results = _inline(called.jaxpr, consts, arguments, operations, source)
        elif eqn.primitive.name == "scan" and _is_of_layers(eqn, arguments):
            results = _unroll(eqn, arguments, operations, source)
        else:
            results = _apply(eqn, arguments, operations, source)
        env.update(zip(eqn.outvars, results, strict=True))
    return [read(var) for var in jaxpr.outvars]


_IDENTITIES = ("copy", "copy_p", "optimization_barrier", "stop_gradient")
"""Primitives that return their input unchanged."""


def _is_of_layers(eqn: Any, inputs: Sequence[Input]) -> bool:
    """Returns whether a loop runs over the weights of equal layers, as in `nn.scan`.

    It must return nothing but its carry.
    """
    fixed = eqn.params["num_consts"] + eqn.params["num_carry"]
    collected = eqn.outvars[eqn.params["num_carry"] :]
    dropped = all(isinstance(var, jax.core.DropVar) for var in collected)
    return dropped and not any(isinstance(one, Value) for one in inputs[fixed:])


def _unroll(
    eqn: Any, inputs: Sequence[Input], operations: list[Operation], source: str
) -> list[Input]:
    """Appends the operations of every iteration of a loop."""
    params, body = eqn.params, eqn.params["jaxpr"]
    first, last = params["num_consts"], params["num_consts"] + params["num_carry"]
    consts, carry, rows = inputs[:first], inputs[first:last], inputs[last:]
    rounds = range(params["length"])
    for number in reversed(rounds) if params["reverse"] else rounds:
        arguments = [*consts, *carry, *(np.asarray(row)[number] for row in rows)]
        own = [np.asarray(const) for const in body.consts]
        results = _inline(body.jaxpr, own, arguments, operations, source)
        carry = results[: params["num_carry"]]
    collected = len(eqn.outvars) - len(carry)
    return [*carry, *[np.zeros(0)] * collected]  # dropped: see `_is_of_layers`


def _apply(
    eqn: Any, inputs: list[Input], operations: list[Operation], source: str
) -> Sequence[Input]:
    """Evaluates an equation of constants; appends the operation of any other one."""
    outputs = [Value(var.aval.shape, np.dtype(var.aval.dtype)) for var in eqn.outvars]
    operation = Operation(
        eqn.primitive.name,
        inputs,
        outputs,
        dict(eqn.params),
        source,
        eqn.primitive,
    )
    fixed = not any(depends_on_batch(side) for one in outputs for side in one.shape)
    if fixed and not operation.values:
        if operation.name in _OF_CONSTANTS:
            return [_OF_CONSTANTS[operation.name](*inputs, **operation.params)]
        return [np.asarray(result) for result in operation(*inputs)]
    operations.append(operation)
    return outputs
