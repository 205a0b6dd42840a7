"""Grouped and depthwise convolutions, written as operations that XLA runs faster.

`kdjax.runtime.backend.unroll_groups` has the measurements.
"""

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

    A depthwise convolution becomes a sum of shifted maps, one for each position of the
    kernel, times the weights there. Any other becomes one convolution per group.

    Args:
        x: maps `[batch, height, width, channels]`.
        kernel: `[height, width, channels / groups, features]`.
        strides: in each direction.
        padding: on both sides in each direction.
        feature_group_count: the number of groups.
        others: further arguments of `lax.conv_general_dilated`; a depthwise
            convolution ignores them.
    """
    groups = feature_group_count
    # More than one input or output channel per group: not depthwise.
    if kernel.shape[-2] > 1 or kernel.shape[-1] > groups:
        # Per group: [B, H, W, C / groups] and [kh, kw, C / groups, features / groups].
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
    # Where the kernel's top left corner lies in the padded maps, by output position.
    rows, columns = (
        range(0, side - size + 1, stride)
        for side, size, stride in zip(
            x.shape[1:3], kernel.shape[:2], strides, strict=True
        )
    )
    out = jnp.zeros((len(x), len(rows), len(columns), groups), x.dtype)
    for i in range(kernel.shape[0]):
        for j in range(kernel.shape[1]):
            # What position (i, j) of the kernel meets, for all output positions.
            shifted = lax.slice(
                x,
                (0, i, j, 0),
                (len(x), i + rows[-1] + 1, j + columns[-1] + 1, groups),
                (1, *strides, 1),
            )
            # [B, H', W', C] * [1, 1, 1, C]
            out += shifted * kernel[i : i + 1, j : j + 1]
    return out
