"""Convolutions, dense layers, pooling and sums."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from kdjax.export.graph import Operation, Value
from kdjax.export.onnx.builder import Builder, Tensor, channels_first, refusal


def _bias(builder: Builder, operation: Operation) -> list[str]:
    return [builder.constant(one.reshape(-1)) for one in operation.inputs[2:]]


def _convolution(builder: Builder, operation: Operation) -> Tensor:
    data, weights, *_ = operation.inputs
    params = operation.params
    numbers = params["dimension_numbers"]
    if not isinstance(data, Value) or isinstance(weights, Value):
        raise refusal(operation, "its weights are computed from the images")
    if params["batch_group_count"] != 1 or set(params["lhs_dilation"]) != {1}:
        raise refusal(operation, "it is a transposed or batch-grouped one")
    padding = params["padding"]
    if min(min(pair) for pair in padding) < 0:
        raise refusal(operation, "its padding is negative")
    node = builder.add(
        "Conv",
        [
            builder.ordered(data, numbers.lhs_spec),
            builder.constant(weights.transpose(numbers.rhs_spec)),
            *_bias(builder, operation),
        ],
        kernel_shape=[weights.shape[axis] for axis in numbers.rhs_spec[2:]],
        strides=list(params["window_strides"]),
        pads=[low for low, _ in padding] + [high for _, high in padding],
        dilations=list(params["rhs_dilation"]),
        group=params["feature_group_count"],
    )
    return Tensor(node, tuple(numbers.out_spec))


def _dot(builder: Builder, operation: Operation) -> Tensor:
    """Writes a dense layer as Gemm or MatMul, other products of tensors as Einsum."""
    left, right, *_ = operation.inputs
    contracted, batched = operation.params["dimension_numbers"]
    if isinstance(left, Value) and not isinstance(right, Value) and not batched[0]:
        return _dense(builder, operation, left, right, *contracted)
    return _einsum(builder, operation)


def _dense(
    builder: Builder,
    operation: Operation,
    left: Value,
    weights: np.ndarray,
    summed: Sequence[int],
    rows: Sequence[int],
) -> Tensor:
    """Writes the product of a value and constant weights."""
    tensor = builder.tensors[left]
    # The axes that are summed over, in the order in which they lie: no transposition.
    row = dict(zip(summed, rows, strict=True))
    summed = sorted(summed, key=tensor.axis)
    kept = [axis for axis in tensor.order if axis not in row]
    columns = [axis for axis in range(weights.ndim) if axis not in rows]
    matrix = weights.transpose([*(row[axis] for axis in summed), *columns])
    width = math.prod(weights.shape[axis] for axis in columns)
    inner = math.prod(left.shape[axis] for axis in summed)
    matrix = matrix.reshape(inner, width)
    name = builder.ordered(left, [*kept, *summed])
    sides = [left.shape[axis] for axis in kept]
    if len(summed) > 1:
        if len(kept) == 1:
            name = builder.add("Flatten", [name], axis=1)
        else:
            name = builder.reshape(name, [*sides, inner])
    bias = _bias(builder, operation)
    if len(kept) == 1:
        name = builder.add("Gemm", [name, builder.constant(matrix), *bias])
    else:
        name = builder.add("MatMul", [name, builder.constant(matrix)])
        if bias:
            name = builder.add("Add", [name, *bias])
    # JAX's output: the axes of the left side that stay, then the weights'.
    order = [sorted(kept).index(axis) for axis in kept]
    order += [len(kept) + number for number in range(len(columns))]
    if len(columns) != 1:
        widths = [weights.shape[axis] for axis in columns]
        name = builder.reshape(name, [*sides, *widths])
    return Tensor(name, tuple(order))


def _einsum(builder: Builder, operation: Operation) -> Tensor:
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    (left_sum, right_sum), (left_batch, right_batch) = operation.params[
        "dimension_numbers"
    ]
    left, right = operation.inputs[:2]
    names = [[""] * len(left.shape), [""] * len(right.shape)]
    for one, other in (*zip(left_batch, right_batch), *zip(left_sum, right_sum)):  # noqa: B905
        names[0][one] = names[1][other] = next(letters)
    free: list[str] = []
    for side in names:
        for axis, letter in enumerate(side):
            if not letter:
                side[axis] = next(letters)
                free.append(side[axis])
    batch = [names[0][axis] for axis in left_batch]
    inputs, terms = [], []
    for one, side in zip((left, right), names, strict=True):
        tensor = builder.tensor(one)
        inputs.append(tensor.name)
        terms.append("".join(side[axis] for axis in tensor.order))
    equation = f"{','.join(terms)}->{''.join([*batch, *free])}"
    node = builder.add("Einsum", inputs, equation=equation)
    if bias := _bias(builder, operation):
        node = builder.add("Add", [node, *bias])
    return Tensor(node, tuple(range(len(operation.output.shape))))


def _pool(builder: Builder, operation: Operation) -> Tensor:
    (value,), params = operation.inputs, operation.params
    order = channels_first(len(value.shape))
    window = [params["window_dimensions"][axis] for axis in order]
    strides = [params["window_strides"][axis] for axis in order]
    padding = [params["padding"][axis] for axis in order]
    dilations = [*params["base_dilation"], *params["window_dilation"]]
    if window[:2] != [1, 1] or strides[:2] != [1, 1] or set(dilations) != {1}:
        raise refusal(operation, "it pools over channels or with dilation")
    attributes: dict[str, Any] = {
        "kernel_shape": window[2:],
        "strides": strides[2:],
        "pads": [low for low, _ in padding[2:]] + [high for _, high in padding[2:]],
    }
    name = builder.ordered(value, order)
    if operation.name == "reduce_window_max":
        return Tensor(builder.add("MaxPool", [name], **attributes), order)
    name = builder.add("AveragePool", [name], count_include_pad=1, **attributes)
    if operation.name == "average_pool":
        return Tensor(name, order)
    terms = builder.constant(math.prod(window), np.float32)
    return Tensor(builder.add("Mul", [name, terms]), order)


_REDUCTIONS = {
    "mean": "ReduceMean",
    "reduce_max": "ReduceMax",
    "reduce_min": "ReduceMin",
    "reduce_prod": "ReduceProd",
    "reduce_sum": "ReduceSum",
}


def _reduce(builder: Builder, operation: Operation) -> Tensor:
    (value,), reduced = operation.inputs, operation.params["axes"]
    tensor, rank = builder.tensors[value], len(value.shape)
    kept = [axis for axis in tensor.order if axis not in reduced]
    order = tuple(sorted(kept).index(axis) for axis in kept)
    places = sorted(tensor.axis(axis) for axis in reduced)
    if operation.name == "mean" and rank > 2 and places == list(range(2, rank)):
        node = builder.add("GlobalAveragePool", [tensor.name])
        return Tensor(builder.add("Flatten", [node], axis=1), order)
    kind = _REDUCTIONS[operation.name]
    # The axes became an input, of the sum first.
    if builder.opset >= (13 if kind == "ReduceSum" else 18):
        inputs = [tensor.name, builder.constant(places, np.int64)]
        return Tensor(builder.add(kind, inputs, keepdims=0), order)
    return Tensor(builder.add(kind, [tensor.name], axes=places, keepdims=0), order)


def _argmax(builder: Builder, operation: Operation) -> Tensor:
    (value,), (axis,) = operation.inputs, operation.params["axes"]
    kind = "ArgMax" if operation.name == "argmax" else "ArgMin"
    node = builder.add(kind, [builder.plain(value)], axis=axis, keepdims=0)
    if operation.output.dtype != np.int64:
        node = builder.add("Cast", [node], to=6)  # int32
    return Tensor(node, tuple(range(len(operation.output.shape))))


CONVERTERS = {
    **dict.fromkeys(_REDUCTIONS, _reduce),
    "argmax": _argmax,
    "argmin": _argmax,
    "average_pool": _pool,
    "conv_general_dilated": _convolution,
    "dot_general": _dot,
    "reduce_window_max": _pool,
    "reduce_window_sum": _pool,
}
