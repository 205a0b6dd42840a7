"""BatchNorm over all axes but the last, with flax's variables and PyTorch's constants.

Ioffe and Szegedy, *Batch Normalization*, 2015.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from kdjax.runtime import backend

_MOMENTUM, _EPSILON = 0.9, 1e-5  # flax's momentum is 1 minus PyTorch's


class BatchNorm(nn.Module):
    """Normalises every channel over the batch, then scales and shifts it.

    Variables, values and gradients are those of `flax.linen.BatchNorm`: 'scale' and
    'bias' in 'params', 'mean' and 'var' in 'batch_stats'. Under jit the statistics are
    those of the global batch, also where it is sharded. They are float32 for narrower
    inputs; the output has the input's dtype. The running variance is the biased one;
    PyTorch keeps the unbiased one, n/(n-1) times as large.

    No ReLU is built in: XLA fuses the one that follows, and recomputes its mask for the
    gradient instead of storing it.

    Attributes:
        train: whether to normalise by the batch's statistics and update the running
            ones, or to normalise by the running ones.
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
        # Initial variables keep mean 0 and variance 1.
        if not self.is_initializing():
            for old, new in ((running_mean, mean), (running_var, var)):
                old.value = _MOMENTUM * old.value + (1 - _MOMENTUM) * new
        return y


def _axes(x: jax.Array) -> tuple[int, ...]:
    return tuple(range(x.ndim - 1))


def _to_float32(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _channels(x: jax.Array, *values: jax.Array) -> tuple[jax.Array, ...]:
    """Returns values per channel in the rank of `x`: [C] -> [1, ..., 1, C]."""
    return tuple(jnp.expand_dims(value, _axes(x)) for value in values)


def _affine(
    x: jax.Array, mean: jax.Array, var: jax.Array, scale: jax.Array, bias: jax.Array
) -> jax.Array:
    """Returns `scale * (x - mean) / sqrt(var + epsilon) + bias`."""
    factor = jax.lax.rsqrt(var + _EPSILON) * scale
    mean, factor, bias = _channels(x, mean, factor, bias)
    return (x - mean) * factor + bias


def _sums(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Returns the sums of arrays of one shape over all axes but the last, `[C]` each.

    Together on a backend where the results of one reduction cost fewer kernels.
    """
    if backend.joint_sums():
        return _joint_sums(*arrays)
    return tuple(jnp.sum(array, _axes(array)) for array in arrays)


@jax.custom_vjp
def _joint_sums(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Returns what `_sums` does, as one operation."""
    zeros = [jnp.zeros((), array.dtype) for array in arrays]

    def add(
        sums: tuple[jax.Array, ...], values: tuple[jax.Array, ...]
    ) -> tuple[jax.Array, ...]:
        return tuple(a + b for a, b in zip(sums, values, strict=True))

    return tuple(jax.lax.reduce(arrays, tuple(zeros), add, _axes(arrays[0])))


# JAX has no gradient of a reduction with several results; images that are attacked
# inside the loss (BSS) need that of the gradient below.
_joint_sums.defvjp(
    lambda *arrays: (_joint_sums(*arrays), arrays),
    lambda arrays, cotangents: tuple(
        jnp.broadcast_to(cotangent, array.shape)
        for array, cotangent in zip(arrays, cotangents, strict=True)
    ),
)


def _normalise(
    x: jax.Array, scale: jax.Array, bias: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns `x` normalised by its own statistics, and these: mean and variance."""
    wide, count = _to_float32(x), x.size // x.shape[-1]
    # E[x^2] - E[x]^2: neither sum depends on the other, so one pass over x serves both.
    # Rounding can make the difference negative.
    total, squares = _sums(wide, wide * wide)
    mean = total / count
    var = jnp.maximum(squares / count - mean * mean, 0)
    return _affine(wide, mean, var, scale, bias).astype(x.dtype), mean, var


_with_custom_vjp = jax.custom_vjp(_normalise)


def _forward(
    x: jax.Array, scale: jax.Array, bias: jax.Array
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], tuple[jax.Array, ...]]:
    y, mean, var = _normalise(x, scale, bias)
    return (y, mean, var), (x, scale, bias, mean, var)


def _backward(
    kept: tuple[jax.Array, ...], cotangents: tuple[jax.Array, ...]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the gradients from two sums over the maps; only `x` is stored."""
    x, scale, bias, mean, var = kept
    g, g_mean, g_var = cotangents
    g, wide = _to_float32(g), _to_float32(x)
    count = x.size // x.shape[-1]
    inverse = jax.lax.rsqrt(var + _EPSILON)
    # sum(g * (x - mean)) as a difference of sums: XLA would store x - mean first. The
    # cancellation grows with |mean| / std, in the variance above with its square.
    total, product = _sums(g, g * wide)
    moment = product - mean * total
    # y holds (var + epsilon)^-0.5. The clip at 0 in `_normalise` has no gradient.
    to_var = jnp.where(var > 0, g_var - 0.5 * scale * inverse**3 * moment, 0)
    # Every x enters mean by 1 / count and var by 2 / count * (x - mean).
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
