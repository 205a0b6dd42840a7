"""FitNet: a hint on the middle of the network."""

import dataclasses
from collections.abc import Mapping

import flax.linen as nn
import jax

from kdjax import losses
from kdjax.methods.base import Context, Targets
from kdjax.methods.connectors import convolved
from kdjax.methods.levels import OneLevel, feature
from kdjax.models import Outputs
from kdjax.models.norm import BatchNorm


class Regressor(nn.Module):
    """FitNet's regressor: a convolution to the teacher's shape, BatchNorm, ReLU."""

    level: str
    shape: tuple[int, int, int]  # height, width and channels of the teacher's map

    @nn.compact
    def __call__(
        self,
        outputs: Mapping[str, Outputs],
        targets: Mapping[str, Targets],
        train: bool,
    ) -> jax.Array:
        """Returns the student's map in the teacher's shape."""
        del targets
        x = feature(outputs["student"], self.level)
        x = convolved(f"fitnet: the student's {self.level}", x, self.shape)
        return nn.relu(BatchNorm(train)(x))


@dataclasses.dataclass(frozen=True)
class FitNet(OneLevel):
    """A hint on the middle of the network (Romero et al., 2015): CE + beta hint.

    Deviations: the regressor starts LeCun normal (see `connectors.convolved`). It is
    trained jointly with the cross-entropy, with BatchNorm and ReLU in the
    regressor and the mean of squares, as in RepDistiller; the paper trains the
    lower half on the hint first, with half the sum of squares.
    """

    beta: float = 100.0
    level: str = "stage2"

    def adapter(self, target: Targets) -> nn.Module:
        """Returns the regressor."""
        return Regressor(self.level, target.shape[1:])

    def compare(
        self, context: Context, student: jax.Array, target: jax.Array
    ) -> jax.Array:
        """Returns the distance of the regressed map from the hint."""
        return losses.feature_mse(student, target)
