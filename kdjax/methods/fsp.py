"""Flow of solution procedure: matrices between levels, learned first."""

import dataclasses
from itertools import pairwise

import jax

from kdjax import losses
from kdjax.methods.base import Context, Phase
from kdjax.methods.levels import InitialisedLevels, Maps, total
from kdjax.methods.ranges import Count, LevelPairs
from kdjax.models import Outputs
from kdjax.runtime.errors import UserError


@dataclasses.dataclass(frozen=True)
class FSP(InitialisedLevels):
    """Flow of solution procedure (Yim et al., 2017): a start for the student's layers.

    First phase: beta sum_j FSP_j, between the matrices of consecutive levels, moves the
    student's layers up to the last level. Second phase: the cross-entropy; 'fsp+kd'
    adds Hinton's term.

    Networks of equal widths. Deviations: see `losses.fsp`; RepDistiller's scripts have
    a weight of 50, but its first phase does not use it: beta = 1. As there, the first
    phase keeps the initial learning rate.

    Attributes:
        beta: the weight.
        levels: the features, two or more.
        init_epochs: the epochs of the first phase, before the recipe's.
    """

    beta: float = 1.0
    levels: LevelPairs = ("stem", "stage*")
    init_epochs: Count = 30

    def read_all(
        self, outputs: Outputs, levels: tuple[str, ...]
    ) -> dict[str, jax.Array]:
        """Returns the matrices of consecutive levels, by the second."""
        maps = super().read_all(outputs, levels)
        return {
            level: losses.fsp_matrix(maps[before], maps[level])
            for before, level in pairwise(self.levels)
        }

    def phases(self) -> tuple[Phase, ...]:
        """Returns the matrices' phase and the labels'."""
        return self.init_phase(), Phase()

    def compare(self, context: Context, student: Maps, target: Maps) -> jax.Array:
        """Returns the sum over the pairs of levels."""
        for level, matrix in student.items():
            ours, theirs = matrix.shape[1:], target[level].shape[1:]
            if ours != theirs:
                raise UserError(
                    f"fsp: up to {level} the student's levels are {ours} wide and the "
                    f"teacher's {theirs}; choices: networks of equal widths, such as "
                    "wrn-16-2 taught by wrn-40-2"
                )
        return total(losses.fsp(student[level], target[level]) for level in student)
