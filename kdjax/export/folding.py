"""Reduces operations: BatchNorm is folded into the convolutions, among others.

Operations that scale and shift channels by constants (BatchNorm in inference mode, a
bias, the images' normalisation) become one 'affine' operation, which is folded into the
weights of a convolution or a dense layer before it.
"""

import math

import numpy as np

from kdjax.export.graph import BATCH, BIASED, Graph, Input, Operation, Value

_ELEMENTWISE_WITH_CONSTANT = ("add", "sub", "mul", "div", "max", "min", "pow")


def fold(graph: Graph) -> Graph:
    """Folds constants into the weights, in place, and returns the graph."""
    _see_through_broadcasts(graph)
    for operation in graph.operations:
        _to_affine(operation)
    _merge_affine(graph)
    _into_weights(graph)
    _to_averages(graph)
    _flatten_into_dense(graph)
    _to_split(graph)
    for operation in graph.operations:
        operation.inputs = [_narrowed(one) for one in operation.inputs]
    graph.prune()
    return graph


def _narrowed(one: Input) -> Input:
    """Returns a constant, which a pass has computed in float64, as float32."""
    if isinstance(one, np.ndarray) and one.dtype == np.float64:
        return one.astype(np.float32)
    return one


def _see_through_broadcasts(graph: Graph) -> None:
    """Lets elementwise operations read constants before they are broadcast.

    Such a constant keeps its rank; the axes along which it is repeated get length 1.
    """
    producers = graph.producers()
    for operation in graph.operations:
        if operation.name not in _ELEMENTWISE_WITH_CONSTANT:
            continue
        for place, one in enumerate(operation.inputs):
            other = operation.inputs[1 - place]
            source = producers.get(one) if isinstance(one, Value) else None
            if source is None or source.name != "broadcast_in_dim":
                continue
            constant = source.inputs[0]
            if isinstance(constant, Value) or other.shape != operation.output.shape:
                continue
            sides = [1] * len(source.output.shape)
            for axis, side in zip(
                source.params["broadcast_dimensions"], constant.shape, strict=True
            ):
                sides[axis] = side
            operation.inputs[place] = constant.reshape(sides)


def _to_affine(operation: Operation) -> None:
    """Rewrites an operation that scales or shifts channels by a constant."""
    if operation.name not in ("add", "sub", "mul", "div"):
        return
    first, second = operation.inputs
    constant, value = (first, second) if isinstance(second, Value) else (second, first)
    if isinstance(constant, Value) or not isinstance(value, Value):
        return
    shape = operation.output.shape
    if (
        value.shape != shape
        or operation.output.dtype != np.float32
        or constant.size not in (1, shape[-1] if shape else 1)
        or (constant.size > 1 and constant.shape[-1:] != shape[-1:])
    ):
        return
    number = constant.astype(np.float64).reshape(-1)
    one, zero = np.ones(1), np.zeros(1)
    match operation.name, value is first:
        case "add", _:
            scale, shift = one, number
        case "sub", True:
            scale, shift = one, -number
        case "sub", False:
            scale, shift = -one, number
        case "mul", _:
            scale, shift = number, zero
        case "div", True:
            scale, shift = 1 / number, zero
        case _:
            return
    channels = (shape[-1],) if shape else (1,)
    sides = (1,) * (len(shape) - 1) + channels if shape else ()
    operation.name, operation.primitive, operation.params = "affine", None, {}
    operation.inputs = [
        value,
        *(np.broadcast_to(part, channels).reshape(sides) for part in (scale, shift)),
    ]


def _alone(graph: Graph, uses: dict[Value, list[Operation]], value: Value) -> bool:
    """Returns whether only one operation reads a value."""
    return len(uses.get(value, ())) == 1 and graph.output is not value


def _merge_affine(graph: Graph) -> None:
    """Merges two consecutive affine operations."""
    producers, uses = graph.producers(), graph.uses()
    for operation in graph.operations:
        if operation.name != "affine":
            continue
        value, scale, shift = operation.inputs
        before = producers.get(value)
        if before and before.name == "affine" and _alone(graph, uses, value):
            value, old_scale, old_shift = before.inputs
            operation.inputs = [value, old_scale * scale, old_shift * scale + shift]
    graph.prune()


def _into_weights(graph: Graph) -> None:
    """Folds affine operations into the convolution or dense layer before them."""
    producers, uses = graph.producers(), graph.uses()
    for operation in graph.operations:
        if operation.name != "affine":
            continue
        value, scale, shift = operation.inputs
        before = producers.get(value)
        if before is None or not _alone(graph, uses, value):
            continue
        axis = _channel_axis(before)
        if axis is None:
            continue
        data, weights, *_ = before.inputs
        sides = [1] * weights.ndim
        sides[axis] = -1
        weights = weights.astype(np.float64) * scale.reshape(sides)
        before.inputs = [data, weights, shift]
        graph.replace(operation.output, value)
    graph.prune()


