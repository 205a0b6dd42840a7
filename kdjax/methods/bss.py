"""BSS: adversarial samples that support the teacher's decision boundaries."""

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from kdjax import losses
from kdjax.methods.base import Call, Context, Term, Weight, only
from kdjax.methods.logits import DistancesFirst
from kdjax.methods.ranges import Count, Positive, Steps
from kdjax.runtime import backend
from kdjax.runtime.rng import fold


def base_samples(
    student: jax.Array, teacher: jax.Array, labels: jax.Array, count: int, base: str
) -> tuple[jax.Array, jax.Array]:
    """Returns the images to attack, and which of them count.

    They are the `count` correctly classified images with the largest sum over the wrong
    classes of (p_t - p_s)^2. If there are fewer, the rest are marked as not counting.

    Args:
        student: logits, `[batch, classes]`.
        teacher: logits, `[batch, classes]`.
        labels: `[batch]`.
        count: the number of images.
        base: whose classification must be correct, 'both' or 'teacher'.

    Returns:
        Positions in the batch and booleans, `[count]`.
    """
    right = jnp.argmax(teacher, axis=-1) == labels
    if base == "both":
        right &= jnp.argmax(student, axis=-1) == labels
    difference = jnp.square(jax.nn.softmax(teacher) - jax.nn.softmax(student))
    own = jnp.take_along_axis(difference, labels[:, None], axis=1)[:, 0]
    score = jnp.where(right, jnp.sum(difference, axis=1) - own, -1.0)
    chosen = jax.lax.top_k(score, count)[1]
    return chosen, right[chosen]


