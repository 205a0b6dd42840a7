"""Further losses between feature maps of one level, [batch, height, width, channels].

A method that compares several levels calls these once per level and adds up. None of
them stops a gradient: the caller passes `jax.lax.stop_gradient(teacher)`.
"""

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from kdjax.losses import _checks
from kdjax.losses.features import attention_map
from kdjax.losses.pooling import adaptive_pool, match_size

_FORMS = ("map", "factor")


def vid(
    student: ArrayLike, teacher: ArrayLike, *, log_scale: ArrayLike, eps: float = 1e-5
) -> jax.Array:
    """Variational information distillation: how likely the teacher's features are.

    `v_c = log(1 + exp(log_scale_c)) + eps`,
    `loss = mean_{h,w,c} ((f_t - mu_s)^2 / v_c + log v_c) / 2`

    Args:
        student: the mean mu that the student predicts for the teacher's features,
            [batch, height, width, channels].
        teacher: feature maps, [batch, height, width, channels].
        log_scale: the variances before the softplus, trained too, [channels].
        eps: the smallest variance, greater than 0.

    Returns:
        One value per example, [batch]; negative where variances below 1 fit.

    Raises:
        ValueError: if the shapes do not fit or eps is not above 0.

    Reference:
        Ahn et al., "Variational Information Distillation for Knowledge Transfer",
        2019, Eq. 6.

    **Deviations**: The paper sums over positions and channels. The published code
    (RepDistiller) takes the mean, as here.
    """
    student, teacher = _checks.pair(student, teacher, _checks.MAPS)
    student, teacher, log_scale = _checks.promote(student, teacher, log_scale)
    _checks.per_channel("log_scale", log_scale, student.shape[-1])
    _checks.above("eps", eps, 0)
    # Softplus: positive for every trained value. [C] -> [1, 1, 1, C]
    variance = (jax.nn.softplus(log_scale) + eps).reshape(1, 1, 1, -1)
    likelihood = jnp.square(teacher - student) / variance + jnp.log(variance)
    return jnp.mean(likelihood, axis=(1, 2, 3)) / 2


def ab(
    student: ArrayLike, teacher: ArrayLike, *, margin: float | jax.Array = 1.0
) -> jax.Array:
    """Activation boundaries: a student's neuron should fire where the teacher's does.

    `loss = sum_{h,w,c} max(margin + f_s, 0)^2 [f_t <= 0]
    + max(margin - f_s, 0)^2 [f_t > 0]`

    Args:
        student: features before the activation, after a connector to the teacher's
            shape, [batch, height, width, channels].
        teacher: features before the activation, [batch, height, width, channels].
        margin: the sufficient distance from the boundary, greater than 0.

    Returns:
        One value per example, [batch].

    Raises:
        ValueError: if the shapes differ or the margin is not above 0.

    Reference:
        Heo et al., "Knowledge Transfer via Distillation of Activation Boundaries
        Formed by Hidden Neurons", 2019, Eq. 4.

    **Deviations**: This is the paper's sum. The published code multiplies it by 3/1000,
    and level i of n by 2^(i - n), the last one by 1: here the caller's weights.
    """
    student, teacher = _checks.pair(student, teacher, _checks.MAPS)
    _checks.above("margin", margin, 0)
    # Positive where the student is not beyond the margin on the teacher's side.
    wrong = jnp.where(teacher > 0, margin - student, margin + student)
    return jnp.sum(jnp.square(jax.nn.relu(wrong)), axis=(1, 2, 3))


def factor_transfer(
    student: ArrayLike,
    teacher: ArrayLike,
    *,
    form: str = "map",
    p1: float | jax.Array = 2.0,
    p2: float | jax.Array = 1.0,
) -> jax.Array:
    """Factor transfer: distance between normalised factors of student and teacher.

    `loss = mean_i |q_s - q_t|_i^p2`, where by form 'map': `q = attention_map(f, p1)`;
    'factor': `q = f / max(||f||_2, 1e-12)`, over all positions and channels. The larger
    map is pooled to the smaller first (`match_size`). Differences up to rounding have
    no gradient: with p2 = 1 it would be as large as that of any other difference.

    Args:
        student: the translator's factors, [batch, height, width, channels].
        teacher: the paraphraser's factors; height and width may differ, and for 'map'
            the number of channels.
        form: 'map' or 'factor'.
        p1: the exponent of the maps, greater than 1; not used with 'factor'.
        p2: the exponent of the differences, at least 1.

    Returns:
        One value per example, [batch].

    Raises:
        ValueError: if the shapes do not fit, an exponent is out of range or the form
            is unknown.

    Reference:
        Kim et al., "Paraphrasing Complex Network: Network Compression via Factor
        Transfer", 2018, Eq. 3.

    **Deviations**: The paper takes the p2-norm of 'factor', the published code
    (RepDistiller) the mean of 'map', the default, to which its weight of 200 belongs.
    """
    if form not in _FORMS:
        raise ValueError(f"unknown form {form!r}; choices: {', '.join(_FORMS)}")
    _checks.at_least("p2", p2, 1)
    student, teacher = match_size(student, teacher)
    if form == "map":
        student = attention_map(student, power=p1)
        teacher = attention_map(teacher, power=p1)
    else:
        student, teacher = _checks.pair(student, teacher, _checks.MAPS)
        student = _checks.unit(student.reshape(len(student), -1), axis=-1)  # [B, HWC]
        teacher = _checks.unit(teacher.reshape(len(teacher), -1), axis=-1)
    distance = jnp.abs(student - teacher)
    rounding = 8 * jnp.finfo(distance.dtype).eps
    # Two wheres: the power's gradient at 0 need not be finite, and the outer where
    # alone would turn it into NaN.
    real = distance > rounding
    powers = jnp.where(real, jnp.where(real, distance, 1) ** p2, 0)
    return jnp.mean(powers, axis=-1)


