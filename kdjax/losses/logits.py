"""Losses between class scores: labels, softened probabilities, raw logits.

None of these functions stops a gradient: where the teacher must not learn from the
student, the caller passes `jax.lax.stop_gradient(teacher)`.
"""

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from kdjax.losses import _checks


def cross_entropy(logits: ArrayLike, labels: ArrayLike) -> jax.Array:
    """Cross-entropy between the softmax of logits and integer labels.

    `loss = -log softmax(logits)[label]`

    Args:
        logits: class scores, [batch, classes].
        labels: class numbers from 0 to classes - 1, integers, [batch].

    Returns:
        One value per example, [batch].

    Raises:
        ValueError: if the shapes do not fit or the labels are not integers.
    """
    shape, labels = jnp.shape(logits), jnp.asarray(labels)
    if len(shape) != 2 or shape[:1] != labels.shape:
        raise ValueError(
            f"logits {shape} and labels {labels.shape} must be [batch, classes] "
            "and [batch]"
        )
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"labels must be integers, not {labels.dtype}")
    (logits,) = _checks.promote(logits)
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)


def kd(
    student: ArrayLike, teacher: ArrayLike, *, temperature: float | jax.Array = 4.0
) -> jax.Array:
    """Knowledge distillation: divergence of the softened student from the teacher.

    `loss = tau^2 * sum_c p_t * (log p_t - log p_s)`, with `p = softmax(logits / tau)`

    The gradient with respect to the student's logits is `tau * (p_s - p_t)`.

    Args:
        student: logits, [batch, classes].
        teacher: logits, [batch, classes].
        temperature: tau, a positive scalar.

    Returns:
        One value per example, [batch].

    Raises:
        ValueError: if the shapes differ or the temperature is not positive.

    Reference:
        Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network",
        2015, Eq. 1 and 2 and the factor tau^2 of Section 2.

    **Deviations**: The mean over the batch is the published code's 'batchmean'
    (RepDistiller). CTKD's and Rocket Launching's code divide by the number of classes
    as well and multiply by 2. The paper writes the cross-entropy with the soft
    targets; it differs by the teacher's entropy, which is constant in the student.
    """
    student, teacher = _checks.pair(student, teacher, _checks.LOGITS)
    _checks.above("temperature", temperature, 0)
    log_student = jax.nn.log_softmax(student / temperature)
    log_teacher = jax.nn.log_softmax(teacher / temperature)
    divergence = optax.losses.kl_divergence_with_log_targets(log_student, log_teacher)
    return temperature**2 * divergence


def soft_cross_entropy(
    student: ArrayLike, teacher: ArrayLike, *, temperature: float | jax.Array = 4.0
) -> jax.Array:
    """Cross-entropy of the softened student under the teacher's soft targets.

    `loss = -sum_c p_t * log p_s`, with `p = softmax(logits / tau)`

    It exceeds the divergence by the teacher's entropy, so its gradient with respect
    to the student is the divergence's, `(p_s - p_t) / tau`: that of `kd` without the
    factor tau^2.

    Args:
        student: logits, [batch, classes].
        teacher: logits, [batch, classes].
        temperature: tau, a positive scalar.

    Returns:
        One value per example, [batch].

    Raises:
        ValueError: if the shapes differ or the temperature is not positive.

    Reference:
        Zhao et al., "Highlight Every Step: Knowledge Distillation via Collaborative
        Teaching" (CTKD), 2019, second term of Eq. 1.

    **Deviations**: This is the printed equation. CTKD's released code computes the
    divergence instead, with the factor 2 tau^2 and a mean over batch and classes.
    """
    student, teacher = _checks.pair(student, teacher, _checks.LOGITS)
    _checks.above("temperature", temperature, 0)
    targets = jax.nn.softmax(teacher / temperature)
    return optax.losses.softmax_cross_entropy(student / temperature, targets)


