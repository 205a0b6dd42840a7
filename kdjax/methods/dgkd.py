"""DGKD and its stochastic form: a teacher and all assistants before the student."""

import dataclasses
from typing import ClassVar

import jax

from kdjax import losses
from kdjax.methods.base import (
    Context,
    Method,
    Term,
    cross_entropy,
)
from kdjax.models import Outputs
from kdjax.runtime.errors import UserError, unknown
from kdjax.runtime.rng import fold

_MASKS = ("batch", "example")
_KL_REDUCTIONS = ("batchmean", "mean")


def _check(method: str, temperature: float, alpha: float) -> None:
    if not temperature > 0:
        raise UserError(f"{method}: temperature {temperature} is not positive")
    if not 0 <= alpha <= 1:
        raise UserError(f"{method}: alpha (lambda) {alpha} is outside 0..1")


@dataclasses.dataclass(frozen=True)
class DGKD(Method):
    """Densely Guided Knowledge Distillation (Son et al., 2021, Eq. 7 and 8).

    L = (n+1)(1 - lambda) CE + lambda sum_i b_i tau^2 KL_i

    over n+1 guides: the teacher and the n assistants trained before this network. With
    survival < 1 it is the stochastic form: b_i is drawn from Bernoulli(survival) for
    every guide independently; it multiplies KL_i alone, the cross-entropy keeps its
    weight and nothing is rescaled.

    Deviations: the defaults are the paper's; the released code leaves out the factor
    n+1 (count_guides=False), divides each KL by the number of classes as well
    (kl_reduction='mean') and always drops the same number of guides (drop='fixed:1').
    The paper draws 'for each mini-batch or sample': mask='batch' or 'example'.

    Attributes:
        temperature: tau; 5 is the released code's, the paper searched it.
        alpha: the paper's lambda; 0.7 is the released code's.
        survival: the probability that a guide is kept; the paper's best is 0.75.
        mask: whether guides are drawn for a mini-batch or for every example.
        drop: 'bernoulli', or 'fixed:K' for exactly K guides dropped.
        count_guides: whether the cross-entropy counts n+1 times.
        kl_reduction: 'batchmean' sums over the classes, 'mean' averages.
        standardise: whether logits are standardised first (Sun et al., 2024).
    """

    num_teachers: ClassVar[int | None] = None
    temperature: float = 5.0
    alpha: float = 0.7
    survival: float = 1.0
    mask: str = "batch"
    drop: str = "bernoulli"
    count_guides: bool = True
    kl_reduction: str = "batchmean"
    standardise: bool = False

    def __post_init__(self) -> None:
        _check("dgkd", self.temperature, self.alpha)
        if not 0 < self.survival <= 1:
            raise UserError(f"dgkd: survival {self.survival} is outside (0, 1]")
        if self.mask not in _MASKS:
            raise unknown("mask of dgkd", self.mask, _MASKS)
        if self.kl_reduction not in _KL_REDUCTIONS:
            raise unknown("kl_reduction of dgkd", self.kl_reduction, _KL_REDUCTIONS)
        kind, _, count = self.drop.partition(":")
        if self.drop != "bernoulli" and not (kind == "fixed" and count.isdecimal()):
            raise unknown("drop of dgkd", self.drop, ("bernoulli", "fixed:K"))
        if kind == "fixed" and self.survival < 1:
            raise UserError(f"dgkd: drop {self.drop!r} leaves no use for survival")

    def teacher_targets(self, outputs: Outputs) -> jax.Array:
        """Returns the logits."""
        return outputs.logits

    def terms(self, context: Context) -> dict[str, Term]:
        """Returns the cross-entropy and every guide's divergence, logged unmasked."""
        student = context.outputs["student"].logits
        guides = dict(context.targets)
        if self.standardise:
            student = losses.standardise_logits(student)
            guides = {n: losses.standardise_logits(x) for n, x in guides.items()}
        weight = self.alpha
        if self.kl_reduction == "mean":
            weight /= student.shape[-1]
        masks = self._masks(context)
        count = len(guides) if self.count_guides else 1
        terms = {
            "ce/student": Term(
                cross_entropy(context, "student"), count * (1 - self.alpha)
            )
        }
        for i, (name, target) in enumerate(guides.items()):
            divergence = losses.kd(student, target, temperature=self.temperature)
            mask = None if masks is None else masks[..., i].astype(student.dtype)
            terms[f"kd/{name}"] = Term(divergence, weight, mask)
        return terms

    def _masks(self, context: Context) -> jax.Array | None:
        """Returns which guides are kept, `[guides]` or `[batch, guides]`, None: all."""
        guides = len(context.targets)
        key = fold(context.key, "guides")
        if self.drop != "bernoulli":
            dropped = int(self.drop.partition(":")[2])
            if dropped >= guides:
                raise UserError(
                    f"dgkd: drop {self.drop!r} would drop all of {guides} guides"
                )

            def draw(key: jax.Array) -> jax.Array:
                return jax.random.permutation(key, guides) >= dropped

        elif self.survival < 1:

            def draw(key: jax.Array) -> jax.Array:
                return jax.random.bernoulli(key, self.survival, (guides,))

        else:
            return None
        if self.mask == "batch":
            return draw(key)
        # From the example's index: no layout of the batch changes it.
        return jax.vmap(lambda index: draw(fold(key, index)))(context.index)
