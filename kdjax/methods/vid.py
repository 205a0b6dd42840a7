"""Variational information distillation: a trained guess of the teacher's features."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax

from kdjax import losses
from kdjax.methods.base import Context, Method, Term, cross_entropy, only
from kdjax.methods.levels import check_levels, feature_maps, total
from kdjax.models import Outputs
from kdjax.models.layers import torch_kernel
from kdjax.runtime.errors import UserError

_EPS = 1e-5  # the smallest variance


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
        self, outputs: Mapping[str, Outputs], targets: Mapping[str, Any], train: bool
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
class VID(Method):
    """Variational information distillation (Ahn et al., 2019): CE + beta sum_j VID_j.

    Maps of any size and width. Deviations: see `losses.vid`; the weight and the levels
    are RepDistiller's.

    Attributes:
        beta: the weight.
        levels: the features to predict.
        variance: what the predicted variances start from.
    """

    num_teachers: ClassVar[int] = 1
    beta: float = 1.0
    levels: tuple[str, ...] = ("stage1", "stage2", "stage3")
    variance: float = 5.0

    def __post_init__(self) -> None:
        check_levels("vid", self.levels)
        if not self.variance > _EPS:
            raise UserError(f"vid: variance {self.variance} is not above {_EPS}")

    def teacher_targets(self, outputs: Outputs) -> dict[str, jax.Array]:
        """Returns the feature maps."""
        return feature_maps(outputs, self.levels)

    def adapters(
        self, outputs: Mapping[str, Outputs], targets: Mapping[str, Any]
    ) -> dict[str, nn.Module]:
        """Returns the regressors and variances."""
        teacher, _ = only(targets)
        return {f"vid/{teacher}": Variational(self.levels, self.variance)}

    def terms(self, context: Context) -> dict[str, Term]:
        """Returns cross-entropy and the term of all levels."""
        teacher, target = only(context.targets)
        name = f"vid/{teacher}"
        values = []
        for level in self.levels:
            mean, log_scale = context.adapted[name][level]
            mean, theirs = losses.match_size(mean, target[level])
            values.append(losses.vid(mean, theirs, log_scale=log_scale, eps=_EPS))
        return {
            "ce/student": Term(cross_entropy(context, "student")),
            name: Term(total(values), self.beta),
        }