def ofd(student: ArrayLike, teacher: ArrayLike, *, margin: ArrayLike) -> jax.Array:
    """Overhaul of feature distillation: a partial distance before the activation.

    `t = max(f_t, margin_c)`, `loss = sum_{h,w,c} (f_s - t)^2 [f_s > t or t > 0]`: where
    the teacher is negative, a student that is even lower learns nothing.

    Args:
        student: features after the connector, [batch, height, width, channels].
        teacher: features before the activation, [batch, height, width, channels].
        margin: the teacher's mean negative response, from `ofd_margin`, [channels].

    Returns:
        One value per example, [batch].

    Raises:
        ValueError: if the shapes do not fit.

    Reference:
        Heo et al., "A Comprehensive Overhaul of Feature Distillation", 2019, Eq. 3
        and 4.

    **Deviations**: This is the paper's sum. The published code divides it by 1000, and
    multiplies level i of n by 2^(i - n), the last one by 1: here the caller's weights.
    """
    student, teacher = _checks.pair(student, teacher, _checks.MAPS)
    student, teacher, margin = _checks.promote(student, teacher, margin)
    _checks.per_channel("margin", margin, student.shape[-1])
    teacher = jnp.maximum(teacher, margin.reshape(1, 1, 1, -1))
    # Compared after the maximum, as the formula has it.
    counts = (student > teacher) | (teacher > 0)
    return jnp.sum(jnp.where(counts, jnp.square(student - teacher), 0), axis=(1, 2, 3))


def ofd_margin(scale: ArrayLike, bias: ArrayLike) -> jax.Array:
    """The mean of a channel's negative responses, from the BatchNorm before its ReLU.

    `E[x | x < 0] = bias - |scale| phi(r) / Phi(-r)`, `r = bias / |scale|`, for x normal
    with this mean and deviation; `-3 |scale|` where less than 0.001 of x is negative.

    Args:
        scale: the BatchNorm's scale, [channels].
        bias: the BatchNorm's bias, [channels].

    Returns:
        `margin` of `ofd`, [channels], never above 0. A channel that is constant
        (scale 0) has its value, if that is negative, otherwise 0.

    Raises:
        ValueError: if the shapes differ or are not [channels].

    Reference:
        Heo et al. (see `ofd`), 2019, Eq. 5, and the published code for rare negatives.
    """
    scale, bias = _checks.promote(scale, bias)
    _checks.rank("scale", scale, ("channels",))
    _checks.per_channel("bias", bias, len(scale))
    deviation = jnp.abs(scale)
    # Beyond 10 deviations all responses are negative, with the bias as their mean, or
    # none is. There, and for a channel that hardly varies, the ratio and its gradient
    # could overflow.
    near = (deviation > 1e-15) & (jnp.abs(bias) <= 10 * deviation)
    ratio = jnp.where(near, bias, 0) / jnp.where(near, deviation, 1)
    negative = jax.lax.erfc(ratio / math.sqrt(2)) / 2  # Phi(-r), the negative share
    density = jnp.exp(-jnp.square(ratio) / 2) / math.sqrt(2 * math.pi)
    often = negative > 0.001
    mean = bias - deviation * density / jnp.where(often, negative, 1)
    rare = -3 * deviation
    return jnp.where(
        near, jnp.where(often, mean, rare), jnp.where(bias < 0, bias, rare)
    )


def hierarchical_context(
    student: ArrayLike, teacher: ArrayLike, *, sizes: tuple[int, ...] = (4, 2, 1)
) -> jax.Array:
    """ReviewKD's loss: mean squared differences of the maps and of pooled versions.

    `loss = (sum_k 2^-k mean_{h,w,c} (pool_k(f_s) - pool_k(f_t))^2) / sum_k 2^-k`, where
    k = 0 is the map itself and k = 1, 2... are its averages, pooled to smaller sizes.

    Args:
        student: features after fusion, [batch, height, width, channels].
        teacher: feature maps, [batch, height, width, channels].
        sizes: heights (and widths) to pool to; one that is not smaller than the map
            is left out.

    Returns:
        One value per example, [batch].

    Raises:
        ValueError: if the shapes differ or a size is not positive.

    Reference:
        Chen et al., "Distilling Knowledge via Knowledge Review", 2021, Section 3.3.

    **Deviations**: The paper prints no weights; these are the published code's. That
    code compares a size with the height alone, which is equal for square maps.
    """
    student, teacher = _checks.pair(student, teacher, _checks.MAPS)
    side = min(student.shape[1:3])
    difference = student - teacher  # pooling is linear: one map to pool instead of two
    loss, weight, total = jnp.mean(jnp.square(difference), axis=(1, 2, 3)), 1.0, 1.0
    for size in sizes:
        if size < side:
            # Halved for sizes in use only: one that is left out takes no share.
            weight /= 2
            pooled = adaptive_pool(difference, (size, size))
            loss += weight * jnp.mean(jnp.square(pooled), axis=(1, 2, 3))
            total += weight
    return loss / total
