"""KDSVD: singular vectors of consecutive levels."""

import dataclasses

import jax

from kdjax import losses
from kdjax.methods.base import Context
from kdjax.methods.levels import Maps, SeveralLevels
from kdjax.methods.ranges import Count, LevelPairs
from kdjax.runtime.errors import UserError


@dataclasses.dataclass(frozen=True)
class KDSVD(SeveralLevels):
    """Singular vectors of consecutive levels (Lee et al., 2018): CE + beta KDSVD.

    Maps of any size, but equally wide. Deviations: see `losses.kdsvd`; the weight and
    the levels are RepDistiller's.
    """

    beta: float = 1.0
    levels: LevelPairs = ("stage*",)
    k: Count = 1

    def compare(self, context: Context, student: Maps, target: Maps) -> jax.Array:
        """Returns the loss of all pairs of levels."""
        for level in self.levels:
            ours, theirs = student[level].shape[1:], target[level].shape[1:]
            if ours[2] != theirs[2]:
                raise UserError(
                    f"kdsvd: the student's {level} {ours} and the teacher's {theirs} "
                    "differ in width (the last number); choices: networks of "
                    "equal widths at all levels, such as wrn-16-2 taught by wrn-40-2"
                )
            if self.k > ours[2]:
                raise UserError(
                    f"kdsvd: k={self.k} is more than the channels of {level} {ours}; "
                    f"choices: 1 to {ours[2]}"
                )
        return losses.kdsvd(
            [student[level] for level in self.levels],
            [target[level] for level in self.levels],
            k=self.k,
        )
