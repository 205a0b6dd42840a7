"""Methods that teach through logits."""

import dataclasses
from typing import ClassVar

import jax

from kdjax import losses
from kdjax.errors import UserError, unknown
from kdjax.methods.base import Context, Method, Term, cross_entropy, only
from kdjax.models import Outputs

_FORMS = ("weighted", "added")


@dataclasses.dataclass(frozen=True)
class KD(Method):
    """Knowledge distillation (Hinton et al., 2015).

    'weighted': (1 - alpha) CE + alpha tau^2 KL, as attention transfer's and Rocket
    Launching's code have it. 'added': CE + alpha H(P_T^tau, P_S^tau), Eq. 1 of the
    CTKD paper, whose weight it does not print.

    Deviations: the released code of attention transfer, Rocket Launching and CTKD
    takes alpha * 2 tau^2 times a KL averaged over batch and classes, which for 10
    classes is a fifth of this term.
    """

    num_teachers: ClassVar[int] = 1
    temperature: float = 4.0
    alpha: float = 0.9
    form: str = "weighted"

    def __post_init__(self) -> None:
        if self.form not in _FORMS:
            raise unknown("form of kd", self.form, _FORMS)
        if not self.temperature > 0:
            raise UserError(f"kd: temperature {self.temperature} is not positive")
        if self.form == "weighted" and not 0 <= self.alpha <= 1:
            raise UserError(f"kd: alpha {self.alpha} is outside 0..1")

    def read(self, outputs: Outputs) -> jax.Array:
        """Returns the logits."""
        return outputs.logits

    def terms(self, context: Context) -> dict[str, Term]:
        """Returns cross-entropy and distillation term."""
        teacher, target = only(context.targets)
        student = context.outputs["student"].logits
        added = self.form == "added"
        loss = losses.soft_cross_entropy if added else losses.kd
        return {
            "ce/student": Term(
                cross_entropy(context, "student"), 1.0 if added else 1 - self.alpha
            ),
            f"kd/{teacher}": Term(
                loss(student, target, temperature=self.temperature), self.alpha
            ),
        }
