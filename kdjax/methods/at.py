"""Attention transfer."""

import dataclasses
from typing import Annotated, Literal

import jax

from kdjax.methods.base import Context
from kdjax.methods.levels import Maps, SeveralLevels, attention_distance, attention_map
from kdjax.methods.ranges import Range
from kdjax.models import Outputs


@dataclasses.dataclass(frozen=True)
class AT(SeveralLevels):
    """Attention transfer (Zagoruyko and Komodakis, 2017): CE + beta sum_j AT_j.

    Deviations: of networks whose maps differ in size the attention maps are pooled
    (`losses.match_attention`); RepDistiller pools the features.
    """

    beta: float = 1e3
    power: Annotated[float, Range(above=1)] = 2.0
    norm: Literal["mean_square", "l2"] = "mean_square"

    def read(self, outputs: Outputs, level: str) -> jax.Array:
        """Returns the attention map of a feature."""
        return attention_map(outputs, level, self.power)

    def compare(self, context: Context, student: Maps, target: Maps) -> jax.Array:
        """Returns the distance of the attention maps."""
        return attention_distance(student, target, self.norm)
