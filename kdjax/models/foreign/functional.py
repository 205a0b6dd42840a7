"""What PyTorch's layers compute, as functions of JAX: maps `[batch, channels, ...]`.

Inside, channels come last, as in kdjax's own layers: there XLA's convolutions on CPUs
are at home, and the transpositions between two layers vanish in compilation and export.
"""

import contextlib
import contextvars
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from kdjax.models import grouped
from kdjax.runtime import backend

Pads = Sequence[tuple[int, int]]
"""What is added on both sides, in each direction."""


_origins: contextvars.ContextVar[dict[int, tuple[jax.Array, jax.Array]]] = (
    contextvars.ContextVar("origins")
)
"""Maps with channels first as one layer returns them, and what they are made of."""


@contextlib.contextmanager
def remembering() -> Iterator[None]:
    """Lets a layer take what the layer before had with channels last, as it was."""
    token = _origins.set({})
    try:
        yield
    finally:
        _origins.reset(token)


def _last(x: jax.Array) -> jax.Array:
    """[B, C, ...] -> [B, ..., C]."""
    known = _origins.get({}).get(id(x))
    return known[1] if known else jnp.moveaxis(x, 1, -1)


def _first(x: jax.Array) -> jax.Array:
    """[B, ..., C] -> [B, C, ...]."""
    y = jnp.moveaxis(x, -1, 1)
    # With `y` itself: as long as it is there, no other array has its id.
    _origins.get({})[id(y)] = y, x
    return y


def conv2d(
    x: jax.Array,
    weight: jax.Array,
    bias: jax.Array | None,
    strides: tuple[int, int],
    padding: Pads,
    dilation: tuple[int, int],
    groups: int,
) -> jax.Array:
    """Returns maps convolved as PyTorch does.

    Args:
        x: `[batch, channels, height, width]`.
        weight: `[features, channels / groups, height, width]`.
        bias: `[features]`, or None.
        strides: in each direction.
        padding: in each direction.
        dilation: of the kernel.
        groups: of channels, each with its own kernels.
    """
    kernel = jnp.transpose(weight, (2, 3, 1, 0))
    own_form = groups > 1 and dilation == (1, 1) and backend.unroll_groups()
    convolve = grouped.convolve if own_form else lax.conv_general_dilated
    y = convolve(
        _last(x),
        kernel,
        strides,
        padding,
        feature_group_count=groups,
        rhs_dilation=dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return _first(y if bias is None else y + bias)


def max_pool2d(
    x: jax.Array, window: tuple[int, int], strides: tuple[int, int], padding: Pads
) -> jax.Array:
    """Returns the largest values in windows of `[batch, channels, height, width]`."""
    sides, steps = (1, *window, 1), (1, *strides, 1)
    pads = ((0, 0), *padding, (0, 0))
    smallest = -jnp.inf
    return _first(lax.reduce_window(_last(x), smallest, lax.max, sides, steps, pads))


def avg_pool2d(
    x: jax.Array,
    window: tuple[int, int],
    strides: tuple[int, int],
    padding: Pads = ((0, 0), (0, 0)),
) -> jax.Array:
    """Returns the means of windows of `[batch, channels, height, width]`.

    Zeros that are added at the borders count.
    """
    if window == x.shape[2:] and not any(map(any, padding)):
        return _first(jnp.mean(_last(x), (1, 2), keepdims=True))
    sides, steps = (1, *window, 1), (1, *strides, 1)
    pads = ((0, 0), *padding, (0, 0))
    total = lax.reduce_window(_last(x), 0.0, lax.add, sides, steps, pads)
    return _first(total / (window[0] * window[1]))


def adaptive_avg_pool2d(x: jax.Array, sides: tuple[int, int]) -> jax.Array:
    """Returns the means of equal parts of `[batch, channels, height, width]`.

    Where the parts cannot be equal they overlap, as PyTorch's do.

    Args:
        x: maps.
        sides: how many parts in each direction.
    """
    if not any(size % side for size, side in zip(x.shape[2:], sides, strict=True)):
        height, width = (
            size // side for size, side in zip(x.shape[2:], sides, strict=True)
        )
        return avg_pool2d(x, (height, width), (height, width))
    rows, columns = (
        _shares(size, side, x.dtype)
        for size, side in zip(x.shape[2:], sides, strict=True)
    )
    return _first(jnp.einsum("bhwc,ih,jw->bijc", _last(x), rows, columns))


def _shares(size: int, side: int, dtype: jnp.dtype) -> jax.Array:
    """Returns every position's share in every part's mean, `[side, size]`."""
    shares = np.zeros((side, size))
    for i in range(side):
        first, last = i * size // side, -(-(i + 1) * size // side)
        shares[i, first:last] = 1 / (last - first)
    return jnp.asarray(shares, dtype)


def batch_norm(
    x: jax.Array,
    weight: jax.Array | None,
    bias: jax.Array | None,
    statistics: tuple[jax.Array, jax.Array] | None,
    epsilon: float,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns `x` normalised by channel, and the batch's mean and unbiased variance.

    Computed in float32 at least; the first result has the dtype of `x`.

    Args:
        x: `[batch, channels, ...]`.
        weight: `[channels]`; None: 1.
        bias: `[channels]`; None: 0.
        statistics: mean and variance to normalise by, `[channels]`; None: the batch's.
        epsilon: is added to the variance.
    """
    wide = _last(x).astype(jnp.promote_types(x.dtype, jnp.float32))
    axes = tuple(range(wide.ndim - 1))
    if statistics is None:
        mean = jnp.mean(wide, axes)
        # E[x^2] - E[x]^2, as kdjax's own: one pass over x serves both sums.
        var = jnp.maximum(jnp.mean(wide * wide, axes) - mean * mean, 0)
    else:
        mean, var = (value.astype(wide.dtype) for value in statistics)
    factor = lax.rsqrt(var + epsilon)
    if weight is not None:
        factor = factor * weight.astype(wide.dtype)
    y = (wide - mean) * factor
    if bias is not None:
        y = y + bias.astype(wide.dtype)
    count = x.size // x.shape[1]
    return _first(y.astype(x.dtype)), mean, var * (count / max(count - 1, 1))


def as_level(x: jax.Array, channels_last: bool, extra: int | None) -> jax.Array:
    """Returns what a module returns as a level, `[batch, height, width, channels]`.

    Tokens become a map where they form a square besides the first ones, such as a
    class token; anything else stays as it is.

    Args:
        x: maps `[batch, channels, height, width]`, tokens `[batch, tokens, channels]`.
        channels_last: whether the network's maps are NHWC already.
        extra: number of tokens before those of positions; None: not known.
    """
    if x.ndim == 4 and not channels_last:
        return _last(x)
    if x.ndim != 3:
        return x
    for skipped in range(6) if extra is None else (extra,):
        side = round(max(x.shape[1] - skipped, 0) ** 0.5)
        if side and side * side == x.shape[1] - skipped:
            return x[:, skipped:].reshape(len(x), side, side, x.shape[2])
    return x