def logit_matching(student: ArrayLike, teacher: ArrayLike) -> jax.Array:
    """Squared Euclidean distance between logits, also called the hint loss.

    `loss = sum_c (a_s - a_t)^2`, with `a` the logits before the softmax

    Args:
        student: logits, [batch, classes].
        teacher: logits, [batch, classes].

    Returns:
        One value per example, [batch].

    Raises:
        ValueError: if the shapes differ.

    Reference:
        Ba and Caruana, "Do Deep Nets Really Need to be Deep?", 2014, Eq. 1; Zhou et
        al., "Rocket Launching: A Universal and Efficient Framework for Training
        Well-performing Light Net", 2018; Zhao et al. (CTKD), 2019, Eq. 4, the term of
        lambda.

    **Deviations**: Ba and Caruana have a factor 1/2. Rocket Launching's and CTKD's
    code sum over classes as here, and divide the sum over examples by the nominal
    batch size, also for a smaller last batch; both block the teacher's gradient,
    which is left to the caller here.
    """
    student, teacher = _checks.pair(student, teacher, _checks.LOGITS)
    return jnp.sum(jnp.square(student - teacher), axis=-1)


def ensemble_logits(
    teachers: ArrayLike, *, temperature: float | jax.Array = 4.0
) -> jax.Array:
    """Logits of an ensemble: its softened probabilities are the teachers' mean.

    `logits = tau * log mean_i softmax(teacher_i / tau)`, for use as one teacher's:
    `kd(student, ensemble_logits(teachers, temperature=tau), temperature=tau)`

    Args:
        teachers: logits, [teachers, batch, classes].
        temperature: tau, a positive scalar.

    Returns:
        Logits, [batch, classes].

    Raises:
        ValueError: if the shape has not three axes, there is no teacher, or the
            temperature is not positive.

    Reference:
        Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network",
        2015, Section 3; the controls of Table 4 of Son et al. (DGKD), 2021.
    """
    shape = jnp.shape(teachers)
    if len(shape) != 3 or not shape[0]:
        raise ValueError(f"teachers {shape} must be [teachers, batch, classes]")
    _checks.above("temperature", temperature, 0)
    (teachers,) = _checks.promote(teachers)
    softened = jax.nn.log_softmax(teachers / temperature)
    mean = jax.nn.logsumexp(softened, axis=0) - jnp.log(shape[0])
    return temperature * mean


def dgkd(
    student: ArrayLike,
    guides: ArrayLike,
    labels: ArrayLike,
    *,
    temperature: float | jax.Array = 5.0,
    alpha: float | jax.Array = 0.7,
    keep: ArrayLike | None = None,
) -> jax.Array:
    """Densely guided knowledge distillation: labels and every guide at once.

    `loss = (n+1) * (1 - lambda) * CE + lambda * sum_i b_i * tau^2 * KL_i`, over n+1
    guides: the teacher and the n assistants before the student

    Args:
        student: logits, [batch, classes].
        guides: logits of teacher and assistants, [guides, batch, classes].
        labels: class numbers, integers, [batch].
        temperature: tau, a positive scalar.
        alpha: lambda, a scalar.
        keep: b, which guides are kept: [guides] for the whole batch or [batch, guides];
            None keeps all. In the stochastic form draws of Bernoulli(survival).

    Returns:
        One value per example, [batch].

    Raises:
        ValueError: if the shapes do not fit or the temperature is not positive.

    Reference:
        Son et al., "Densely Guided Knowledge Distillation using Multiple Teacher
        Assistants", ICCV 2021, Eq. 7 and 8.

    **Deviations**: This is the paper's. The released code leaves out (n+1), divides KL
    by the number of classes as well and drops a fixed number of guides.
    """
    shape, shapes = jnp.shape(student), jnp.shape(guides)
    if len(shapes) != 3 or not shapes[0] or shapes[1:] != shape:
        raise ValueError(
            f"student {shape} and guides {shapes} must be [batch, classes] and "
            "[guides, batch, classes]"
        )
    keep = jnp.ones(shapes[:1]) if keep is None else jnp.asarray(keep)
    if keep.shape not in (shapes[:1], (shape[0], shapes[0])):
        raise ValueError(
            f"keep {keep.shape} must be [guides] or [batch, guides] for guides {shapes}"
        )
    divergences = jax.vmap(lambda guide: kd(student, guide, temperature=temperature))(
        jnp.asarray(guides)
    )
    keep = jnp.broadcast_to(keep, (shape[0], shapes[0])).astype(divergences.dtype)
    guided = jnp.sum(keep * divergences.T, axis=1)
    ce = cross_entropy(student, labels)
    return shapes[0] * (1 - alpha) * ce + alpha * guided
