"""Attention transfer."""

import dataclasses
from typing import ClassVar

import jax

from kdjax.methods.base import (
    Context,
    Method,
    Term,
    cross_entropy,
    only,
)
from kdjax.methods.levels import (
    attention_distance,
    attention_maps,
)
from kdjax.models import Outputs


@dataclasses.dataclass(frozen=True)
class AT(Method):
    """Attention transfer (Zagoruyko and Komodakis, 2017): CE + beta sum_j AT_j.

    Deviations: of networks whose maps differ in size the attention maps are pooled;
    RepDistiller pools the features.
    """

    num_teachers: ClassVar[int] = 1
    beta: float = 1e3
    levels: tuple[str, ...] = ("stage1", "stage2", "stage3")
    power: float = 2.0
    norm: str = "mean_square"

    def teacher_targets(self, outputs: Outputs) -> dict[str, jax.Array]:
        """Returns the attention maps."""
        return attention_maps(outputs, self.levels, self.power)

    def terms(self, context: Context) -> dict[str, Term]:
        """Returns cross-entropy and attention term."""
        teacher, target = only(context.targets)
        maps = attention_maps(context.outputs["student"], self.levels, self.power)
        distance = attention_distance(maps, target, self.norm)
        return {
            "ce/student": Term(cross_entropy(context, "student")),
            f"at/{teacher}": Term(distance, self.beta),
        }
