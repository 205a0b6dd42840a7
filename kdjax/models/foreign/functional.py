"""What PyTorch's layers compute, as functions of JAX: maps `[batch, channels, ...]`."""

import jax
import jax.numpy as jnp


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
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    axes = (0, *range(2, x.ndim))

    def by_channel(value: jax.Array) -> jax.Array:
        return jnp.expand_dims(value.astype(wide.dtype), axes)

    if statistics is None:
        mean = jnp.mean(wide, axes)
        # E[x^2] - E[x]^2, as kdjax's own: one pass over x serves both sums.
        var = jnp.maximum(jnp.mean(wide * wide, axes) - mean * mean, 0)
    else:
        mean, var = (value.astype(wide.dtype) for value in statistics)
    factor = jax.lax.rsqrt(var + epsilon)
    if weight is not None:
        factor = factor * weight.astype(wide.dtype)
    y = (wide - by_channel(mean)) * by_channel(factor)
    if bias is not None:
        y = y + by_channel(bias)
    count = x.size // x.shape[1]
    return y.astype(x.dtype), mean, var * (count / max(count - 1, 1))


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
        return jnp.transpose(x, (0, 2, 3, 1))
    if x.ndim != 3:
        return x
    for skipped in range(6) if extra is None else (extra,):
        side = round((x.shape[1] - skipped) ** 0.5)
        if side and side * side == x.shape[1] - skipped:
            return x[:, skipped:].reshape(len(x), side, side, x.shape[2])
    return x
