"""Losses between class scores: labels, softened probabilities, raw logits.

None of these functions stops a gradient: where the teacher must not learn from the
student, the caller passes `jax.lax.stop_gradient(teacher)`.
"""

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from kdjax.losses import _checks, _safe


def cross_entropy(
    logits: ArrayLike, labels: ArrayLike, *, label_smoothing: float = 0.0
) -> jax.Array:
    """Cross-entropy between the softmax of logits and integer labels.

    `loss = -(1 - e) * log p[label] - e * mean_c log p_c`, with `p = softmax(logits)`

    Args:
        logits: class scores, [batch, classes].
        labels: class numbers from 0 to classes - 1, integers, [batch].
        label_smoothing: e, from 0 (plain labels) to 1.

    Returns:
        One value per example, [batch].

    Raises:
        ValueError: if the shapes do not fit, the labels are not integers, or the
            label smoothing is outside 0..1.

    Reference:
        Szegedy et al., "Rethinking the Inception Architecture for Computer Vision",
        2016, Section 7, for label smoothing.
    """
    labels = _checks.labels("logits", logits, labels)
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing must be in 0..1, not {label_smoothing}")
    (logits,) = _checks.promote(logits)
    plain = optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)
    if not label_smoothing:
        return plain
    # The cross-entropy under uniform labels.
    even = -jnp.mean(jax.nn.log_softmax(logits), axis=-1)
    return (1 - label_smoothing) * plain + label_smoothing * even


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
    log_student = jax.nn.log_softmax(_safe.soften(student, temperature))
    log_teacher = jax.nn.log_softmax(_safe.soften(teacher, temperature))
    divergence = optax.losses.kl_divergence_with_log_targets(log_student, log_teacher)
    # Gradients of softened probabilities scale as 1 / tau^2 (Hinton et al., Section 2).
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
    targets = jax.nn.softmax(_safe.soften(teacher, temperature))
    student = _safe.soften(student, temperature)
    return optax.losses.softmax_cross_entropy(student, targets)


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


def standardise_logits(logits: ArrayLike) -> jax.Array:
    """Logits with mean 0 and deviation 1, for use in any loss between logits.

    `z' = (z - mean_c z) / (1e-7 + std_c z)`, the standard deviation with
    `classes - 1`; the loss divides by its temperature:
    `kd(standardise_logits(s), standardise_logits(t), temperature=2.0)`

    Args:
        logits: class scores, [batch, classes].

    Returns:
        Standardised logits, [batch, classes]; 0, with gradient 0, for an example
        whose logits are all equal up to rounding.

    Raises:
        ValueError: if the rank is not 2.

    Reference:
        Sun et al., "Logit Standardization in Knowledge Distillation", CVPR 2024.

    **Deviations**: The paper prints the standard deviation with 1 / classes and no
    1e-7, and divides by the temperature in the same step. The published code, as
    here, has PyTorch's unbiased standard deviation, which acts as a temperature
    larger by sqrt(classes / (classes - 1)).
    """
    shape = jnp.shape(logits)
    if len(shape) != 2:
        raise ValueError(f"logits {shape} must be [batch, classes]")
    scaled, k = _safe.rescale(_checks.promote(logits)[0])
    centred = _safe.centre(scaled)
    spread = optax.safe_norm(centred, 0.0, axis=-1, keepdims=True)
    # PyTorch's unbiased deviation; a single class has none.
    spread = spread / max(shape[1] - 1, 1) ** 0.5
    # 1e-7 / k: the deviation is that of the scaled logits. Equal logits are 0 / 1: as
    # 0 / 1e-7 their gradient would be 1e7.
    return centred / jnp.where(spread > 0, 1e-7 / k + spread, 1.0)


