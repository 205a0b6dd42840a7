"""Losses on how the channels of feature maps relate: NST and FSP.

A method that compares several levels calls these once per level and adds up. None of
them stops a gradient: the caller passes `jax.lax.stop_gradient(teacher)`.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from kdjax.losses import _checks
from kdjax.losses.pooling import match_size


def nst(student: ArrayLike, teacher: ArrayLike) -> jax.Array:
    """Neuron selectivity transfer: squared maximum mean discrepancy of channel maps.

    `a_c = f_c / max(||f_c||_2, 1e-12)` over the positions, `k(a, b) = (a . b)^2`,
    `loss = mean k(a_t, a_t') + mean k(a_s, a_s') - 2 mean k(a_s, a_t)`, each over all
    pairs of channels. The larger map is pooled to the smaller first (`match_size`).

    Args:
        student: feature maps, [batch, height, width, channels].
        teacher: feature maps; height, width and channels may differ.

    Returns:
        One value per example, [batch], at least 0 up to rounding.

    Raises:
        ValueError: if the batch sizes differ or the rank is not 4.

    Reference:
        Huang and Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity
        Transfer", 2017, Eq. 6, with the polynomial kernel of degree 2 and offset 0.

    **Deviations**: The paper halves the term by its weight (lambda / 2); the published
    code (RepDistiller) does not, and its weight of 50 belongs to this form.
    """
    student, teacher = match_size(student, teacher)
    student, teacher = _selectivity(student), _selectivity(teacher)
    return (
        _kernel(teacher, teacher)
        + _kernel(student, student)
        - 2 * _kernel(student, teacher)
    )


def _selectivity(features: jax.Array) -> jax.Array:
    """Returns each channel's normalised map, [batch, positions, channels]."""
    batch, height, width, channels = features.shape
    features = features.reshape(batch, height * width, channels)  # [B, HW, C]
    return _checks.unit(features, axis=1)


def _kernel(a: jax.Array, b: jax.Array) -> jax.Array:
    # [B, P, Q] -> [B]
    return jnp.mean(jnp.square(_products(a, b)), axis=(1, 2))


def _products(a: jax.Array, b: jax.Array) -> jax.Array:
    # [B, HW, P], [B, HW, Q] -> [B, P, Q]. By default accelerators would multiply
    # float32 in fewer bits.
    return jnp.einsum("bip,biq->bpq", a, b, precision=jax.lax.Precision.HIGHEST)


def fsp_matrix(top: ArrayLike, bottom: ArrayLike) -> jax.Array:
    """Flow of solution procedure (FSP): mean products of two levels' channels.

    `M_pq = mean_{h,w} top_p bottom_q`, the larger map pooled to the smaller first
    (`match_size`).

    Args:
        top: feature maps of one level, [batch, height, width, channels].
        bottom: feature maps of another level of the same network.

    Returns:
        [batch, channels of top, channels of bottom].

    Raises:
        ValueError: if the batch sizes differ or the rank is not 4.

    Reference:
        Yim et al., "A Gift from Knowledge Distillation: Fast Optimization, Network
        Minimization and Transfer Learning", 2017, Eq. 1.

    **Deviations**: The paper pools by the maximum; the published code (RepDistiller)
    by the average, as here.
    """
    shapes = jnp.shape(top), jnp.shape(bottom)
    if {len(shape) for shape in shapes} != {4} or shapes[0][0] != shapes[1][0]:
        raise ValueError(
            f"top {shapes[0]} and bottom {shapes[1]} must both be "
            f"[{', '.join(_checks.MAPS)}] and agree in batch"
        )
    top, bottom = match_size(top, bottom)
    batch, height, width, _ = top.shape
    top = top.reshape(batch, height * width, -1)
    bottom = bottom.reshape(batch, height * width, -1)  # [B, HW, C]
    return _products(top, bottom) / (height * width)


def fsp(student: ArrayLike, teacher: ArrayLike) -> jax.Array:
    """Distance between the FSP matrices of student and teacher.

    `loss = mean_{p,q} (M_s - M_t)_pq^2`

    Args:
        student: `fsp_matrix` of two levels, [batch, channels, channels].
        teacher: `fsp_matrix` of the same two levels, [batch, channels, channels]; its
            maps may have had another size.

    Returns:
        One value per example, [batch].

    Raises:
        ValueError: if the shapes differ.

    Reference:
        Yim et al. (see `fsp_matrix`), 2017, Eq. 2.

    **Deviations**: The paper sums over the matrix; the published code (RepDistiller)
    takes the mean, as here, and its weight of 50 belongs to it.
    """
    axes = ("batch", "top channels", "bottom channels")
    student, teacher = _checks.pair(student, teacher, axes)
    return jnp.mean(jnp.square(student - teacher), axis=(1, 2))