def attack(
    call: Call,
    images: jax.Array,
    target: jax.Array,
    *,
    steps: int,
    rate: float,
    clip: float,
) -> jax.Array:
    """Returns images moved towards the boundary between their and a target class.

    `x += rate (z_k - z_t + 1e-4) g / ||g||`, `g = d(z_t - z_k) / dx`, where k is the
    class at the start and t the target, until the class changes; x stays within
    +-clip.

    Args:
        call: the attacked network.
        images: `[batch, height, width, channels]`.
        target: classes, `[batch]`.
        steps: the largest number of steps.
        rate: the size of a step.
        clip: the largest value of an image.
    """
    start = jnp.argmax(call(images).logits, axis=-1)

    def gap(x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        logits = call(x).logits
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        own, other = (
            jnp.take_along_axis(logits, classes[:, None], axis=1)[:, 0]
            for classes in (start, target)
        )
        return jnp.sum(other - own), (own - other, jnp.argmax(logits, axis=-1))

    def move(x: jax.Array, _: object) -> tuple[jax.Array, None]:
        gradient, (distance, now) = jax.grad(gap, has_aux=True)(x)
        norm = jnp.sqrt(jnp.sum(jnp.square(gradient), axis=(1, 2, 3), keepdims=True))
        # Without a gradient there is no direction: the image stays.
        direction = gradient / jnp.where(norm > 0, norm, 1)
        length = jnp.where(now == start, rate * (distance + 1e-4), 0.0)
        step = length.reshape(-1, 1, 1, 1).astype(x.dtype) * direction
        moved = jnp.clip(x + step, -clip, clip)
        return jnp.where(jnp.any(now == start), moved, x), None

    return backend.loop(move, images, steps)[0]


@dataclasses.dataclass(frozen=True)
class BSS(DistancesFirst):
    """Boundary supporting samples (Heo et al., 2019).

    CE + w(alpha, 1) H(P_T, P_S) of the images + w(beta, 0) H(P_T, P_S) of adversarial
    samples: images that both networks classify correctly, moved across the frozen
    teacher's boundary to a class sampled by the teacher's probabilities. They are made
    in the train step.

    Deviations: base='both' is the released code's as well as the paper's; 'teacher' is
    for students that classify few images correctly yet. The released code's weights
    fall with the epoch, to `1 + max(alpha (1 - e/80), 0)` and `max(beta (1 - 4/3 e/80),
    0)`: a method knows steps, not epochs, so set `decay_steps` to 80 times the steps of
    an epoch.
    The number of samples is fixed under jit: those that do not count only affect the
    student's BatchNorm. Its running statistics leave the samples out; the released code
    includes them.

    Attributes:
        alpha: by how much the distillation's weight exceeds 1 at the start.
        beta: weight of the adversarial samples at the start.
        temperature: tau of both terms, without the factor tau^2.
        samples: the largest number of images of a batch to attack.
        attack_steps: the largest number of steps of an attack.
        attack_rate: the size of a step of an attack.
        clip: the largest value of an attacked, normalised image.
        base: who must classify an image correctly, 'both' or 'teacher'.
        decay_steps: the number of steps over which the weights fall; 0: they are fixed.
    """

    call_teachers: ClassVar[bool] = True
    reads_labels: ClassVar[bool] = True
    alpha: float = 3.0
    beta: float = 2.0
    temperature: Positive = 3.0
    samples: Count = 64
    attack_steps: Count = 10
    attack_rate: float = 0.3
    clip: Positive = 2.5
    base: Literal["both", "teacher"] = "both"
    decay_steps: Steps = 0

    def _weight(self, size: float, speed: float, least: float) -> Weight:
        if not self.decay_steps:
            return size + least

        def falling(step: jax.Array) -> jax.Array:
            left = 1 - speed * step / self.decay_steps
            return least + jnp.maximum(size * left, 0.0)

        return falling

    def sample_targets(
        self, key: jax.Array, index: jax.Array, logits: jax.Array
    ) -> jax.Array:
        """Samples the class that each attack moves an image to.

        By the teacher's probabilities, without the class that the teacher predicts.

        Args:
            key: the random key of this step.
            index: `[samples]` positions in the training set.
            logits: the teacher's, `[samples, classes]`.

        Returns:
            Classes, `[samples]`.
        """
        scores = jax.nn.log_softmax(logits)
        own = jax.nn.one_hot(jnp.argmax(scores, axis=-1), scores.shape[-1], dtype=bool)
        # From the example's index in the training set, not its place in the batch: an
        # example keeps its target however a batch is split over devices.
        keys = jax.vmap(fold, in_axes=(None, 0))(key, index)
        return jax.vmap(jax.random.categorical)(keys, jnp.where(own, -jnp.inf, scores))

    def adversarial_samples(
        self, context: Context, teacher: str, logits: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Returns adversarial samples, and which of them count.

        Args:
            context: of the step.
            teacher: its name.
            logits: the teacher's, of the batch.
        """
        assert context.images is not None
        student = jax.lax.stop_gradient(context.outputs["student"].logits)
        count = min(self.samples, len(logits))
        chosen, valid = base_samples(student, logits, context.labels, count, self.base)
        key = fold(context.key, "target")
        target = self.sample_targets(key, context.index[chosen], logits[chosen])
        moved = attack(
            context.call_teacher[teacher],
            context.images[chosen],
            target,
            steps=self.attack_steps,
            rate=self.attack_rate,
            clip=self.clip,
        )
        # Samples are data: no gradient passes through the attack.
        return jax.lax.stop_gradient(moved), valid

    def distances(self, context: Context) -> dict[str, Term]:
        """Returns both distillation terms: of the images, and of the samples."""
        teacher, logits = only(context.targets)
        samples, valid = self.adversarial_samples(context, teacher, logits)
        theirs = jax.lax.stop_gradient(context.call_teacher[teacher](samples).logits)
        ours = context.call_role["student"](samples).logits
        values = losses.soft_cross_entropy(ours, theirs, temperature=self.temperature)
        kept = jnp.sum(jnp.where(valid, values, 0.0))
        student = context.outputs["student"].logits
        images = losses.soft_cross_entropy(
            student, logits, temperature=self.temperature
        )
        return {
            f"bss/kd/{teacher}": Term(images, self._weight(self.alpha, 1.0, 1.0)),
            f"bss/samples/{teacher}": Term(
                kept / jnp.maximum(jnp.sum(valid), 1), self._weight(self.beta, 4 / 3, 0)
            ),
        }
