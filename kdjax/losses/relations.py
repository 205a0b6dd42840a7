"""Losses between the relations that examples of one batch have to each other.

These losses compare the whole batch and return a scalar. Features are [batch, ...],
flattened to one vector per example; student and teacher may have different sizes. None
of the losses stops a gradient: the caller passes `jax.lax.stop_gradient(teacher)`.
"""

import math

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from kdjax.losses import _checks, _safe

_FORMS = ("consecutive", "kernel")


def similarity(student: ArrayLike, teacher: ArrayLike) -> jax.Array:
    """Similarity-preserving distillation (SP): similarities between examples.

    `G = F F^T`, every row divided by its norm (at least 1e-12), then
    `loss = ||G_t - G_s||_F^2 / batch^2`

    Args:
        student: features, [batch, ...].
        teacher: features, [batch, ...].

    Returns:
        A scalar.

    Raises:
        ValueError: if the batches differ or there is no other axis.

    Reference:
        Tung and Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019,
        Eq. 4.

    **Deviations**: None from the paper or RepDistiller; torchdistill normalises the
    rows by the sum of absolute values.
    """
    student, teacher = _checks.batch_of_vectors(student, teacher)

    def gram(x: jax.Array) -> jax.Array:
        x, k = _safe.rescale(x)
        # [B, D] @ [D, B] -> [B, B], k^2 times smaller than for unscaled features.
        return _safe.normalise(x @ x.T, _floor(1e-12, k * k, x.dtype))

    # The mean over [B, B] divides by batch^2.
    return jnp.mean(jnp.square(gram(teacher) - gram(student)))


def correlation(
    student: ArrayLike,
    teacher: ArrayLike,
    *,
    form: str = "consecutive",
    gamma: float | jax.Array = 0.4,
    order: int = 2,
) -> jax.Array:
    """Correlation congruence (CC): how embeddings of the examples correlate.

    'consecutive': `loss = sum_i sum_d |s - t|_i,d * |s - t|_i+1,d / (batch - 1)`;
    'kernel': `K = exp(-2 gamma) * sum_{p=0}^{order} (2 gamma)^p / p! * (x_i.x_j)^p`,
    `loss = ||K_s - K_t||_F^2 / batch^2`: for vectors of length 1, K is the Taylor
    series of the Gaussian `exp(-gamma ||x_i - x_j||^2)`

    Args:
        student: embeddings, [batch, dimensions].
        teacher: embeddings, [batch, dimensions].
        form: 'consecutive' or 'kernel'.
        gamma: of the kernel, positive.
        order: highest power of the kernel's series.

    Returns:
        A scalar; 'consecutive' depends on the examples' order and is 0 for one alone.

    Raises:
        ValueError: if the shapes differ, the form is unknown, gamma is not positive
            or the order is below 1.

    Reference:
        Peng et al., "Correlation Congruence for Knowledge Distillation", ICCV 2019.

    **Deviations**: 'kernel' is the paper's. 'consecutive', the default, is the
    benchmark's (RepDistiller), whose weight of 0.02 belongs to it: a product of
    neighbours' distances that is not the paper's loss. torchdistill has the kernel,
    with a norm that is not squared.
    """
    axes = ("batch", "dimensions")
    student, teacher = _checks.pair(student, teacher, axes)
    if form not in _FORMS:
        raise ValueError(f"unknown form {form!r}; choices: {', '.join(_FORMS)}")
    _checks.above("gamma", gamma, 0)
    if order < 1:
        raise ValueError(f"order must be 1 or more, not {order}")
    if form == "consecutive":
        gap = jnp.abs(student - teacher)  # [B, D]
        return jnp.sum(gap[:-1] * gap[1:]) / max(len(gap) - 1, 1)

    def kernel(x: jax.Array) -> jax.Array:
        product = 2 * gamma * (x @ x.T)
        series = [product**p / math.factorial(p) for p in range(order + 1)]
        return jnp.exp(-2 * gamma) * sum(series)

    return jnp.mean(jnp.square(kernel(student) - kernel(teacher)))


