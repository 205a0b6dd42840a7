"""What a network outputs, by its name: computed, or its shapes alone."""

import functools
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from kdjax import models
from kdjax.models import Outputs, Variables

Tree = TypeVar("Tree")
"""A tree of arrays."""


def cast(tree: Tree, dtype: jnp.dtype) -> Tree:
    """Returns a tree's arrays in another dtype."""
    return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)


def apply_model(
    name: str,
    num_classes: int,
    compute: jnp.dtype,
    train: bool,
    variables: Variables,
    images: jax.Array,
    key: Callable[[], jax.Array] | None = None,
) -> tuple[Outputs, dict[str, Any]]:
    """Returns a network's outputs and its new BatchNorm statistics.

    Args:
        name: the model's.
        num_classes: the data set's.
        compute: dtype of the computation; statistics keep their own.
        train: whether BatchNorm normalises by the batch, and its statistics move.
        variables: the network's.
        images: `[batch, height, width, channels]`, normalised.
        key: the random key of networks with dropout, in training mode; not called for
            others.
    """
    model = models.create(name, num_classes)
    variables = {**variables, "params": cast(variables["params"], compute)}
    images = cast(images, compute)
    if not train:
        return model.apply(variables, images, train=False), {}
    # Networks without random numbers keep the programs that they always had.
    rngs = {}
    if key is not None and models.needs_key(name, num_classes, images.shape[1:]):
        rngs["rngs"] = {"dropout": key()}
    outputs, mutated = model.apply(
        variables, images, train=True, mutable=["batch_stats"], **rngs
    )
    return outputs, mutated.get("batch_stats", {})


@functools.cache
def output_shapes(
    identity: Hashable,
    name: str,
    num_classes: int,
    shape: tuple[int, int, int, int],
    dtype: jnp.dtype,
    compute: jnp.dtype,
    train: bool,
) -> Outputs:
    """Returns the shapes of a network's outputs for images of a shape and dtype."""
    del identity  # with the name, what the results are kept by
    variables = models.shapes(name, num_classes, shape[1:], dtype)
    images = jax.ShapeDtypeStruct(shape, dtype)

    def apply(variables: Variables, images: jax.Array, key: jax.Array) -> Outputs:
        return apply_model(
            name, num_classes, compute, train, variables, images, lambda: key
        )[0]

    return jax.eval_shape(apply, variables, images, jax.random.key(0))
