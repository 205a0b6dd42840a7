"""Operations that move elements and compute nothing."""

import math
from collections.abc import Sequence

import numpy as np

from kdjax.export.graph import Operation, Value
from kdjax.export.onnx.builder import Builder, Tensor, refusal

_END = np.iinfo(np.int64).max


def groups(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Returns which axes of a shape become which of another one, in order.

    `groups([8, 4, 6], [8, 4, 2, 3])` is `[([0], [0]), ([1], [1]), ([2], [2, 3])]`. Each
    group has the same number of elements on both sides; a side of 1 may be alone.
    """
    found: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        if i < len(old) and j < len(new) and old[i] == new[j]:
            found.append(([i], [j]))
            i, j = i + 1, j + 1
        elif i < len(old) and old[i] == 1:
            found.append(([i], []))
            i += 1
        elif j < len(new) and new[j] == 1:
            found.append(([], [j]))
            j += 1
        else:
            first, second = [i], [j]
            left, right = old[i], new[j]
            while left != right:
                if left < right:
                    first.append(first[-1] + 1)
                    left *= old[first[-1]]
                else:
                    second.append(second[-1] + 1)
                    right *= new[second[-1]]
            found.append((first, second))
            i, j = first[-1] + 1, second[-1] + 1
    return found


def _reshape(builder: Builder, operation: Operation) -> Tensor:
    (value,) = operation.inputs
    return _reshaped(builder, value, operation.output.shape)


def _reshaped(builder: Builder, value: Value, shape: Sequence[int]) -> Tensor:
    """Reshapes a tensor in the order in which its axes lie, as far as that goes."""
    tensor = builder.tensors[value]
    parts = groups(value.shape, shape)
    group_of = {axis: part for part in parts for axis in part[0]}
    wanted: list[int] = []
    order: list[int] = []
    for axis in tensor.order:
        old, new = group_of[axis]
        if axis not in wanted:  # the first of its group that lies there
            wanted += old
            order += new
    order += [axis for old, new in parts if not old for axis in new]
    name = builder.ordered(value, wanted)
    if all(len(old) == len(new) == 1 for old, new in parts):
        return Tensor(name, tuple(order))
    return Tensor(builder.reshape(name, [shape[axis] for axis in order]), tuple(order))


def _squeeze(builder: Builder, operation: Operation) -> Tensor:
    return _reshape(builder, operation)


def _transpose(builder: Builder, operation: Operation) -> Tensor:
    (value,), permutation = operation.inputs, operation.params["permutation"]
    tensor = builder.tensors[value]
    # The axes are renamed; nothing is moved.
    new = {old: axis for axis, old in enumerate(permutation)}
    return Tensor(tensor.name, tuple(new[axis] for axis in tensor.order))


def _broadcast(builder: Builder, operation: Operation) -> Tensor:
    (source,), shape = operation.inputs[:1], operation.output.shape
    places = operation.params["broadcast_dimensions"]
    sides = [1] * len(shape)
    for axis, side in zip(places, source.shape, strict=True):
        sides[axis] = side
    order: tuple[int, ...] = tuple(range(len(shape)))
    if not isinstance(source, Value):
        name = builder.constant(source.reshape(sides))
    else:
        name, order = _reshaped(builder, source, sides)
    if tuple(sides) == tuple(shape):
        return Tensor(name, order)
    # Sides that are there already stay as they are: 1 in ONNX's Expand.
    target = [1 if sides[axis] == shape[axis] else shape[axis] for axis in order]
    return Tensor(builder.add("Expand", [name, builder.shape(target)]), order)


def _concatenate(builder: Builder, operation: Operation) -> Tensor:
    order = builder.tensors[operation.values[0]].order
    names = [builder.ordered(one, order) for one in operation.inputs]
    axis = order.index(operation.params["dimension"])
    return Tensor(builder.add("Concat", names, axis=axis), order)


def _split(builder: Builder, operation: Operation) -> list[Tensor]:
    (value,), params = operation.inputs, operation.params
    tensor, sizes = builder.tensors[value], params["sizes"]
    names = builder.add(
        "Split",
        [tensor.name, builder.constant(sizes, np.int64)],
        len(sizes),
        axis=tensor.axis(params["axis"]),
    )
    names = [names] if len(sizes) == 1 else names
    return [Tensor(name, tensor.order) for name in names]


def _sliced(
    builder: Builder,
    value: Value,
    starts: Sequence[int],
    ends: Sequence[int],
    steps: Sequence[int],
) -> Tensor:
    tensor = builder.tensors[value]
    cuts = [
        (start, end, tensor.axis(axis), step)
        for axis, (start, end, step, side) in enumerate(
            zip(starts, ends, steps, value.shape, strict=True)
        )
        if (start, end, step) != (0, side, 1)
    ]
    if not cuts:
        return tensor
    columns = [builder.constant(column, np.int64) for column in zip(*cuts, strict=True)]
    return Tensor(builder.add("Slice", [tensor.name, *columns]), tensor.order)


def _slice(builder: Builder, operation: Operation) -> Tensor:
    (value,), params = operation.inputs, operation.params
    steps = params["strides"] or (1,) * len(value.shape)
    starts, ends = params["start_indices"], params["limit_indices"]
    return _sliced(builder, value, starts, ends, steps)


def _dynamic_slice(builder: Builder, operation: Operation) -> Tensor:
    value, *indices = operation.inputs
    if not isinstance(value, Value) or any(isinstance(one, Value) for one in indices):
        raise refusal(operation, "where it begins is computed from the images")
    sizes = operation.params["slice_sizes"]
    starts = [
        min(max(int(index), 0), side - size)
        for index, side, size in zip(indices, value.shape, sizes, strict=True)
    ]
    ends = [start + size for start, size in zip(starts, sizes, strict=True)]
    return _sliced(builder, value, starts, ends, [1] * len(sizes))


def _reverse(builder: Builder, operation: Operation) -> Tensor:
    (value,) = operation.inputs
    tensor = builder.tensors[value]
    axes = [tensor.axis(axis) for axis in operation.params["dimensions"]]
    columns = ([-1] * len(axes), [-_END] * len(axes), axes, [-1] * len(axes))
    names = [builder.constant(column, np.int64) for column in columns]
    return Tensor(builder.add("Slice", [tensor.name, *names]), tensor.order)


def _pad(builder: Builder, operation: Operation) -> Tensor:
    value, filler = operation.inputs
    config = operation.params["padding_config"]
    if any(inner for _, _, inner in config) or isinstance(filler, Value):
        raise refusal(operation, "it pads between the elements")
    tensor = builder.tensors[value]
    pairs = [config[axis] for axis in tensor.order]
    amounts = [low for low, _, _ in pairs] + [high for _, high, _ in pairs]
    inputs = [
        tensor.name,
        builder.constant(amounts, np.int64),
        builder.constant(filler.reshape(()), value.dtype),
    ]
    return Tensor(builder.add("Pad", inputs), tensor.order)


def _gather(builder: Builder, operation: Operation) -> Tensor:
    """Writes `jnp.take(x, constant indices, axis)`."""
    value, indices = operation.inputs
    params = operation.params
    numbers = params["dimension_numbers"]
    axes = numbers.start_index_map
    if (
        not isinstance(value, Value)
        or isinstance(indices, Value)
        or len(axes) != 1
        or numbers.collapsed_slice_dims != tuple(axes)
        or math.prod(indices.shape[:-1]) != indices.size
        or any(
            size != (1 if axis in axes else side)
            for axis, (size, side) in enumerate(
                zip(params["slice_sizes"], value.shape, strict=True)
            )
        )
    ):
        raise refusal(operation, "known is: constant indices along one axis")
    (axis,) = axes
    rows = indices.reshape(indices.shape[:-1])
    # JAX clips indices that are out of range, or was promised that there are none.
    rows = np.clip(rows, 0, value.shape[axis] - 1).astype(np.int64)
    name = builder.add(
        "Gather", [builder.plain(value), builder.constant(rows)], axis=axis
    )
    # ONNX puts the indices' axes where the axis was; JAX's numbers say where they go.
    kept = list(numbers.offset_dims)
    placed = [
        place for place in range(len(operation.output.shape)) if place not in kept
    ]
    order = [*kept[:axis], *placed, *kept[axis:]]
    return Tensor(name, tuple(order))


def _cumulative(builder: Builder, operation: Operation) -> Tensor:
    (value,), params = operation.inputs, operation.params
    tensor = builder.tensors[value]
    axis = builder.constant(tensor.axis(params["axis"]), np.int64)
    reverse = int(params["reverse"])
    node = builder.add("CumSum", [tensor.name, axis], reverse=reverse)
    return Tensor(node, tensor.order)


CONVERTERS = {
    "broadcast_in_dim": _broadcast,
    "concatenate": _concatenate,
    "cumsum": _cumulative,
    "dynamic_slice": _dynamic_slice,
    "gather": _gather,
    "pad": _pad,
    "reshape": _reshape,
    "rev": _reverse,
    "slice": _slice,
    "split": _split,
    "squeeze": _squeeze,
    "transpose": _transpose,
}
