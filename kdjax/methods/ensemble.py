"""Several teachers as one."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from kdjax import losses
from kdjax.methods.base import (
    Context,
    Method,
    Term,
    cross_entropy,
)
from kdjax.models import Outputs
from kdjax.runtime.errors import UserError, unknown

_ENSEMBLES = ("mean", "sum")


def _check(method: str, temperature: float, alpha: float) -> None:
    if not temperature > 0:
        raise UserError(f"{method}: temperature {temperature} is not positive")
    if not 0 <= alpha <= 1:
        raise UserError(f"{method}: alpha (lambda) {alpha} is outside 0..1")


@dataclasses.dataclass(frozen=True)
class Ensemble(Method):
    """Several teachers as one (Hinton et al., 2015; DGKD's Table 4).

    form='mean': (1 - lambda) CE + lambda tau^2 KL from the mean of the teachers'
    softened probabilities. form='sum': the sum of the teachers' KL terms.
    """

    num_teachers: ClassVar[int | None] = None
    temperature: float = 5.0
    alpha: float = 0.7
    form: str = "mean"

    def __post_init__(self) -> None:
        _check("ensemble", self.temperature, self.alpha)
        if self.form not in _ENSEMBLES:
            raise unknown("form of ensemble", self.form, _ENSEMBLES)

    def teacher_targets(self, outputs: Outputs) -> jax.Array:
        """Returns the logits."""
        return outputs.logits

    def terms(self, context: Context) -> dict[str, Term]:
        """Returns cross-entropy and distillation terms."""
        student = context.outputs["student"].logits
        targets: Mapping[str, Any] = context.targets
        if self.form == "mean":
            stacked = jnp.stack(list(targets.values()))
            mean = losses.ensemble_logits(stacked, temperature=self.temperature)
            targets = {"ensemble": mean}
        terms = {"ce/student": Term(cross_entropy(context, "student"), 1 - self.alpha)}
        for name, target in targets.items():
            divergence = losses.kd(student, target, temperature=self.temperature)
            terms[f"kd/{name}"] = Term(divergence, self.alpha)
        return terms
