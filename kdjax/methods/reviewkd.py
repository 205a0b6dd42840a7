"""ReviewKD: deep levels of the student reviewed by the teacher's shallower ones."""

import dataclasses
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from kdjax import losses
from kdjax.methods.base import Context, Targets, Weight, only
from kdjax.methods.levels import Maps, SeveralLevels, feature_maps, total
from kdjax.methods.ranges import Levels, Steps
from kdjax.models import Outputs
from kdjax.models.norm import BatchNorm

_WIDEST = 512
# Uniform within sqrt(3 / fan_in): `kaiming_uniform` with a = 1.
_uniform = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")


def nearest(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Returns maps in another size; output i shows input `floor(i * n / m)`."""
    for axis, side in enumerate(size, start=1):
        if x.shape[axis] != side:
            x = jnp.take(x, jnp.arange(side) * x.shape[axis] // side, axis=axis)
    return x


class Fusion(nn.Module):
    """Attention-based fusion (ABF) of one level with the result of the deeper ones.

    The student's map and the deeper one, both `middle` channels wide, are weighed by
    position and added; a 3x3 convolution maps them to the teacher's width.
    """

    middle: int
    shape: tuple[int, int, int]  # height, width and channels of the teacher's map

    @nn.compact
    def __call__(
        self, x: jax.Array, deeper: jax.Array | None, train: bool
    ) -> tuple[jax.Array, jax.Array]:
        """Returns a map in the teacher's shape, and the one for the level below."""
        x = nn.Conv(
            self.middle, (1, 1), use_bias=False, kernel_init=_uniform, name="conv1"
        )(x)
        x = BatchNorm(train, name="bn1")(x)
        if deeper is not None:
            deeper = nearest(deeper, (x.shape[1], x.shape[2]))
            both = jnp.concatenate([x, deeper], axis=-1)
            gates = nn.sigmoid(nn.Conv(2, (1, 1), name="gates")(both))
            x = x * gates[..., :1] + deeper * gates[..., 1:]
        *size, channels = self.shape
        x = nearest(x, (size[0], size[1]))
        out = nn.Conv(
            channels,
            (3, 3),
            padding=1,
            use_bias=False,
            kernel_init=_uniform,
            name="conv2",
        )(x)
        return BatchNorm(train, name="bn2")(out), x


class Review(nn.Module):
    """The chain of fusions, from the deepest level to the first."""

    levels: tuple[str, ...]

    @nn.compact
    def __call__(
        self,
        outputs: Mapping[str, Outputs],
        targets: Mapping[str, Targets],
        train: bool,
    ) -> dict[str, jax.Array]:
        """Returns maps in the teacher's shapes, by level."""
        _, target = only(targets)
        maps = feature_maps(outputs["student"], self.levels)
        middle = min(_WIDEST, maps[self.levels[-1]].shape[-1])
        fused, deeper = {}, None
        for level in reversed(self.levels):
            fusion = Fusion(middle, target[level].shape[1:], name=level)
            fused[level], deeper = fusion(maps[level], deeper, train)
        return fused


@dataclasses.dataclass(frozen=True)
class ReviewKD(SeveralLevels):
    """Knowledge review (Chen et al., 2021): CE + beta sum_j HCL_j.

    Maps of any size and width, and the pooled features.

    The default levels are the published code's on ImageNet: both networks' maps before
    the activations. On CIFAR it takes the student's after them and the teacher's before
    them: levels=('stage*', 'pooled'), teacher_levels=('stage*_pre', 'pooled'), as
    `configs/kd.py` does.

    Deviations: the gates' convolutions start LeCun normal, variance 1 / fan_in, the
    published code's as PyTorch's do, uniform with a third of it; the others start as
    there. The published code raises the weight linearly over its first 20 epochs.
    A method knows steps, not epochs: see warmup_steps.

    Attributes:
        beta: the weight; in the published code it differs by the pair of networks.
        levels: the features, from the first to the deepest.
        warmup_steps: the number of steps over which the weight rises from 0; 0: none.
    """

    beta: float = 1.0
    levels: Levels = ("stage*_pre", "pooled")
    warmup_steps: Steps = 0

    def adapter(self, target: Targets) -> nn.Module:
        """Returns the chain of fusions."""
        return Review(self.levels)

    def schedule(self) -> Weight:
        """Returns beta, or its warm-up schedule."""
        if not self.warmup_steps:
            return self.beta
        return optax.linear_schedule(0.0, self.beta, self.warmup_steps)

    def compare(self, context: Context, student: Maps, target: Maps) -> jax.Array:
        """Returns the sum over the levels."""
        return total(
            losses.hierarchical_context(student[level], target[level])
            for level in self.levels
        )
