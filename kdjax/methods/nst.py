"""NST: neuron selectivity transfer."""

import dataclasses

import jax

from kdjax import losses
from kdjax.methods.base import Context
from kdjax.methods.levels import Maps, SeveralLevels, total


@dataclasses.dataclass(frozen=True)
class NST(SeveralLevels):
    """Neuron selectivity transfer (Huang and Wang, 2017): CE + beta sum_j NST_j.

    Maps of any size and width. Deviations: see `losses.nst`; the weight and the levels
    are RepDistiller's.
    """

    beta: float = 50.0

    def compare(self, context: Context, student: Maps, target: Maps) -> jax.Array:
        """Returns the sum over the levels."""
        return total(losses.nst(student[level], target[level]) for level in self.levels)
