"""Losses between feature maps of one level, [batch, height, width, channels].

A method that compares several levels calls these once per level and adds up. None of
them stops a gradient: the caller passes `jax.lax.stop_gradient(teacher)`.
"""

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from kdjax.losses import _checks

_NORMS = ("mean_square", "l2")


def attention_map(features: ArrayLike, *, power: float | jax.Array = 2.0) -> jax.Array:
    """Attention map: the normalised strength of features at every position.

    `q = mean_c |f_c|^power, map = q / max(||q||_2, 1e-12)`, over the flat positions

    Args:
        features: feature maps, [batch, height, width, channels].
        power: the exponent, greater than 1; a larger one stresses the peaks.

    Returns:
        Maps of Euclidean norm 1 (0 for a zero map), [batch, height * width].

    Raises:
        ValueError: if the rank is not 4 or the power is not above 1.

    Reference:
        Zagoruyko and Komodakis, "Paying More Attention to Attention: Improving the
        Performance of Convolutional Neural Networks via Attention Transfer", 2017,
        F^p_sum of Section 3.1.

    **Deviations**: The papers sum over channels, the published code takes the mean:
    after the normalisation both are equal. The code leaves out the absolute value,
    which matters for odd powers only.
    """
    (features,) = _checks.promote(features)
    _checks.rank("features", features, _checks.MAPS)
    batch, height, width, _ = features.shape
    _checks.above("power", power, 1)
    # Powers of large features overflow. The map does not depend on the scale, so a
    # scale above 1 (where the 1e-12 has no effect) is divided out, as a constant.
    peak = jnp.max(jnp.abs(features), axis=(1, 2, 3), keepdims=True)
    features = features / jax.lax.stop_gradient(jnp.maximum(peak, 1.0))
    strength = jnp.mean(jnp.abs(features) ** power, axis=-1)
    strength = strength.reshape(batch, height * width)  # [B, H, W] -> [B, HW]
    return strength / optax.safe_norm(strength, 1e-12, axis=-1, keepdims=True)


def attention_transfer(
    student: ArrayLike,
    teacher: ArrayLike,
    *,
    power: float | jax.Array = 2.0,
    norm: str = "mean_square",
) -> jax.Array:
    """Distance between the attention maps of student and teacher at one level.

    `d = attention_map(student) - attention_map(teacher)`, then by norm
    'mean_square': `loss = mean_i d_i^2`; 'l2': `loss = ||d||_2`, not squared, whose
    gradient is 0 where the maps are equal up to rounding.

    Args:
        student: feature maps, [batch, height, width, channels].
        teacher: feature maps; the number of channels may differ.
        power: the exponent of the attention maps, greater than 1.
        norm: 'mean_square' or 'l2'.

    Returns:
        One value per example, [batch].

    Raises:
        ValueError: if batch, height or width differ, the power is not above 1 or the
            norm is unknown.

    Reference:
        Zagoruyko and Komodakis (see `attention_map`), 2017, Eq. 2; Zhao et al.,
        "Highlight Every Step: Knowledge Distillation via Collaborative Teaching"
        (CTKD), 2019, Eq. 3.

    **Deviations**: Both papers print the norm without a square ('l2'), the first with
    a factor 1/2. The published code of both takes the mean of squares over batch and
    positions ('mean_square', the default): their weight of 1e3 belongs to it.
    """
    student, teacher = _checks.pair(student, teacher, _checks.MAPS, agree=3)
    student = attention_map(student, power=power)
    return attention_distance(student, attention_map(teacher, power=power), norm=norm)


def attention_distance(
    student: ArrayLike, teacher: ArrayLike, *, norm: str = "mean_square"
) -> jax.Array:
    """Distance between given attention maps, such as stored ones.

    `d = student - teacher`, then as in `attention_transfer`, which has the reference.

    Args:
        student: attention maps, [batch, positions].
        teacher: attention maps, [batch, positions].
        norm: 'mean_square' or 'l2'.

    Returns:
        One value per example, [batch].

    Raises:
        ValueError: if the shapes differ or the norm is unknown.
    """
    student, teacher = _checks.pair(student, teacher, ("batch", "positions"))
    if norm not in _NORMS:
        raise ValueError(f"unknown norm {norm!r}; choices: {', '.join(_NORMS)}")
    if norm == "l2":
        # Once compiled, even equal maps differ by rounding, and the gradient of a norm
        # has length 1 whatever the difference: below this size it is 0.
        rounding = 8 * jnp.finfo(student.dtype).eps
        return optax.safe_norm(student - teacher, rounding, axis=-1)
    return jnp.mean(jnp.square(student - teacher), axis=-1)


def feature_mse(student: ArrayLike, teacher: ArrayLike) -> jax.Array:
    """Mean squared difference between feature maps of equal shape.

    `loss = mean_{h,w,c} (f_s - f_t)^2`

    Args:
        student: feature maps after the regressor that gives them the teacher's
            shape, [batch, height, width, channels].
        teacher: feature maps, [batch, height, width, channels].

    Returns:
        One value per example, [batch].

    Raises:
        ValueError: if the shapes differ.

    Reference:
        Romero et al., "FitNets: Hints for Thin Deep Nets", 2015, Eq. 3.

    **Deviations**: The paper has 1/2 of the sum, in a separate training stage. The
    published code (RepDistiller) takes the mean, as here, next to the cross-entropy.
    """
    student, teacher = _checks.pair(student, teacher, _checks.MAPS)
    return jnp.mean(jnp.square(student - teacher), axis=(1, 2, 3))
