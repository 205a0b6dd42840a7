"""Teachers' targets as the bank stores them, whether it stores them or not.

A stage is the same whether its teachers' targets come from the bank or are computed in
its steps: what else a config trains must not decide its weights.
"""

from typing import TypeVar

import jax
import jax.numpy as jnp

from kdjax.methods import Method

Tree = TypeVar("Tree")
"""A tree of arrays."""

VERSION = 3
"""Raised when the numbers of targets change; goes into the fingerprints of stages that
read any, and into the names of the bank's folders. In the first version those that were
computed in the step were not rounded, in the second BatchNorm was not folded."""

_SMALLEST = 2.0**-14  # float16's smallest normal number
_SPACING = 2.0**-24  # between the numbers below it


def stored_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """Returns the dtype in which targets are stored; float64 runs are not rounded.

    Args:
        dtype: of the stage's parameters and losses.
    """
    return jnp.dtype(dtype if jnp.dtype(dtype) == jnp.float64 else jnp.float16)


def as_stored(targets: Tree, dtype: jnp.dtype) -> Tree:
    """Returns targets as they are read from the bank.

    Args:
        targets: of a teacher, or of several.
        dtype: of the stage's parameters and losses; the result's.
    """
    if stored_dtype(dtype) == dtype:
        return jax.tree.map(lambda leaf: leaf.astype(dtype), targets)
    return jax.tree.map(lambda leaf: _to_half(leaf.astype(dtype)), targets)


def _to_half(x: jax.Array) -> jax.Array:
    """Returns numbers rounded to the nearest in float16; even ones win ties.

    XLA may drop a conversion to float16 and back, and `reduce_precision` takes what is
    below the smallest normal number for 0.
    """
    tiny = jnp.round(x / _SPACING) * _SPACING
    normal = jax.lax.reduce_precision(x, exponent_bits=5, mantissa_bits=10)
    return jnp.where(jnp.abs(x) < _SMALLEST, tiny, normal)


def needs_teachers(method: Method, mixup: float) -> bool:
    """Returns whether a stage's teachers must run in its steps: no bank can serve it.

    Args:
        method: how the stage learns.
        mixup: the recipe's.
    """
    return method.num_views > 1 or method.call_teachers or bool(mixup)