def dkd(
    student: ArrayLike,
    teacher: ArrayLike,
    labels: ArrayLike,
    *,
    temperature: float | jax.Array = 4.0,
    alpha: float | jax.Array = 1.0,
    beta: float | jax.Array = 8.0,
) -> jax.Array:
    """Decoupled knowledge distillation: separate terms for the label and the others.

    `loss = tau^2 * (alpha * KL(b_t || b_s) + beta * KL(q_t || q_s))`, with
    `p = softmax(logits / tau)`, `b = [p_y, 1 - p_y]` for the label y, and q the
    softmax over the classes other than y

    Args:
        student: logits, [batch, classes], two classes or more.
        teacher: logits, [batch, classes].
        labels: class numbers, integers, [batch].
        temperature: tau, a positive scalar.
        alpha: weight of the target-class part, TCKD.
        beta: weight of the non-target part, NCKD.

    Returns:
        One value per example, [batch].

    Raises:
        ValueError: if the shapes do not fit, there is one class only, the labels are
            not integers, or the temperature is not positive.

    Reference:
        Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022.

    **Deviations**: The factor tau^2 is the published code's (mdistiller), which also
    scales the loss up over the first 20 epochs: the caller's weight. The code masks
    the label by subtracting 1000 and takes the logarithm of summed probabilities;
    here both are exact, also for logits that differ by more than that.
    """
    student, teacher = _checks.pair(student, teacher, _checks.LOGITS)
    labels = _checks.labels("student", student, labels)
    if student.shape[1] < 2:
        raise ValueError(f"student {student.shape} must have two classes or more")
    _checks.above("temperature", temperature, 0)
    # [B, C], true at the label
    label = jnp.arange(student.shape[1])[None] == labels[:, None]

    def split(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns log b, [batch, 2], and log q with 0 at the label."""
        logits = _safe.soften(logits, temperature)
        # exp(-inf) = 0: the label has no share in the softmax over the others.
        others = jnp.where(label, -jnp.inf, logits)
        rest = jax.nn.logsumexp(others, axis=-1)
        own = jnp.sum(jnp.where(label, logits, 0.0), axis=-1)
        share = jax.nn.log_softmax(jnp.stack([own, rest], axis=-1))
        # 0 at the label: the difference of two -inf would be NaN.
        return share, jnp.where(label, 0.0, others - rest[:, None])

    (share_s, other_s), (share_t, other_t) = split(student), split(teacher)
    target = jnp.sum(jnp.exp(share_t) * (share_t - share_s), axis=-1)
    # At the label both logarithms are 0, so the sum gets 1 * (0 - 0) from it.
    rest = jnp.sum(jnp.exp(other_t) * (other_t - other_s), axis=-1)
    return temperature**2 * (alpha * target + beta * rest)


def dist(
    student: ArrayLike,
    teacher: ArrayLike,
    *,
    temperature: float | jax.Array = 1.0,
    beta: float | jax.Array = 1.0,
    gamma: float | jax.Array = 1.0,
) -> jax.Array:
    """DIST: correlation of the predictions within each example and each class.

    `loss = tau^2 * (beta * mean_b (1 - r(p_s[b, :], p_t[b, :]))
    + gamma * mean_c (1 - r(p_s[:, c], p_t[:, c])))`, with `p = softmax(logits / tau)`
    and Pearson's `r(x, y) = x'.y' / (||x'|| ||y'|| + 1e-8)` of the centred vectors

    Args:
        student: logits, [batch, classes].
        teacher: logits, [batch, classes].
        temperature: tau, a positive scalar.
        beta: weight of the relations between classes (inter-class).
        gamma: weight of the relations between examples (intra-class).

    Returns:
        A scalar. Vectors without variation correlate with nothing: r is 0, with
        gradient 0, so that one example alone has an intra-class term of 1.

    Raises:
        ValueError: if the shapes differ or the temperature is not positive.

    Reference:
        Huang et al., "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022.

    **Deviations**: The factor tau^2, the 1e-8 and the defaults are the published
    code's. The method `dist` has the paper's weights for CIFAR-100: temperature 4, beta
    and gamma 2.
    """
    student, teacher = _checks.pair(student, teacher, _checks.LOGITS)
    _checks.above("temperature", temperature, 0)
    p_s = jax.nn.softmax(_safe.soften(student, temperature))
    p_t = jax.nn.softmax(_safe.soften(teacher, temperature))

    def distance(x: jax.Array, y: jax.Array) -> jax.Array:
        x, y = _safe.centre(x), _safe.centre(y)
        norms = optax.safe_norm(x, 0.0, axis=-1) * optax.safe_norm(y, 0.0, axis=-1)
        return 1 - jnp.mean(jnp.sum(x * y, axis=-1) / (norms + 1e-8))

    # Rows are examples, [B, C], then classes, [C, B].
    inter, intra = distance(p_s, p_t), distance(p_s.T, p_t.T)
    return temperature**2 * (beta * inter + gamma * intra)
