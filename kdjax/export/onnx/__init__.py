"""Networks as ONNX: `[N, C, H, W]` throughout, BatchNorm folded into the convolutions.

    write(Deployed("resnet-20", 10, (32, 32, 3), variables, mean, std), path)

The network's jaxpr is folded (`kdjax.export.folding`) and every operation of it is
written as the ONNX operator that does the same; `CONVERTERS` has them by name.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import onnx
from onnx import defs, helper

from kdjax import __version__
from kdjax.export.deployed import Deployed
from kdjax.export.folding import fold
from kdjax.export.graph import Graph, Operation, trace
from kdjax.export.onnx import elementwise, layers, shapes
from kdjax.export.onnx.builder import (
    IMAGES,
    LOGITS,
    Builder,
    Tensor,
    channels_first,
    refusal,
)
from kdjax.runtime.errors import UserError

OLDEST, DEFAULT = 13, 17
"""The first version of the operators that is written, and the usual one."""

CONVERTERS: dict[str, Callable[[Builder, Operation], Any]] = {
    **elementwise.CONVERTERS,
    **layers.CONVERTERS,
    **shapes.CONVERTERS,
}
"""What writes an operation, by the name of JAX's primitive."""


def newest() -> int:
    """Returns the newest version of the operators that the onnx package knows."""
    return defs.onnx_opset_version()


def write(
    network: Deployed, path: Path, *, uint8: bool = False, opset: int = DEFAULT
) -> None:
    """Writes a network as an ONNX file, checked by onnx itself.

    Its input 'images' is float32 `[N, C, H, W]`, normalised; or with `uint8` uint8
    `[N, H, W, C]` as decoded. Its output 'logits' is float32 `[N, classes]`.

    Args:
        network: what is written.
        path: of the file.
        uint8: whether normalisation is part of the graph.
        opset: the version of ONNX's operators.

    Raises:
        UserError: the version is not known, or the network has an operation that
            cannot be written.
    """
    dtype = jnp.uint8 if uint8 else jnp.float32
    graph = fold(trace(network.apply(uint8), network.image_shape, dtype))
    onnx.save(to_model(graph, opset), path)


def to_model(graph: Graph, opset: int = DEFAULT) -> onnx.ModelProto:
    """Returns the ONNX model of a folded graph.

    Args:
        graph: of images to logits.
        opset: the version of ONNX's operators.

    Raises:
        UserError: see `write`.
    """
    if not OLDEST <= opset <= newest():
        raise UserError(f"opset {opset}; choices: {OLDEST} to {newest()}")
    builder = Builder(opset)
    value = graph.input
    order, sides = channels_first(len(value.shape)), list(value.shape[1:])
    builder.tensors[value] = Tensor(IMAGES, order)
    if value.dtype == np.uint8:  # as decoded
        plain = Tensor(IMAGES, tuple(range(len(order))))
        builder.tensors[value] = Tensor(builder.transpose(plain, order), order)
    else:
        sides = [value.shape[axis] for axis in order[1:]]
    for operation in graph.operations:
        if operation.name not in CONVERTERS:
            raise refusal(operation)
        results = CONVERTERS[operation.name](builder, operation)
        results = results if isinstance(results, list) else [results]
        builder.tensors.update(zip(operation.outputs, results, strict=True))
    builder.finish(graph.output)
    images, logits = (
        helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(one.dtype), ["N", *sides]
        )
        for name, one, sides in (
            (IMAGES, value, sides),
            (LOGITS, graph.output, graph.output.shape[1:]),
        )
    )
    built = helper.make_graph(
        builder.nodes,
        "network",
        [images],
        [logits],
        list(builder.initializers.values()),
    )
    versions = [helper.make_opsetid("", opset)]
    model = helper.make_model(
        built,
        opset_imports=versions,
        ir_version=helper.find_min_ir_version_for(versions),
        producer_name="kdjax",
        producer_version=__version__,
    )
    onnx.checker.check_model(model, full_check=True)
    return model
