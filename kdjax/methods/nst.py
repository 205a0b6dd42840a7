"""NST: neuron selectivity transfer."""

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
    total,
)
from kdjax.models import Outputs


@dataclasses.dataclass(frozen=True)
class NST(Method):
    """Neuron selectivity transfer (Huang and Wang, 2017): CE + beta sum_j NST_j.

    Maps of any size and width. Deviations: see `losses.nst`; the weight and the levels
    are RepDistiller's.
    """

    num_teachers: ClassVar[int] = 1
    beta: float = 50.0
    levels: tuple[str, ...] = ("stage1", "stage2", "stage3")

    def __post_init__(self) -> None:
        check_levels("nst", self.levels)

    def teacher_targets(self, outputs: Outputs) -> dict[str, jax.Array]:
        """Returns the feature maps."""
        return feature_maps(outputs, self.levels)

    def terms(self, context: Context) -> dict[str, Term]:
        """Returns cross-entropy and the term of all levels."""
        teacher, target = only(context.targets)
        maps = feature_maps(context.outputs["student"], self.levels)
        loss = total(losses.nst(maps[level], target[level]) for level in self.levels)
        return {
            "ce/student": Term(cross_entropy(context, "student")),
            f"nst/{teacher}": Term(loss, self.beta),
        }
