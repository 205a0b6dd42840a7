"""KDSVD: the relation of the singular vectors of consecutive levels."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from kdjax.losses import _checks

_EXACT = jax.lax.Precision.HIGHEST


def kdsvd(
    student: Sequence[ArrayLike], teacher: Sequence[ArrayLike], *, k: int = 1
) -> jax.Array:
    """Self-supervised distillation by singular value decomposition.

    Level i's maps, as a matrix of positions by channels, have right singular vectors
    `v_i` with singular values `s_i`: k of the teacher, k + 3 of the student. Each
    vector of the teacher is paired with the student's of largest `|cos|`, turned to
    the same side; both are multiplied with the teacher's `s_i / ||s_i||_2`. With
    `r_i[p, q, j] = exp(-(v_i[p, j] - v_{i-1}[q, j])^2 / 8)` for channels p and q of
    consecutive levels, `loss = sum_i sum_{p,q,j} (r_i of student - r_i of teacher)^2`.

    The gradient of singular vectors divides by the gaps g between squared singular
    values. Here it is `g / (g^2 + eps s_max^4)` instead of 1 / g: bounded, 0 between
    equal values, whose vectors are arbitrary. Directions that are 0 up to rounding,
    and all of a zero map, count as zero vectors without a gradient. Second derivatives
    are not supported.

    Args:
        student: feature maps of two levels or more, each
            [batch, height, width, channels].
        teacher: feature maps of the same levels; height and width may differ.
        k: how many singular vectors of the teacher to transfer.

    Returns:
        One value per example, [batch].

    Raises:
        ValueError: if there are fewer than two levels or not equally many, shapes do
            not fit, or k is not between 1 and the channels.

    Reference:
        Lee et al., "Self-supervised Knowledge Distillation Using Singular Value
        Decomposition", 2018, Section 3.

    **Deviations**: The authors' code clips the gradient of the decomposition, the
    popular code (RepDistiller) does not change it. The loss depends on the sign of the
    teacher's vectors, which a decomposition leaves open. RepDistiller uses the sign
    that the solver returns; here each vector has a sum of at least 0.
    """
    if len(student) != len(teacher) or len(student) < 2:
        raise ValueError(
            f"kdsvd needs the same two or more levels of both, not {len(student)} of "
            f"the student and {len(teacher)} of the teacher"
        )
    pairs = [_aligned(s, t, k) for s, t in zip(student, teacher, strict=True)]
    batches = {vectors.shape[0] for pair in pairs for vectors in pair}
    if len(batches) > 1:
        raise ValueError(f"levels of different batch sizes: {sorted(batches)}")
    losses = [
        jnp.sum(
            jnp.square(_relation(s, below_s) - _relation(t, below_t)), axis=(1, 2, 3)
        )
        for (s, t), (below_s, below_t) in zip(pairs[1:], pairs[:-1], strict=True)
    ]
    return jnp.sum(jnp.stack(losses), axis=0)


def _relation(vectors: jax.Array, below: jax.Array) -> jax.Array:
    """Returns the Gaussian kernel of all entries, [batch, channels, channels, k]."""
    # [B, P, 1, k] - [B, 1, Q, k] -> [B, P, Q, k]
    difference = vectors[:, :, None] - below[:, None]
    return jnp.exp(-jnp.square(difference) / 8)


def _aligned(
    student: ArrayLike, teacher: ArrayLike, k: int
) -> tuple[jax.Array, jax.Array]:
    """Returns paired, weighted vectors of both, each [batch, channels, k]."""
    student, teacher = _checks.pair(student, teacher, _checks.MAPS, agree=1)
    channels = teacher.shape[-1]
    if student.shape[-1] != channels:
        raise ValueError(
            f"student {student.shape} and teacher {teacher.shape} must agree in "
            "batch and channels"
        )
    if not 1 <= k <= channels:
        raise ValueError(f"k={k} is not between 1 and the {channels} channels")
    values, v_t = _singular(teacher, k)
    # Fixes the sign, which is arbitrary.
    v_t = jnp.where(jnp.sum(v_t, axis=1, keepdims=True) < 0, -v_t, v_t)
    _, v_s = _singular(student, min(k + 3, channels))
    # [B, C, s], [B, C, t] -> [B, s, t]: every student vector with every teacher vector.
    cosine = jnp.einsum("bcs,bct->bst", v_s, v_t, precision=_EXACT)
    best = jnp.argmax(jnp.abs(cosine), axis=1, keepdims=True)  # [batch, 1, k]
    side = jnp.sign(jnp.take_along_axis(cosine, best, axis=1))
    v_s = jnp.take_along_axis(v_s, best, axis=2) * jax.lax.stop_gradient(side)
    weights = _checks.unit(values, axis=1)[:, None]
    return v_s * weights, v_t * weights


def _singular(features: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Returns the largest singular values and their right vectors.

    Args:
        features: feature maps, [batch, height, width, channels].
        count: how many.

    Returns:
        [batch, count] and [batch, channels, count]; 0 for what the map does not have.
    """
    batch, height, width, channels = features.shape
    x = features.reshape(batch, height * width, channels)  # [B, HW, C]
    # The vectors do not depend on the scale; squares of large features overflow.
    peak = jnp.max(jnp.abs(x), axis=(1, 2), keepdims=True)
    scale = jax.lax.stop_gradient(jnp.maximum(peak, 1.0))
    x = x / scale
    # x x^T and x^T x share their nonzero eigenvalues, the squared singular values:
    # the smaller matrix is decomposed.
    if wide := channels > height * width:
        gram = jnp.einsum("bic,bjc->bij", x, x, precision=_EXACT)  # [B, HW, HW]
    else:
        gram = jnp.einsum("bic,bid->bcd", x, x, precision=_EXACT)  # [B, C, C]
    squares, vectors = _eigen(gram, min(count, gram.shape[-1]))
    limits = jnp.finfo(x.dtype)
    rounding = 8 * max(x.shape[1:]) * limits.eps * squares[:, :1]
    there = squares > jnp.maximum(rounding, limits.tiny)
    # The inner where: the root's gradient at 0 is infinite.
    values = jnp.where(there, jnp.sqrt(jnp.where(there, squares, 1)), 0)
    if wide:
        # From left to right singular vectors: v = x^T u / s, [B, C, k].
        vectors = jnp.einsum("bic,bik->bck", x, vectors, precision=_EXACT)
        vectors = vectors / jnp.where(there, values, 1)[:, None]
    vectors = jnp.where(there[:, None], vectors, 0)
    # A map has no more singular values than positions.
    missing = count - values.shape[1]
    return (
        jnp.pad(values * scale[:, 0], ((0, 0), (0, missing))),
        jnp.pad(vectors, ((0, 0), (0, 0), (0, missing))),
    )