def _channel_axis(operation: Operation) -> int | None:
    """Returns the axis of the weights that becomes the last one of the output."""
    if operation.name not in BIASED or len(operation.inputs) > 2:
        return None
    data, weights = operation.inputs
    if not isinstance(data, Value) or isinstance(weights, Value):
        return None
    if operation.name == "dot_general":
        (_, contracted), (_, batched) = operation.params["dimension_numbers"]
        free = set(range(weights.ndim)) - {*contracted, *batched}
        return free.pop() if len(free) == 1 else None
    numbers = operation.params["dimension_numbers"]
    last = len(numbers.out_spec) - 1
    grouped = operation.params["batch_group_count"] > 1
    return None if grouped or numbers.out_spec[1] != last else numbers.rhs_spec[0]


def _to_averages(graph: Graph) -> None:
    """Replaces sums that are divided by the number of their terms by averages."""
    producers, uses = graph.producers(), graph.uses()
    for operation in graph.operations:
        if operation.name != "affine":
            continue
        value, scale, shift = operation.inputs
        before = producers.get(value)
        if before is None or not _alone(graph, uses, value) or shift.any():
            continue
        source, params = before.inputs[0], before.params
        if before.name == "reduce_sum":
            name, params = "mean", {"axes": tuple(params["axes"])}
            terms = math.prod(source.shape[axis] for axis in params["axes"])
        elif before.name == "reduce_window_sum":
            name, terms = "average_pool", math.prod(params["window_dimensions"])
        else:
            continue
        # Not over the images: their number is unknown.
        if terms % BATCH and np.allclose(scale * terms, 1, 1e-6):
            operation.name, operation.inputs = name, [source]
            operation.params = params
    graph.prune()


def _flatten_into_dense(graph: Graph) -> None:
    """Lets a dense layer after flattened maps read the maps themselves.

    It then sums over their three axes, in any memory layout.
    """
    producers, uses = graph.producers(), graph.uses()
    for operation in graph.operations:
        if _channel_axis(operation) is None and len(operation.inputs) < 3:
            continue
        if operation.name != "dot_general":
            continue
        value, weights, *bias = operation.inputs
        before = producers.get(value)
        if not before or before.name != "reshape" or not _alone(graph, uses, value):
            continue
        (maps,) = before.inputs
        dimensions = (((1,), (0,)), ((), ()))
        if (
            operation.params["dimension_numbers"] != dimensions
            or maps.shape[0] != BATCH
            or value.shape != (BATCH, math.prod(maps.shape[1:]))
        ):
            continue
        axes = tuple(range(1, len(maps.shape)))
        weights = weights.reshape(*maps.shape[1:], weights.shape[-1])
        operation.inputs = [maps, weights, *bias]
        operation.params = {
            **operation.params,
            "dimension_numbers": ((axes, tuple(range(len(axes)))), ((), ())),
        }
    graph.prune()


def _to_split(graph: Graph) -> None:
    """Merges slices that together are the whole of a value into one split."""
    operations = []
    done: set[Operation] = set()
    uses = graph.uses()
    for operation in graph.operations:
        if operation in done:
            continue
        operations.append(operation)
        if (part := _part(operation)) is None:
            continue
        (value,), axis = operation.inputs, part[0]
        spans = [(_part(one), one) for one in uses[value]]
        along = [(span, one) for span, one in spans if span and span[0] == axis]
        along.sort(key=lambda pair: pair[0])
        parts = [one for _, one in along]
        starts = [*(start for (_, start, _), _ in along), value.shape[axis]]
        ends = [0, *(end for (_, _, end), _ in along)]
        if len(parts) < 2 or ends != starts:
            continue
        sizes = tuple(end - start for (_, start, end), _ in along)
        outputs = [one.output for one in parts]
        operations[-1] = Operation(
            "split", [value], outputs, {"sizes": sizes, "axis": axis}, operation.source
        )
        done |= set(parts)
    graph.operations = operations


def _part(operation: Operation) -> tuple[int, int, int] | None:
    """Returns axis, start and end of a slice along one axis."""
    if operation.name != "slice" or set(operation.params["strides"] or (1,)) != {1}:
        return None
    (value,) = operation.inputs
    starts, ends = operation.params["start_indices"], operation.params["limit_indices"]
    cut = [
        (axis, start, end)
        for axis, (start, end, side) in enumerate(
            zip(starts, ends, value.shape, strict=True)
        )
        if (start, end) != (0, side)
    ]
    return cut[0] if len(cut) == 1 else None
