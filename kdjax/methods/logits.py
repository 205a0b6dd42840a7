"""Methods that teach through logits."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from kdjax import losses
from kdjax.methods.base import Context, Method, Term, cross_entropy, only
from kdjax.methods.ranges import Positive, Share, Steps
from kdjax.models import Outputs
from kdjax.runtime.errors import UserError


class LogitMethod(Method):
    """A method that uses of its teachers the logits only."""

    num_teachers: ClassVar[int | None] = 1

    def teacher_targets(self, outputs: Outputs) -> jax.Array:
        """Returns the logits."""
        return outputs.logits


class DistancesFirst(LogitMethod):
    """A method whose distances are computed before the cross-entropy."""

    def terms(self, context: Context) -> dict[str, Term]:
        """Returns the cross-entropy and the distances."""
        # The gradient of the logits is a sum over all their uses, in the reverse order
        # of the program. These methods have always had their distance first: the other
        # order would change the last bits of their results.
        distances = self.distances(context)
        return {"ce/student": self.label_term(context), **distances}


def logits_of(context: Context, standardise: bool) -> tuple[str, jax.Array, jax.Array]:
    """Returns the only teacher's name, the student's logits and the teacher's.

    Args:
        context: of the step.
        standardise: whether the logits of both are standardised (Sun et al., 2024).
    """
    teacher, target = only(context.targets)
    student = context.outputs["student"].logits
    if standardise:
        student, target = map(losses.standardise_logits, (student, target))
    return teacher, student, target


@dataclasses.dataclass(frozen=True)
class KD(LogitMethod):
    """Knowledge distillation (Hinton et al., 2015).

    'weighted': (1 - alpha) CE + alpha tau^2 KL, as attention transfer's code has it.
    'added': CE + alpha H(P_T^tau, P_S^tau), Eq. 1 of the CTKD paper, whose weight it
    does not print. Added to another method, as in 'crd+kd', whose cross-entropy counts
    alone, alpha is 1 by default, as in RepDistiller's scripts.

    Deviations: the released code of Rocket Launching and CTKD, and older versions of
    attention transfer's, which they copied, take alpha * 2 tau^2 times a KL averaged
    over batch and classes, which for 10 classes is a fifth of this term.

    With standardise, the logits of both are standardised first (Sun et al., 2024, who
    take temperature 2, and weights of 0.1 and 9 for the two terms).
    """

    AS_PART: ClassVar[Mapping[str, Any]] = {"alpha": 1.0}
    temperature: Positive = 4.0
    alpha: float = 0.9
    form: Literal["weighted", "added"] = "weighted"
    standardise: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.form == "weighted" and not 0 <= self.alpha <= 1:
            raise UserError(f"kd: alpha {self.alpha} is outside 0..1")

    def terms(self, context: Context) -> dict[str, Term]:
        """Returns cross-entropy and distillation term."""
        # Before the cross-entropy: see `DistancesFirst`.
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
class DKD(DistancesFirst):
    """Decoupled distillation (Zhao et al., 2022): CE + alpha TCKD + beta NCKD.

    The released code scales the distillation term by min(epoch / 20, 1). A method
    knows steps, not epochs: `warmup_steps` is 20 times the steps of an epoch then.

    Attributes:
        temperature: tau.
        alpha: weight of the target class's part.
        beta: weight of the other classes' part, by network pair; 8 is the released
            code's for most.
        warmup_steps: the number of steps over which the weight rises from 0 to 1.
        standardise: whether logits are standardised first (Sun et al., 2024).
    """

    reads_labels: ClassVar[bool] = True
    temperature: Positive = 4.0
    alpha: float = 1.0
    beta: float = 8.0
    warmup_steps: Steps = 0
    standardise: bool = False

    def _rising(self, step: jax.Array) -> jax.Array:
        return jnp.minimum(step / self.warmup_steps, 1.0)

    def distances(self, context: Context) -> dict[str, Term]:
        """Returns the distillation term."""
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
            f"dkd/{teacher}": Term(loss, self._rising if self.warmup_steps else 1.0)
        }


@dataclasses.dataclass(frozen=True)
class DIST(DistancesFirst):
    """DIST (Huang et al., 2022): CE + beta inter-class + gamma intra-class relation.

    The defaults are the paper's for CIFAR-100, those of `losses.dist` are the published
    code's (temperature, beta and gamma 1). On ImageNet the paper has temperature 1 with
    beta and gamma 2. With standardise the
    logits are standardised first (Sun et al., 2024).
    """

    temperature: Positive = 4.0
    beta: float = 2.0
    gamma: float = 2.0
    standardise: bool = False

    def distances(self, context: Context) -> dict[str, Term]:
        """Returns the relation term."""
        teacher, student, target = logits_of(context, self.standardise)
        loss = losses.dist(
            student,
            target,
            temperature=self.temperature,
            beta=self.beta,
            gamma=self.gamma,
        )
        return {f"dist/{teacher}": Term(loss)}


@dataclasses.dataclass(frozen=True)
class NKD(DistancesFirst):
    """Normalised distillation (Yang et al., 2023): CE + NKD, see `losses.nkd`.

    The defaults are those of the released code's config for CIFAR-100 (ResNet-34
    teaches ResNet-18); its configs for ImageNet have temperature 1 and gamma 1.5.

    Attributes:
        temperature: tau of the part of the classes that are not the label.
        gamma: weight of that part, beside the factor tau^2.
    """

    reads_labels: ClassVar[bool] = True
    temperature: Positive = 3.0
    gamma: float = 3.5

    def distances(self, context: Context) -> dict[str, Term]:
        """Returns the distillation term."""
        teacher, student, target = logits_of(context, standardise=False)
        loss = losses.nkd(
            student,
            target,
            context.labels,
            temperature=self.temperature,
            gamma=self.gamma,
        )
        return {f"nkd/{teacher}": Term(loss)}


@dataclasses.dataclass(frozen=True)
class WTTM(DistancesFirst):
    """Weighted transformed teacher matching (Zheng and Yang, 2024): CE + beta WTTM.

    The paper tunes power and weight for every pair of networks; the defaults are the
    ones that its released code prints for WTTM on CIFAR-100, in the README's command
    for VGG-13 and VGG-8 (there beside CRD).

    Attributes:
        power: the teacher's exponent, gamma in the paper: 1 over its temperature.
        beta: the weight.
    """

    power: Positive = 0.2
    beta: float = 4.0

    def distances(self, context: Context) -> dict[str, Term]:
        """Returns the distillation term."""
        teacher, student, target = logits_of(context, standardise=False)
        loss = losses.wttm(student, target, power=self.power)
        return {f"wttm/{teacher}": Term(loss, self.beta)}


@dataclasses.dataclass(frozen=True)
class LabelSmoothing(Method):
    """Label smoothing (Szegedy et al., 2016): soft targets without a teacher.

    Cross-entropy with 1 - smoothing on the label and smoothing spread evenly over all
    classes.
    """

    NAME: ClassVar[str] = "label_smoothing"
    reads_labels: ClassVar[bool] = True
    smoothing: Share = 0.1

    def label_term(self, context: Context) -> Term:
        """Returns the smoothed cross-entropy.

        Raises:
            UserError: the recipe smooths the labels as well.
        """
        if context.label_smoothing:
            raise UserError(
                f"recipe.label_smoothing={context.label_smoothing:g} beside method "
                f"'label_smoothing' of smoothing={self.smoothing:g}; choices: one of "
                "the two"
            )
        return Term(
            losses.cross_entropy(
                context.outputs["student"].logits,
                context.labels,
                label_smoothing=self.smoothing,
            )
        )
