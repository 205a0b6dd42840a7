"""Methods that teach through logits."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from kdjax import losses
from kdjax.methods.base import Context, Method, Term, cross_entropy, only
from kdjax.models import Outputs
from kdjax.runtime.errors import UserError, unknown

_FORMS = ("weighted", "added")


def _check_temperature(method: str, temperature: float) -> None:
    if not temperature > 0:
        raise UserError(f"{method}: temperature {temperature} is not positive")


def logits_of(context: Context, standardise: bool) -> tuple[str, jax.Array, jax.Array]:
    """Returns the one teacher's name, the student's logits and the teacher's."""
    teacher, target = only(context.targets)
    student = context.outputs["student"].logits
    if standardise:
        student, target = map(losses.standardise_logits, (student, target))
    return teacher, student, target


@dataclasses.dataclass(frozen=True)
class KD(Method):
    """Knowledge distillation (Hinton et al., 2015).

    'weighted': (1 - alpha) CE + alpha tau^2 KL, as attention transfer's and Rocket
    Launching's code have it. 'added': CE + alpha H(P_T^tau, P_S^tau), Eq. 1 of the
    CTKD paper, whose weight it does not print.

    Deviations: the released code of attention transfer, Rocket Launching and CTKD
    takes alpha * 2 tau^2 times a KL averaged over batch and classes, which for 10
    classes is a fifth of this term.

    With standardise, the logits of both are standardised first (Sun et al., 2024, who
    take temperature 2, and weights of 0.1 and 9 for the two terms).
    """

    num_teachers: ClassVar[int] = 1
    temperature: float = 4.0
    alpha: float = 0.9
    form: str = "weighted"
    standardise: bool = False

    def __post_init__(self) -> None:
        if self.form not in _FORMS:
            raise unknown("form of kd", self.form, _FORMS)
        _check_temperature("kd", self.temperature)
        if self.form == "weighted" and not 0 <= self.alpha <= 1:
            raise UserError(f"kd: alpha {self.alpha} is outside 0..1")

    def teacher_targets(self, outputs: Outputs) -> jax.Array:
        """Returns the logits."""
        return outputs.logits

    def terms(self, context: Context) -> dict[str, Term]:
        """Returns cross-entropy and distillation term."""
        teacher, student, target = logits_of(context, self.standardise)
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


@dataclasses.dataclass(frozen=True)
class DKD(Method):
    """Decoupled distillation (Zhao et al., 2022): CE + alpha TCKD + beta NCKD.

    The released code scales the distillation term by min(epoch / 20, 1). A method
    knows steps, not epochs: `warmup_steps` is 20 times the steps of an epoch then.

    Attributes:
        temperature: tau.
        alpha: weight of the target class's part.
        beta: weight of the other classes' part, by network pair; 8 is the released
            code's for most.
        warmup_steps: over how many steps the term's weight rises from 0 to 1.
        standardise: whether logits are standardised first (Sun et al., 2024).
    """

    num_teachers: ClassVar[int] = 1
    temperature: float = 4.0
    alpha: float = 1.0
    beta: float = 8.0
    warmup_steps: int = 0
    standardise: bool = False

    def __post_init__(self) -> None:
        _check_temperature("dkd", self.temperature)
        if self.warmup_steps < 0:
            raise UserError(f"dkd: warmup_steps {self.warmup_steps} is negative")

    def teacher_targets(self, outputs: Outputs) -> jax.Array:
        """Returns the logits."""
        return outputs.logits

    def _weight(self, step: jax.Array) -> jax.Array:
        return jnp.minimum(step / self.warmup_steps, 1.0)

    def terms(self, context: Context) -> dict[str, Term]:
        """Returns cross-entropy and distillation term."""
        teacher, student, target = logits_of(context, self.standardise)
        loss = losses.dkd(
            student,
            target,
            context.labels,
            temperature=self.temperature,
            alpha=self.alpha,
            beta=self.beta,
        )
        return {
            "ce/student": Term(cross_entropy(context, "student")),
            f"dkd/{teacher}": Term(loss, self._weight if self.warmup_steps else 1.0),
        }


@dataclasses.dataclass(frozen=True)
class DIST(Method):
    """DIST (Huang et al., 2022): CE + beta inter-class + gamma intra-class relation.

    The defaults are for CIFAR-100; ImageNet has temperature 1. With standardise the
    logits are standardised first (Sun et al., 2024).
    """

    num_teachers: ClassVar[int] = 1
    temperature: float = 4.0
    beta: float = 2.0
    gamma: float = 2.0
    standardise: bool = False

    def __post_init__(self) -> None:
        _check_temperature("dist", self.temperature)

    def teacher_targets(self, outputs: Outputs) -> jax.Array:
        """Returns the logits."""
        return outputs.logits

    def terms(self, context: Context) -> dict[str, Term]:
        """Returns cross-entropy and relation term."""
        teacher, student, target = logits_of(context, self.standardise)
        loss = losses.dist(
            student,
            target,
            temperature=self.temperature,
            beta=self.beta,
            gamma=self.gamma,
        )
        return {
            "ce/student": Term(cross_entropy(context, "student")),
            f"dist/{teacher}": Term(loss),
        }


@dataclasses.dataclass(frozen=True)
class LabelSmoothing(Method):
    """A control without a teacher: soft targets that know nothing of the classes.

    Cross-entropy with (1 - smoothing) of the label and smoothing of all classes alike
    (Szegedy et al., 2016).
    """

    smoothing: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.smoothing <= 1:
            raise UserError(
                f"label_smoothing: smoothing {self.smoothing} is outside 0..1"
            )

    def terms(self, context: Context) -> dict[str, Term]:
        """Returns the smoothed cross-entropy."""
        smoothed = losses.cross_entropy(
            context.outputs["student"].logits,
            context.labels,
            label_smoothing=self.smoothing,
        )
        return {"ce/student": Term(smoothed)}
