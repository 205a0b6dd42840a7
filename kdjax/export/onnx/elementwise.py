"""Operations that act on every element by itself."""

from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import helper

from kdjax.export.graph import Input, Operation, Value
from kdjax.export.onnx.builder import Builder, Tensor, refusal

_SAME = {
    "abs": "Abs",
    "add": "Add",
    "and": "And",
    "ceil": "Ceil",
    "cos": "Cos",
    "div": "Div",
    "eq": "Equal",
    "erf": "Erf",
    "exp": "Exp",
    "floor": "Floor",
    "ge": "GreaterOrEqual",
    "gt": "Greater",
    "le": "LessOrEqual",
    "log": "Log",
    "logistic": "Sigmoid",
    "lt": "Less",
    "max": "Max",
    "min": "Min",
    "mul": "Mul",
    "neg": "Neg",
    "not": "Not",
    "or": "Or",
    "pow": "Pow",
    "sign": "Sign",
    "sin": "Sin",
    "sqrt": "Sqrt",
    "sub": "Sub",
    "tanh": "Tanh",
    "xor": "Xor",
}
"""ONNX's operators by the names of JAX's."""


def _read(builder: Builder, operation: Operation) -> tuple[list[str], tuple[int, ...]]:
    """Returns the inputs with their axes in one order, and that order."""
    rank = len(operation.output.shape)
    full = [one for one in operation.values if len(one.shape) == rank]
    order = builder.tensors[full[0]].order if full else tuple(range(rank))
    return [_aligned(builder, one, order) for one in operation.inputs], order


def _aligned(builder: Builder, one: Input, order: tuple[int, ...]) -> str:
    return builder.ordered(one, order if len(one.shape) == len(order) else ())


def _same(builder: Builder, operation: Operation) -> Tensor:
    names, order = _read(builder, operation)
    return Tensor(builder.add(_SAME[operation.name], names), order)


def _scalar(one: Input) -> float | None:
    """Returns the number that a constant is everywhere, or None."""
    if isinstance(one, Value) or not one.size or (one != one.flat[0]).any():
        return None
    return float(one.flat[0])


def _max(builder: Builder, operation: Operation) -> Tensor:
    value, other = _value_first(operation)
    if _scalar(other) == 0 and isinstance(value, Value):
        tensor = builder.tensors[value]
        return Tensor(builder.add("Relu", [tensor.name]), tensor.order)
    return _same(builder, operation)


def _min(builder: Builder, operation: Operation) -> Tensor:
    value, other = _value_first(operation)
    limit = _scalar(other)
    if limit is None or not isinstance(value, Value):
        return _same(builder, operation)
    tensor = builder.tensors[value]
    bound = builder.constant(limit, operation.output.dtype)
    last = builder.nodes[-1]
    if last.op_type == "Relu" and tensor.name == last.output[0]:
        # Of ReLU and a limit one node; should the ReLU be read elsewhere, it stays.
        low = builder.constant(0, operation.output.dtype)
        inputs = [last.input[0], low, bound]
    else:
        inputs = [tensor.name, "", bound]
    return Tensor(builder.add("Clip", inputs), tensor.order)


def _value_first(operation: Operation) -> tuple[Input, Input]:
    first, second = operation.inputs
    return (first, second) if isinstance(first, Value) else (second, first)


def _clamp(builder: Builder, operation: Operation) -> Tensor:
    low, value, high = operation.inputs
    limits = _scalar(low), _scalar(high)
    if None in limits or not isinstance(value, Value):
        raise refusal(operation, "its limits are no constant numbers")
    tensor = builder.tensors[value]
    bounds = [builder.constant(limit, value.dtype) for limit in limits]
    return Tensor(builder.add("Clip", [tensor.name, *bounds]), tensor.order)


def _affine(builder: Builder, operation: Operation) -> Tensor:
    """Writes scale and shift by channel as BatchNormalization.

    That is one node, and onnxruntime's layout of blocked channels goes through it.
    """
    value, scale, shift = operation.inputs
    tensor = builder.tensors[value]
    rank, name = len(value.shape), tensor.name
    if rank > 2 and tensor.axis(rank - 1) == 1:
        neutral = np.zeros(scale.size, np.float32), np.ones(scale.size, np.float32)
        parts = [scale.reshape(-1), shift.reshape(-1), *neutral]
        inputs = [name, *map(builder.constant, parts)]
        node = builder.add("BatchNormalization", inputs, epsilon=0.0)
        return Tensor(node, tensor.order)
    for kind, constant, without in (("Mul", scale, 1), ("Add", shift, 0)):
        number = _scalar(constant)
        if number == without:
            continue
        other = constant if number is None else np.asarray(number, np.float32)
        name = builder.add(kind, [name, _aligned(builder, other, tensor.order)])
    return Tensor(name, tensor.order)


def _cast(builder: Builder, operation: Operation) -> Tensor:
    names, order = _read(builder, operation)
    target = helper.np_dtype_to_tensor_dtype(operation.output.dtype)
    return Tensor(builder.add("Cast", names, to=target), order)


def _where(builder: Builder, operation: Operation) -> Tensor:
    if len(operation.inputs) != 3:
        raise refusal(operation, "it chooses from more than two values")
    (which, no, yes), order = _read(builder, operation)
    return Tensor(builder.add("Where", [which, yes, no]), order)


def _composed(*steps: tuple[str, Any]) -> Callable[[Builder, Operation], Tensor]:
    """Returns a converter of one input by several operators in turn.

    Args:
        *steps: an operator, and None or the constant that is its second input; with a
            constant first, as `(constant, operator)`.
    """

    def convert(builder: Builder, operation: Operation) -> Tensor:
        (name,), order = _read(builder, operation)
        for kind, constant in steps:
            dtype = operation.output.dtype
            other = [] if constant is None else [builder.constant(constant, dtype)]
            name = builder.add(kind, [name, *other])
        return Tensor(name, order)

    return convert


def _integer_pow(builder: Builder, operation: Operation) -> Tensor:
    (name,), order = _read(builder, operation)
    exponent = operation.params["y"]
    if exponent == 2:
        return Tensor(builder.add("Mul", [name, name]), order)
    power = builder.constant(exponent, operation.output.dtype)
    return Tensor(builder.add("Pow", [name, power]), order)


def _square(builder: Builder, operation: Operation) -> Tensor:
    (name,), order = _read(builder, operation)
    return Tensor(builder.add("Mul", [name, name]), order)


def _not_equal(builder: Builder, operation: Operation) -> Tensor:
    names, order = _read(builder, operation)
    return Tensor(builder.add("Not", [builder.add("Equal", names)]), order)


CONVERTERS: dict[str, Callable[[Builder, Operation], Tensor]] = {
    **dict.fromkeys(_SAME, _same),
    "affine": _affine,
    "clamp": _clamp,
    "convert_element_type": _cast,
    "erfc": _composed(("Erf", None), ("Neg", None), ("Add", 1)),
    "expm1": _composed(("Exp", None), ("Sub", 1)),
    "integer_pow": _integer_pow,
    "log1p": _composed(("Add", 1), ("Log", None)),
    "max": _max,
    "min": _min,
    "ne": _not_equal,
    "rsqrt": _composed(("Sqrt", None), ("Reciprocal", None)),
    "select_n": _where,
    "square": _square,
}
