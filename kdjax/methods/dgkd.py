"""DGKD and its stochastic form: a teacher and all assistants before the student."""

import dataclasses
from typing import Annotated, ClassVar, Literal

import jax

from kdjax import losses
from kdjax.methods.base import Context, Term, cross_entropy
from kdjax.methods.logits import LogitMethod
from kdjax.methods.ranges import Lambda, Positive, Range
from kdjax.runtime.errors import UserError, unknown
from kdjax.runtime.rng import fold


@dataclasses.dataclass(frozen=True)
class DGKD(LogitMethod):
    """Densely Guided Knowledge Distillation (Son et al., 2021, Eq. 7 and 8).

    L = (n+1)(1 - lambda) CE + lambda sum_i b_i tau^2 KL_i

    over n+1 guides: the teacher and the n assistants trained before this network. With
    survival < 1 it is the stochastic form: b_i is sampled from Bernoulli(survival) for
    every guide independently; it multiplies KL_i alone, the cross-entropy keeps its
    weight and nothing is rescaled.

    Deviations: the defaults are the paper's; the released code leaves out the factor
    n+1 (count_guides=False), divides each KL by the number of classes as well
    (kl_reduction='mean') and always drops the same number of guides (drop='fixed:1').
    The paper samples 'for each mini-batch or sample': mask='batch' or 'example'.

    Attributes:
        temperature: tau; 5 is the released code's, the paper searched it.
        alpha: the paper's lambda, which it searched; 0.7 is this package's choice. The
            released code's default is 1, which leaves no cross-entropy.
        survival: the probability that a guide is kept; the paper's best is 0.75.
        mask: whether guides are sampled for a mini-batch or for every example.
        drop: 'bernoulli', or 'fixed:K' for exactly K guides dropped.
        count_guides: whether the cross-entropy counts n+1 times.
        kl_reduction: 'batchmean' sums over the classes, 'mean' averages.
        standardise: whether logits are standardised first (Sun et al., 2024).
    """

    num_teachers: ClassVar[int | None] = None
    temperature: Positive = 5.0
    alpha: Lambda = 0.7
    survival: Annotated[float, Range(above=0, most=1)] = 1.0
    mask: Literal["batch", "example"] = "batch"
    drop: str = "bernoulli"
    count_guides: bool = True
    kl_reduction: Literal["batchmean", "mean"] = "batchmean"
    standardise: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        kind, _, count = self.drop.partition(":")
        if self.drop != "bernoulli" and not (kind == "fixed" and count.isdecimal()):
            raise unknown("drop of dgkd", self.drop, ("bernoulli", "fixed:K"))
        if kind == "fixed" and self.survival < 1:
            raise UserError(
                f"dgkd: drop={self.drop!r} does not use survival: leave survival out"
            )

    def terms(self, context: Context) -> dict[str, Term]:
        """Returns the cross-entropy and every guide's divergence, logged unmasked.

        The sum is `losses.dgkd`, which returns the sum only. Here every guide's
        divergence is logged, kept or not: both use `losses.guide_divergences`.
        """
        # Before the cross-entropy: see `DistancesFirst`.
        student = context.outputs["student"].logits
        guides = dict(context.targets)
        if self.standardise:
            student = losses.standardise_logits(student)
            guides = {n: losses.standardise_logits(x) for n, x in guides.items()}
        weight = self.alpha
        if self.kl_reduction == "mean":
            weight /= student.shape[-1]
        count = len(guides) if self.count_guides else 1
        terms = {
            "ce/student": Term(
                cross_entropy(context, "student"), count * (1 - self.alpha)
            )
        }
        key = fold(context.key, "guides")
        masks = self.guide_masks(key, context.index, len(guides))
        divergences = losses.guide_divergences(
            student, guides.values(), temperature=self.temperature
        )
        for i, (name, value) in enumerate(zip(guides, divergences, strict=True)):
            mask = None if masks is None else masks[..., i].astype(student.dtype)
            terms[f"kd/{name}"] = Term(value, weight, mask)
        return terms

    def guide_masks(
        self, key: jax.Array, index: jax.Array, num_guides: int
    ) -> jax.Array | None:
        """Samples which guides are kept.

        Args:
            key: the random key of this step.
            index: `[batch]` positions in the training set.
            num_guides: n+1, the teacher and the n assistants.

        Returns:
            Booleans, `[guides]` or, by example, `[batch, guides]`; None: all are kept.

        Raises:
            UserError: all guides would be dropped.
        """
        if self.drop != "bernoulli":
            dropped = int(self.drop.partition(":")[2])
            if dropped >= num_guides:
                raise UserError(
                    f"dgkd: drop={self.drop!r} would drop all {num_guides} guides"
                )

            def sample(key: jax.Array) -> jax.Array:
                # A permutation numbers the guides; numbers 0..K-1 are dropped.
                return jax.random.permutation(key, num_guides) >= dropped

        elif self.survival < 1:

            def sample(key: jax.Array) -> jax.Array:
                return jax.random.bernoulli(key, self.survival, (num_guides,))

        else:
            return None
        if self.mask == "batch":
            return sample(key)
        # From the example's index in the training set, not its place in the batch: an
        # example keeps its mask however a batch is split over devices.
        return jax.vmap(lambda position: sample(fold(key, position)))(index)
