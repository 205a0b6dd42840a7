"""BatchNorm over all axes but the last, with flax's variables and PyTorch's constants.

Ioffe and Szegedy, *Batch Normalization*, 2015.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kdjax.runtime import backend

_MOMENTUM, _EPSILON = 0.9, 1e-5  # of the running statistics flax's, 1 - PyTorch's


class BatchNorm(nn.Module):
    """Normalises every channel over the batch, then scales and shifts it.

    Variables, values and gradients are those of `flax.linen.BatchNorm`: 'scale' and
    'bias' in 'params', 'mean' and 'var' in 'batch_stats'. A batch that is sharded under
    jit is seen as a whole. Statistics are float32 for narrower inputs; the output has
    the input's dtype. The running variance is the biased one, where PyTorch keeps
    n/(n-1) times it.

    There is no form with a ReLU of its own: XLA fuses the one that follows, and takes
    its mask from recomputed values rather than stored ones.

    Attributes:
        train: whether to take the batch's statistics and move the running ones, or to
            take the running ones.
    """

    train: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the normalised `x` of shape `[..., channels]`."""
        start = (x.shape[-1],), jnp.float32
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, *start)
        running_var = self.variable("batch_stats", "var", jnp.ones, *start)
        scale = self.param("scale", nn.initializers.ones, *start)
        bias = self.param("bias", nn.initializers.zeros, *start)
        if not self.train:
            running = running_mean.value, running_var.value
            return _affine(_to_float32(x), *running, scale, bias).astype(x.dtype)
        own = backend.own_batch_norm_gradient()
        y, mean, var = (_with_custom_vjp if own else _normalise)(x, scale, bias)
        if not self.is_initializing():
            for old, new in ((running_mean, mean), (running_var, var)):
                old.value = _MOMENTUM * old.value + (1 - _MOMENTUM) * new
        return y


def _axes(x: jax.Array) -> tuple[int, ...]:
    return tuple(range(x.ndim - 1))


def _to_float32(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _channels(x: jax.Array, *values: jax.Array) -> tuple[jax.Array, ...]:
    """Returns values per channel in the rank of `x`."""
    return tuple(jnp.expand_dims(value, _axes(x)) for value in values)


def _affine(
    x: jax.Array, mean: jax.Array, var: jax.Array, scale: jax.Array, bias: jax.Array
) -> jax.Array:
    """Returns `scale * (x - mean) / sqrt(var + epsilon) + bias`."""
    factor = jax.lax.rsqrt(var + _EPSILON) * scale
    mean, factor, bias = _channels(x, mean, factor, bias)
    return (x - mean) * factor + bias


def _normalise(
    x: jax.Array, scale: jax.Array, bias: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns `x` normalised by its own statistics, and these: mean and variance."""
    wide, axes = _to_float32(x), _axes(x)
    mean = jnp.mean(wide, axes)
    # Neither sum waits for the other. Rounding can make the difference negative.
    var = jnp.maximum(jnp.mean(wide * wide, axes) - mean * mean, 0)
    return _affine(wide, mean, var, scale, bias).astype(x.dtype), mean, var


_with_custom_vjp = jax.custom_vjp(_normalise)


def _forward(x: jax.Array, scale: jax.Array, bias: jax.Array) -> tuple[Any, Any]:
    y, mean, var = _normalise(x, scale, bias)
    return (y, mean, var), (x, scale, bias, mean, var)


def _backward(kept: Any, cotangents: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the gradients from two sums over the maps and no stored map but `x`."""
    x, scale, bias, mean, var = kept
    g, g_mean, g_var = cotangents
    g, wide = _to_float32(g), _to_float32(x)
    axes, count = _axes(x), x.size // x.shape[-1]
    inverse = jax.lax.rsqrt(var + _EPSILON)
    # With g * (x - mean), XLA would store x - mean first. What cancels here is less
    # than what cancelled in the variance: |mean| / std, there its square.
    total = jnp.sum(g, axes)
    moment = jnp.sum(g * wide, axes) - mean * total
    # A variance that was clipped at 0 does not move.
    to_var = jnp.where(var > 0, g_var - 0.5 * scale * inverse**3 * moment, 0)
    constant = (g_mean - scale * inverse * total) / count
    mean, factor, slope, constant = _channels(
        x, mean, scale * inverse, 2 / count * to_var, constant
    )
    to_x = g * factor + (wide - mean) * slope + constant
    return (
        to_x.astype(x.dtype),
        (moment * inverse).astype(scale.dtype),
        total.astype(bias.dtype),
    )


_with_custom_vjp.defvjp(_forward, _backward)
