"""Grouped and depthwise convolutions of the ordinary operations that CPUs run fast."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def convolve(
    x: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    *,
    feature_group_count: int,
    **others: Any,
) -> jax.Array:
    """Returns what `lax.conv_general_dilated` returns for these arguments.

    Depthwise: as many multiply-adds of shifted maps as the kernel has positions.
    Otherwise: one ordinary convolution for each group.

    Args:
        x: maps `[batch, height, width, channels]`.
        kernel: `[height, width, channels / groups, features]`.
        strides: in each direction.
        padding: on both sides in each direction.
        feature_group_count: the number of groups.
        others: further arguments of the convolution, for ordinary ones alone.
    """
    groups = feature_group_count
    if kernel.shape[-2] > 1 or kernel.shape[-1] > groups:
        parts = zip(
            jnp.split(x, groups, -1), jnp.split(kernel, groups, -1), strict=True
        )
        return jnp.concatenate(
            [
                lax.conv_general_dilated(part, own, strides, padding, **others)
                for part, own in parts
            ],
            -1,
        )
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    rows, columns = (
        range(0, side - size + 1, stride)
        for side, size, stride in zip(
            x.shape[1:3], kernel.shape[:2], strides, strict=True
        )
    )
    out = jnp.zeros((len(x), len(rows), len(columns), groups), x.dtype)
    for i in range(kernel.shape[0]):
        for j in range(kernel.shape[1]):
            shifted = lax.slice(
                x,
                (0, i, j, 0),
                (len(x), i + rows[-1] + 1, j + columns[-1] + 1, groups),
                (1, *strides, 1),
            )
            out += shifted * kernel[i : i + 1, j : j + 1]
    return out
