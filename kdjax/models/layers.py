"""Layers shared by the families, with PyTorch's padding and initialisation."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from kdjax.models import grouped
from kdjax.models.base import Outputs
from kdjax.models.norm import BatchNorm
from kdjax.runtime import backend

# He normal with the fan of the outputs, standard deviation sqrt(2 / fan_out): how the
# PyTorch code of the residual networks and the VGGs initialises convolutions.
he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")

# PyTorch's default initialisation of convolutions and dense layers:
# uniform within 1 / sqrt(fan_in). (`variance_scaling`: within sqrt(3 scale / fan_in).)
torch_kernel = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def torch_bias(fan_in: int) -> nn.initializers.Initializer:
    """Returns PyTorch's initialiser of biases: uniform within 1 / sqrt(fan_in)."""
    bound = 1 / math.sqrt(fan_in)

    def draw(
        key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32
    ) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return draw


class ConvBatchNorm(nn.Module):
    """A convolution, grouped or not, followed by BatchNorm."""

    features: int
    size: int = 3
    strides: int = 1
    use_bias: bool = False
    groups: int = 1
    kernel_init: nn.initializers.Initializer = he_normal

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Returns the normalised maps, before any activation."""
        # XLA's grouped convolutions are slow on some backends.
        unrolled = self.groups > 1 and backend.unroll_groups()
        convolve = grouped.convolve if unrolled else None
        # As PyTorch pads: on both sides. 'SAME' pads strided ones on one side only.
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
    """Returns the channels interleaved: the first of every group, the second, ...

    Args:
        x: maps `[batch, height, width, channels]`, groups one after the other.
        groups: a divisor of the channels.
    """
    # [..., C] -> [..., groups, C / groups] -> [..., C / groups, groups] -> [..., C]
    parts = x.reshape(*x.shape[:-1], groups, x.shape[-1] // groups)
    return jnp.swapaxes(parts, -1, -2).reshape(x.shape)


def torch_dense(inputs: int, features: int, name: str) -> nn.Dense:
    """Returns a dense layer with PyTorch's initialisation.

    Weights and biases are uniform within 1 / sqrt(inputs).
    """
    return nn.Dense(
        features, kernel_init=torch_kernel, bias_init=torch_bias(inputs), name=name
    )


def classify(x: jax.Array, features: dict[str, jax.Array], classes: int) -> Outputs:
    """Returns the outputs of a network, inside a compact module: its classifier.

    The classifier is a dense layer named 'head', which reads the average over the
    positions of the last map; that average is added to the features as 'pooled'.

    Args:
        x: the last map, `[batch, height, width, channels]`.
        features: the maps of the stem and the stages, by name.
        classes: the number of classes.
    """
    pooled = jnp.mean(x, axis=(1, 2))  # [B, H, W, C] -> [B, C]
    head = torch_dense(pooled.shape[-1], classes, "head")
    return Outputs(head(pooled), {**features, "pooled": pooled})
