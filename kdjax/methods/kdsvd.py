"""KDSVD: singular vectors of consecutive levels."""

import dataclasses
from typing import ClassVar

import jax

from kdjax import losses
from kdjax.methods.base import (
    Context,
    Method,
    Term,
    cross_entropy,
    only,
)
from kdjax.methods.levels import (
    check_levels,
    feature_maps,
)
from kdjax.models import Outputs
from kdjax.runtime.errors import UserError


@dataclasses.dataclass(frozen=True)
class KDSVD(Method):
    """Singular vectors of consecutive levels (Lee et al., 2018): CE + beta KDSVD.

    Maps of any size, but equally wide. Deviations: see `losses.kdsvd`; the weight and
    the levels are RepDistiller's.
    """

    num_teachers: ClassVar[int] = 1
    beta: float = 1.0
    levels: tuple[str, ...] = ("stage1", "stage2", "stage3")
    k: int = 1

    def __post_init__(self) -> None:
        check_levels("kdsvd", self.levels, least=2)
        if self.k < 1:
            raise UserError(f"kdsvd: k={self.k} is not positive")

    def teacher_targets(self, outputs: Outputs) -> dict[str, jax.Array]:
        """Returns the feature maps."""
        return feature_maps(outputs, self.levels)

    def terms(self, context: Context) -> dict[str, Term]:
        """Returns cross-entropy and the term of all pairs of levels."""
        teacher, target = only(context.targets)
        maps = feature_maps(context.outputs["student"], self.levels)
        for level in self.levels:
            ours, theirs = maps[level].shape[1:], target[level].shape[1:]
            if ours[2] != theirs[2]:
                raise UserError(
                    f"kdsvd: the student's {level} {ours} and the teacher's {theirs} "
                    "differ in width (the last number); it wants networks of equal "
                    "widths at all its levels, such as wrn-16-2 taught by wrn-40-2"
                )
            if self.k > ours[2]:
                raise UserError(
                    f"kdsvd: k={self.k} is more than {level} {ours} is wide"
                )
        loss = losses.kdsvd(
            [maps[level] for level in self.levels],
            [target[level] for level in self.levels],
            k=self.k,
        )
        return {
            "ce/student": Term(cross_entropy(context, "student")),
            f"kdsvd/{teacher}": Term(loss, self.beta),
        }
