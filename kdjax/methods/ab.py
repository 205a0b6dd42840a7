"""Activation boundaries: a start for the student's layers, learned first."""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax

from kdjax import losses
from kdjax.methods.base import Context, Phase, Targets
from kdjax.methods.connectors import BoundaryConnector, Connectors
from kdjax.methods.levels import InitialisedLevels, Maps, total
from kdjax.methods.ranges import Count, Levels, Positive


def _connector(shape: tuple[int, int, int], name: str) -> nn.Module:
    return BoundaryConnector(shape, name=name)


@dataclasses.dataclass(frozen=True)
class AB(InitialisedLevels):
    """Activation boundaries (Heo et al., 2019): a start for the student's layers.

    First phase: beta sum_j w_j AB_j moves the layers that the student's stages are
    computed from, and connectors to the teacher's shapes; not the classifier nor, as in
    the published code, the last BatchNorm of a Wide ResNet, which follows its last
    stage. Second phase: the cross-entropy; 'ab+kd' adds Hinton's term, as the paper
    does.

    Deviations: see `losses.ab`; beta = 3/1000 and w = 2^(j - n) for level j of n are
    the published code's (RepDistiller). As there, the first phase keeps the initial
    learning rate. The connectors start LeCun normal (see
    `connectors.convolved`).

    Attributes:
        beta: the weight.
        margin: of the boundaries.
        levels: the features before the activations.
        init_epochs: the epochs of the first phase, before the recipe's.
    """

    VERSION: ClassVar[int] = 2
    beta: float = 3e-3
    margin: Positive = 1.0
    levels: Levels = ("stage*_pre",)
    init_epochs: Count = 30

    def adapter(self, target: Targets) -> nn.Module:
        """Returns the connectors."""
        return Connectors(self.levels, _connector)

    def phases(self) -> tuple[Phase, ...]:
        """Returns the boundaries' phase and the labels'."""
        return (
            self.init_phase(),
            Phase(trains=lambda path: not path[0].startswith("ab/")),
        )

    def compare(self, context: Context, student: Maps, target: Maps) -> jax.Array:
        """Returns the sum over the levels, the deepest with weight 1."""
        return total(
            losses.ab(student[level], target[level], margin=self.margin) / 2**i
            for i, level in enumerate(reversed(self.levels))
        )
