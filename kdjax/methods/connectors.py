"""Modules between student and teacher for the methods that train in phases.

AB's and OFD's connectors, FT's paraphraser and translator. Each maps features `[batch,
height, width, channels]`; all but `BoundaryConnector` keep the size.
"""

from collections.abc import Callable, Mapping

import flax.linen as nn
import jax

from kdjax.methods.base import Targets, only
from kdjax.methods.levels import feature_maps
from kdjax.models import Outputs
from kdjax.models.layers import he_normal, torch_bias, torch_kernel
from kdjax.models.norm import BatchNorm
from kdjax.runtime.errors import UserError

# PyTorch's initialisation of transposed convolutions: its fan_in counts their outputs.
_torch_transposed = nn.initializers.variance_scaling(1 / 3, "fan_out", "uniform")


def _conv(features: int, size: int, name: str) -> nn.Conv:
    # No bias: the BatchNorm that follows would subtract it again.
    return nn.Conv(
        features,
        (size, size),
        padding=size // 2,
        use_bias=False,
        kernel_init=torch_kernel,
        name=name,
    )


def convolved(whose: str, x: jax.Array, shape: tuple[int, int, int]) -> jax.Array:
    """Returns maps after one convolution to a given shape, inside a compact module.

    `ConvReg` of RepDistiller: 3x3 with stride 2 from twice the size, a transposed 4x4
    with stride 2 from half the size, otherwise (1 + difference of the sizes). It has
    no bias, as a BatchNorm follows. It starts LeCun normal, with variance 1 / fan_in;
    PyTorch's convolutions start uniform with a third of that variance.

    Args:
        whose: names the map in errors, such as "fitnet: the student's stage2".
        x: `[batch, height, width, channels]`.
        shape: the height, width and channels to reach.

    Raises:
        UserError: no such convolution maps the one size to the other.
    """
    *size, channels = shape
    height, width = x.shape[1:3]
    if [height, width] == [2 * side for side in size]:
        return nn.Conv(channels, (3, 3), 2, padding=1, use_bias=False)(x)
    if [2 * height, 2 * width] == size:
        return nn.ConvTranspose(channels, (4, 4), (2, 2), use_bias=False)(x)
    if height >= size[0] and width >= size[1]:
        kernel = (1 + height - size[0], 1 + width - size[1])
        return nn.Conv(channels, kernel, padding="VALID", use_bias=False)(x)
    raise UserError(
        f"{whose} {(height, width)} cannot be resized to the teacher's {tuple(size)}; "
        "choices: half the teacher's size, the same size, or larger"
    )


class BoundaryConnector(nn.Module):
    """AB's connector: a convolution to the teacher's shape and BatchNorm, no ReLU.

    A map that has the teacher's shape is returned unchanged.
    """

    shape: tuple[int, int, int]  # height, width and channels of the teacher's map

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Returns the student's features in the teacher's shape.

        Raises:
            UserError: no convolution of `convolved` leads there.
        """
        if x.shape[1:] == self.shape:
            return x
        x = convolved("ab: the student's map", x, self.shape)
        return BatchNorm(train, name="bn")(x)


class OverhaulConnector(nn.Module):
    """OFD's connector: a 1x1 convolution to the teacher's width and BatchNorm."""

    channels: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Returns the student's features in the teacher's width."""
        x = nn.Conv(
            self.channels, (1, 1), use_bias=False, kernel_init=he_normal, name="conv"
        )(x)
        return BatchNorm(train, name="bn")(x)


class Paraphraser(nn.Module):
    """FT's paraphraser: an autoencoder of the teacher's map, without BatchNorm.

    Three 3x3 convolutions to the factor, `rate` times as wide as the map, and three
    transposed ones back. Leaky ReLU of slope 0.1 follows each of them.
    """

    rate: float = 0.5

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the factor and the reconstruction."""
        channels = x.shape[-1]
        narrow = int(channels * self.rate)
        for i, width in enumerate((channels, narrow, narrow), start=1):
            x = nn.Conv(
                width,
                (3, 3),
                padding=1,
                kernel_init=torch_kernel,
                bias_init=torch_bias(9 * x.shape[-1]),
                name=f"encode{i}",
            )(x)
            x = nn.leaky_relu(x, 0.1)
        factor = x
        for i, width in enumerate((narrow, channels, channels), start=1):
            # 3x3 with stride 1: 'SAME' pads by one on every side.
            x = nn.ConvTranspose(
                width,
                (3, 3),
                padding="SAME",
                kernel_init=_torch_transposed,
                bias_init=torch_bias(9 * width),
                name=f"decode{i}",
            )(x)
            x = nn.leaky_relu(x, 0.1)
        return factor, x


class Translator(nn.Module):
    """FT's translator: the student's map to the width of the teacher's factor.

    Three times a 3x3 convolution, BatchNorm and leaky ReLU of slope 0.1; the first
    keeps the student's width.
    """

    channels: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Returns the student's factor."""
        for i, width in enumerate((x.shape[-1], self.channels, self.channels), start=1):
            x = BatchNorm(train, name=f"bn{i}")(_conv(width, 3, f"conv{i}")(x))
            x = nn.leaky_relu(x, 0.1)
        return x


class Connectors(nn.Module):
    """One connector for each level, from the student's maps to the teacher's.

    Attributes:
        levels: the student's.
        make: returns a level's connector from the teacher's shape there, `(height,
            width, channels)`, and the connector's name.
    """

    levels: tuple[str, ...]
    make: Callable[[tuple[int, int, int], str], nn.Module]

    @nn.compact
    def __call__(
        self,
        outputs: Mapping[str, Outputs],
        targets: Mapping[str, Targets],
        train: bool,
    ) -> dict[str, jax.Array]:
        """Returns the student's maps after their connectors, by level."""
        _, target = only(targets)
        maps = feature_maps(outputs["student"], self.levels)
        return {
            level: self.make(target[level].shape[1:], level)(maps[level], train)
            for level in self.levels
        }
