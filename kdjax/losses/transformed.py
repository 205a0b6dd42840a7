"""Losses with a transformed distribution of the teacher.

Like the functions of `kdjax.losses.logits`, none of these stops a gradient.
"""

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from kdjax.losses import _checks, _safe


def nkd(
    student: ArrayLike,
    teacher: ArrayLike,
    labels: ArrayLike,
    *,
    temperature: float | jax.Array = 1.0,
    gamma: float | jax.Array = 1.5,
) -> jax.Array:
    """Normalised knowledge distillation: the label's part and that of the others.

    `loss = -T_y log S_y - gamma * tau^2 * sum_{c != y} n_t(c) log n_s(c)`, with
    `S = softmax(student)`, `T = softmax(teacher)`, the label y, and n the softmax of
    `logits / tau` over the classes other than y

    Args:
        student: logits, [batch, classes], two classes or more.
        teacher: logits, [batch, classes].
        labels: class numbers, integers, [batch].
        temperature: tau (the paper's lambda) of the other classes' part, a positive
            scalar.
        gamma: weight of the other classes' part.

    Returns:
        One value per example, [batch]. Equal logits do not give 0, but the teacher's
        `-T_y log T_y` and gamma tau^2 times the entropy of its other classes.

    Raises:
        ValueError: if the shapes do not fit, there is one class only, the labels are
            not integers, or the temperature is not positive.

    Reference:
        Yang et al., "From Knowledge Distillation to Self-Knowledge Distillation: A
        Unified Approach with Normalized Loss and Customized Soft Labels", ICCV 2023,
        the loss NKD.

    **Deviations**: None from the paper. Versions of the published code differ: in some
    the label stays among the other classes.
    """
    student, teacher = _checks.pair(student, teacher, _checks.LOGITS)
    labels = _checks.labels("student", student, labels)
    if student.shape[1] < 2:
        raise ValueError(f"student {student.shape} must have two classes or more")
    _checks.above("temperature", temperature, 0)
    # [B, C], true at the label
    label = jnp.arange(student.shape[1])[None] == labels[:, None]

    def log_others(logits: jax.Array) -> jax.Array:
        """Returns log n, [batch, classes], 0 at the label."""
        # exp(-inf) = 0: the label has no share in the softmax over the others.
        others = _safe.soften(jnp.where(label, -jnp.inf, logits), temperature)
        rest = jax.nn.logsumexp(others, axis=-1, keepdims=True)
        # The difference of two -inf would be NaN.
        return jnp.where(label, 0.0, others) - jnp.where(label, 0.0, rest)

    own_s, own_t = (
        jnp.sum(jnp.where(label, jax.nn.log_softmax(logits), 0.0), axis=-1)
        for logits in (student, teacher)
    )
    target = -jnp.exp(own_t) * own_s
    shares = jnp.where(label, 0.0, jnp.exp(log_others(teacher)))
    rest = -jnp.sum(shares * log_others(student), axis=-1)
    return target + gamma * temperature**2 * rest


def ttm(
    student: ArrayLike, teacher: ArrayLike, *, power: float | jax.Array = 0.1
) -> jax.Array:
    """Transformed teacher matching: the teacher is softened, the student is not.

    `loss = sum_c q_t(c) * (log q_t(c) - log p_s(c))`, with `p_s = softmax(student)`,
    `p_t = softmax(teacher)` and the power transform `q_t(c) = p_t(c)^g / U`,
    `U = sum_c p_t(c)^g`

    The transform is the softmax of `teacher * g`: g is 1 / tau for a temperature tau of
    the teacher alone. With g = 1 it is `kd` at temperature 1.

    Args:
        student: logits, [batch, classes].
        teacher: logits, [batch, classes].
        power: g, the exponent, a positive scalar.

    Returns:
        One value per example, [batch].

    Raises:
        ValueError: if the shapes differ or the power is not positive.

    Reference:
        Zheng and Yang, "Knowledge Distillation Based on Transformed Teacher Matching",
        ICLR 2024, TTM.
    """
    student, teacher = _checks.pair(student, teacher, _checks.LOGITS)
    _checks.above("power", power, 0)
    log_student = jax.nn.log_softmax(student)
    log_target = jax.nn.log_softmax(_safe.soften(teacher, 1 / power))
    return optax.losses.kl_divergence_with_log_targets(log_student, log_target)


def wttm(
    student: ArrayLike, teacher: ArrayLike, *, power: float | jax.Array = 0.2
) -> jax.Array:
    """Weighted transformed teacher matching: `ttm`, weighted more for smooth teachers.

    `loss = U * ttm`, with the power sum `U = sum_c p_t(c)^g` of `p_t =
    softmax(teacher)`

    For g below 1 the weight lies between 1, for a teacher that is certain, and
    `classes^(1 - g)`, for a uniform one. With g = 1 it is 1, and the loss `kd`
    at temperature 1.

    Args:
        student: logits, [batch, classes].
        teacher: logits, [batch, classes].
        power: g, the exponent, a positive scalar.

    Returns:
        One value per example, [batch].

    Raises:
        ValueError: if the shapes differ or the power is not positive.

    Reference:
        Zheng and Yang, "Knowledge Distillation Based on Transformed Teacher Matching",
        ICLR 2024, WTTM.

    **Deviations**: None known. The published code computes the powers themselves, as
    the formula is written; here their logarithms are used, which do not underflow.
    """
    divergence = ttm(student, teacher, power=power)
    _, teacher = _checks.pair(student, teacher, _checks.LOGITS)
    log_teacher = jax.nn.log_softmax(teacher)
    return jnp.exp(jax.nn.logsumexp(power * log_teacher, axis=-1)) * divergence
