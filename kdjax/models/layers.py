"""Layers that families share, with PyTorch's constants, padding and starts."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from kdjax.models import grouped
from kdjax.models.norm import BatchNorm
from kdjax.runtime import backend

# He normal with the fan of the outputs, sqrt(2 / fan_out): what the PyTorch sources of
# the residual networks and the VGGs draw their convolutions from.
he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")

# PyTorch's default initialisation of convolutions and dense layers:
# uniform within 1 / sqrt(fan_in).
torch_kernel = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def torch_bias(fan_in: int) -> nn.initializers.Initializer:
    """Returns PyTorch's start of biases: uniform within 1 / sqrt(fan_in)."""
    bound = 1 / math.sqrt(fan_in)

    def draw(
        key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32
    ) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return draw


class ConvBatchNorm(nn.Module):
    """A convolution, in groups or not, and its BatchNorm."""

    features: int
    size: int = 3
    strides: int = 1
    use_bias: bool = False
    groups: int = 1
    kernel_init: nn.initializers.Initializer = he_normal

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Returns maps that no activation has seen yet."""
        unrolled = self.groups > 1 and backend.unroll_groups()
        convolve = grouped.convolve if unrolled else None
        # Padding on both sides: 'SAME' would pad strided convolutions on one side only.
        x = nn.Conv(
            self.features,
            (self.size, self.size),
            self.strides,
            padding=self.size // 2,
            feature_group_count=self.groups,
            use_bias=self.use_bias,
            kernel_init=self.kernel_init,
            conv_general_dilated=convolve,
            name="conv",
        )(x)
        return BatchNorm(train, name="bn")(x)


def channel_shuffle(x: jax.Array, groups: int) -> jax.Array:
    """Returns the channels read across the groups: the first of each, the second, ...

    Args:
        x: maps `[batch, height, width, channels]`, groups one after the other.
        groups: a divisor of the channels.
    """
    parts = x.reshape(*x.shape[:-1], groups, x.shape[-1] // groups)
    return jnp.swapaxes(parts, -1, -2).reshape(x.shape)


def torch_dense(inputs: int, features: int, name: str) -> nn.Dense:
    """Returns a dense layer that starts as PyTorch's does.

    Weights and biases are uniform within 1 / sqrt(inputs).
    """
    return nn.Dense(
        features, kernel_init=torch_kernel, bias_init=torch_bias(inputs), name=name
    )
