"""Variational information distillation: trained predictions of teacher features."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated

import flax.linen as nn
import jax

from kdjax import losses
from kdjax.methods.base import Context, Targets, only
from kdjax.methods.levels import Maps, SeveralLevels, feature_maps, total
from kdjax.methods.ranges import Range
from kdjax.models import Outputs
from kdjax.models.layers import torch_kernel

_EPS = 1e-5  # the smallest variance
Guesses = Mapping[str, tuple[jax.Array, jax.Array]]
"""Means, and variances before the softplus, by level."""


class Variational(nn.Module):
    """The mean and variance of the teacher's features, given the student's.

    At each level three 1x1 convolutions without biases, ReLU between them, all as wide
    as the teacher's map, and one variance per channel. The larger of the two maps is
    pooled to the size of the smaller first.
    """

    levels: tuple[str, ...]
    variance: float

    @nn.compact
    def __call__(
        self,
        outputs: Mapping[str, Outputs],
        targets: Mapping[str, Targets],
        train: bool,
    ) -> dict[str, tuple[jax.Array, jax.Array]]:
        """Returns means and variances before the softplus, by level."""
        del train
        _, target = only(targets)
        maps = feature_maps(outputs["student"], self.levels)
        start = nn.initializers.constant(math.log(math.expm1(self.variance - _EPS)))
        guesses = {}
        for level in self.levels:
            x, theirs = losses.match_size(maps[level], target[level])
            width = theirs.shape[-1]
            for i in (1, 2, 3):
                x = nn.Conv(
                    width,
                    (1, 1),
                    use_bias=False,
                    kernel_init=torch_kernel,
                    name=f"{level}_conv{i}",
                )(nn.relu(x) if i > 1 else x)
            guesses[level] = x, self.param(f"{level}_log_scale", start, (width,))
        return guesses


@dataclasses.dataclass(frozen=True)
class VID(SeveralLevels):
    """Variational information distillation (Ahn et al., 2019): CE + beta sum_j VID_j.

    Maps of any size and width. Deviations: see `losses.vid`; the weight and the levels
    are RepDistiller's.

    Attributes:
        beta: the weight.
        variance: the initial predicted variance.
    """

    beta: float = 1.0
    variance: Annotated[float, Range(above=_EPS)] = 5.0

    def adapter(self, target: Targets) -> nn.Module:
        """Returns the regressors and variances."""
        return Variational(self.levels, self.variance)

    def compare(self, context: Context, student: Guesses, target: Maps) -> jax.Array:
        """Returns the sum over the levels."""
        values = []
        for level in self.levels:
            mean, log_scale = student[level]
            mean, theirs = losses.match_size(mean, target[level])
            values.append(losses.vid(mean, theirs, log_scale=log_scale, eps=_EPS))
        return total(values)
