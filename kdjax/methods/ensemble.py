"""Several teachers as one."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from kdjax import losses
from kdjax.methods.base import Context, Term, cross_entropy
from kdjax.methods.logits import LogitMethod
from kdjax.methods.ranges import Lambda, Positive


@dataclasses.dataclass(frozen=True)
class Ensemble(LogitMethod):
    """Several teachers as one (Hinton et al., 2015; DGKD's Table 4).

    form='mean': (1 - lambda) CE + lambda tau^2 KL from the mean of the teachers'
    softened probabilities. form='sum': the sum of the teachers' KL terms.

    Deviations: neither paper states temperature, weight and form for several teachers;
    the defaults are this package's, equal to those of `DGKD`.
    """

    num_teachers: ClassVar[int | None] = None
    temperature: Positive = 5.0
    alpha: Lambda = 0.7
    form: Literal["mean", "sum"] = "mean"

    def label_term(self, context: Context) -> Term:
        """Returns the cross-entropy with its weight."""
        return Term(cross_entropy(context, "student"), 1 - self.alpha)

    def distances(self, context: Context) -> dict[str, Term]:
        """Returns the distillation terms: of the mean, or of every teacher."""
        student = context.outputs["student"].logits
        targets: Mapping[str, jax.Array] = context.targets
        if self.form == "mean":
            stacked = jnp.stack(list(targets.values()))
            mean = losses.ensemble_logits(stacked, temperature=self.temperature)
            targets = {"ensemble": mean}
        return {
            f"kd/{name}": Term(
                losses.kd(student, target, temperature=self.temperature), self.alpha
            )
            for name, target in targets.items()
        }