def _decomposed(gram: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns eigenvalues, the smallest first, and eigenvectors.

    On CPU, one matrix after another: there LAPACK's batched call waits for threads of
    the pool that it runs on, and as many concurrent calls as the pool has threads wait
    forever (jaxlib 0.10.2). For 64 matrices of each level both ways take equally long.
    """

    def batched(gram: jax.Array) -> tuple[jax.Array, jax.Array]:
        return tuple(jnp.linalg.eigh(gram))

    def in_turn(gram: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.lax.map(batched, gram)

    return jax.lax.platform_dependent(gram, cpu=in_turn, default=batched)


def _eigen(gram: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Returns the largest eigenvalues and their vectors, [batch, k] and [batch, n, k].

    Values are those of `eigh`; the first derivatives are written out, with bounded
    divisors.
    """
    # Blocked: the derivative of `eigh` divides by gaps that may be 0.
    squares, basis = _decomposed(jax.lax.stop_gradient(gram))
    squares, basis = squares[:, ::-1], basis[:, :, ::-1]  # the largest first
    vectors = basis[:, :, :count]
    # [B, n, k]: eigenvalue of vector j (axis 2) minus eigenvalue i (axis 1).
    gap = squares[:, None, :count] - squares[:, :, None]
    limits = jnp.finfo(gram.dtype)
    top = squares[:, :1, None]
    some = top > limits.tiny
    top = jnp.where(some, top, 1)
    # Relative gaps: eps then bounds the divisor whatever the scale.
    gap = gap / top
    factor = jnp.where(some, gap / (jnp.square(gap) + limits.eps) / top, 0)
    change = gram - jax.lax.stop_gradient(gram)  # 0, with the gradient of gram
    # First-order perturbation: with c_ij = u_i^T dA v_j, dv_j = sum_i u_i c_ij / gap_ij
    # and ds_j = c_jj.
    change = jnp.einsum("bni,bnm,bmj->bij", basis, change, vectors, precision=_EXACT)
    turned = jnp.einsum("bni,bij->bnj", basis, factor * change, precision=_EXACT)
    grown = jnp.diagonal(change, axis1=1, axis2=2)
    return squares[:, :count] + grown, vectors + turned