def rkd_distance(student: ArrayLike, teacher: ArrayLike) -> jax.Array:
    """Relational distillation by distance (RKD-D): how far examples are apart.

    `d_ij = max(||x_i - x_j||, 1e-6)` for i != j and 0 for i = j, divided by the mean
    over i != j; `loss = sum_ij huber(d_s - d_t) / batch^2`, quadratic up to 1

    Args:
        student: features, [batch, ...].
        teacher: features, [batch, ...].

    Returns:
        A scalar.

    Raises:
        ValueError: if the batches differ or there is no other axis.

    Reference:
        Park et al., "Relational Knowledge Distillation", CVPR 2019.

    **Deviations**: The paper sums over pairs; the published code takes the mean over
    all batch^2, the zero diagonal included, as here.
    """
    student, teacher = _checks.batch_of_vectors(student, teacher)
    own = jnp.eye(len(student), dtype=bool)

    def distances(x: jax.Array) -> jax.Array:
        # Not by |x_i|^2 + |x_j|^2 - 2 x_i.x_j, which cancels for close examples.
        gap, k = _gaps(x)
        square = jnp.sum(jnp.square(gap), axis=-1)
        # Before the root, whose gradient at 0 is infinite.
        square = jnp.maximum(square, _floor(1e-12, k * k, x.dtype))
        d = jnp.where(own, 0.0, jnp.sqrt(square))
        # One example has no distance, and no mean of them.
        mean = jnp.sum(d) / max(len(x) * (len(x) - 1), 1)
        return d / jnp.where(mean > 0, mean, 1.0)

    # Huber with delta 1 is PyTorch's smooth_l1_loss.
    return jnp.mean(optax.losses.huber_loss(distances(student), distances(teacher)))


def rkd_angle(student: ArrayLike, teacher: ArrayLike) -> jax.Array:
    """Relational distillation by angle (RKD-A): the angles that three examples form.

    `e_ij = (x_j - x_i) / max(||x_j - x_i||, 1e-12)`, `a_ijk = e_ij.e_ik`;
    `loss = sum_ijk huber(a_s - a_t) / batch^3`, quadratic up to 1

    Args:
        student: features, [batch, ...].
        teacher: features, [batch, ...].

    Returns:
        A scalar.

    Raises:
        ValueError: if the batches differ or there is no other axis.

    Reference:
        Park et al., "Relational Knowledge Distillation", CVPR 2019.

    **Deviations**: The paper sums over triples; the published code takes the mean
    over all batch^3, those with equal examples included, as here.
    """
    student, teacher = _checks.batch_of_vectors(student, teacher)

    def angles(x: jax.Array) -> jax.Array:
        gap, k = _gaps(x)
        e = _safe.normalise(gap, _floor(1e-12, k, x.dtype))
        # [B, B, D], [B, B, D] -> [B, B, B]: cosines of the angles at example i.
        return jnp.einsum("ijd,ikd->ijk", e, e)

    return jnp.mean(optax.losses.huber_loss(angles(student), angles(teacher)))


def pkt(student: ArrayLike, teacher: ArrayLike, *, eps: float = 1e-7) -> jax.Array:
    """Probabilistic knowledge transfer: which neighbours an example would choose.

    `x / (||x|| + eps)`, `K = (x x^T + 1) / 2`, `P = K / sum_j K_ij`;
    `loss = sum_ij P_t * log((P_t + eps) / (P_s + eps)) / batch^2`

    Args:
        student: features, [batch, ...].
        teacher: features, [batch, ...].
        eps: keeps quotients and logarithms finite, a positive number.

    Returns:
        A scalar.

    Raises:
        ValueError: if the batches differ, there is no other axis, or eps is not
            positive.

    Reference:
        Passalis and Tefas, "Learning Deep Representations with Probabilistic
        Knowledge Transfer", ECCV 2018, with the cosine kernel.

    **Deviations**: The paper leaves out j = i and sums. The authors' code, as here,
    keeps the diagonal and takes the mean over batch^2; its weight of 3e4 belongs to it.
    """
    student, teacher = _checks.batch_of_vectors(student, teacher)
    _checks.above("eps", eps, 0)

    def neighbours(x: jax.Array) -> jax.Array:
        x, k = _safe.rescale(x)
        norm = optax.safe_norm(x, 0.0, axis=-1, keepdims=True)
        least = _floor(eps, k, x.dtype)
        # As in `normalise`: a vector shorter than eps has no direction to learn. Here
        # eps is added to the norm, as in the authors' code.
        x = jnp.where(norm <= least, jax.lax.stop_gradient(x), x) / (norm + least)
        # Cosines from -1..1 to 0..1, [B, B].
        kernel = (x @ x.T + 1) / 2
        return kernel / jnp.sum(kernel, axis=-1, keepdims=True)

    p_s, p_t = neighbours(student), neighbours(teacher)
    return jnp.mean(p_t * jnp.log((p_t + eps) / (p_s + eps)))


def _gaps(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns `(x_j - x_i) / k`, [batch, batch, size], and the scale k.

    The division comes last: if a compiler fused it into the difference, equal examples
    would differ by rounding, and any rounding has a direction.
    """
    _, k = _safe.rescale(x)
    # [1, B, D] - [B, 1, D] -> [B, B, D]
    return (x[None] - x[:, None]) / k, k


def _floor(least: float, scale: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Returns a formula's lower bound for features divided by `scale`; never 0."""
    # The quotient underflows to 0 for a huge scale.
    return jnp.maximum(least / scale, jnp.finfo(dtype).tiny)
