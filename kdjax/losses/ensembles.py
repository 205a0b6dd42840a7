"""Losses between the logits of several networks: ensembles, guides, peers, branches.

None of these functions stops a gradient: where one network must not learn from
another, the caller passes `jax.lax.stop_gradient(...)`.
"""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from kdjax.losses import _checks, _safe
from kdjax.losses.logits import cross_entropy, kd


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
    softened = jax.nn.log_softmax(_safe.soften(teachers, temperature))
    # [teachers, B, C] -> [B, C], in logarithms: small probabilities do not underflow.
    mean = jax.nn.logsumexp(softened, axis=0) - jnp.log(shape[0])
    # So that `kd` gets these probabilities when it divides by the temperature.
    return temperature * mean


def guide_divergences(
    student: ArrayLike,
    guides: Iterable[ArrayLike],
    *,
    temperature: float | jax.Array = 5.0,
) -> list[jax.Array]:
    """Divergences of the student from several guides: the terms of `dgkd`'s sum.

    `tau^2 * KL_i` for every guide i, see `kd`

    Args:
        student: logits, [batch, classes].
        guides: logits of each guide, [batch, classes].
        temperature: tau, a positive scalar.

    Returns:
        One array [batch] for each guide, in their order.

    Raises:
        ValueError: if the shapes differ or the temperature is not positive.

    Reference:
        Son et al. (see `dgkd`), the terms of the sum in Eq. 7.
    """
    return [kd(student, guide, temperature=temperature) for guide in guides]


def dgkd(
    student: ArrayLike,
    guides: ArrayLike,
    labels: ArrayLike,
    *,
    temperature: float | jax.Array = 5.0,
    alpha: float | jax.Array = 0.7,
    keep: ArrayLike | None = None,
) -> jax.Array:
    """Densely guided knowledge distillation: the labels and all guides teach together.

    `loss = (n+1) * (1 - lambda) * CE + lambda * sum_i b_i * tau^2 * KL_i`, over n+1
    guides: the teacher and the n assistants before the student

    Args:
        student: logits, [batch, classes].
        guides: logits of teacher and assistants, [guides, batch, classes].
        labels: class numbers, integers, [batch].
        temperature: tau, a positive scalar.
        alpha: lambda, a scalar.
        keep: b, which guides are kept: [guides] for the whole batch or [batch, guides];
            None keeps all. In the stochastic form samples of Bernoulli(survival).

    Returns:
        One value per example, [batch].

    Raises:
        ValueError: if the shapes do not fit or the temperature is not positive.

    Reference:
        Son et al., "Densely Guided Knowledge Distillation using Multiple Teacher
        Assistants", ICCV 2021, Eq. 7 and 8.

    **Deviations**: This is the paper's form. The released code leaves out (n+1),
    divides KL by the number of classes as well and drops a fixed number of guides.
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
    divergences = jnp.stack(
        guide_divergences(student, jnp.asarray(guides), temperature=temperature)
    )
    # [guides] or [B, guides] -> [B, guides]
    keep = jnp.broadcast_to(keep, (shape[0], shapes[0])).astype(divergences.dtype)
    # [guides, B] -> [B, guides] -> [B]
    guided = jnp.sum(keep * divergences.T, axis=1)
    ce = cross_entropy(student, labels)
    # shapes[0] is n + 1: guides that are dropped count, too.
    return shapes[0] * (1 - alpha) * ce + alpha * guided


def mutual(student: ArrayLike, teacher: ArrayLike, *, eps: float = 1e-8) -> jax.Array:
    """Deep mutual learning: divergence of a network from a peer that learns as well.

    `loss = sum_c p_2 * log(eps + p_2 / (p_1 + eps))`, about KL(p_2 || p_1), with
    `p = softmax(logits)`, 1 the student's and 2 the peer's

    Args:
        student: logits of the network that learns from this term, [batch, classes].
        teacher: logits of the peer, [batch, classes].
        eps: keeps logarithm and quotient finite, a positive number.

    Returns:
        One value per example, [batch].

    Raises:
        ValueError: if the shapes differ or eps is not positive.

    Reference:
        Zhang et al., "Deep Mutual Learning", CVPR 2018.

    **Deviations**: The paper has the plain divergence, `kd` at temperature 1; eps is
    the published code's. With more than two networks the code adds the terms of all
    peers, the paper takes their mean: the caller's choice.
    """
    student, teacher = _checks.pair(student, teacher, _checks.LOGITS)
    _checks.above("eps", eps, 0)
    p_1, p_2 = jax.nn.softmax(student), jax.nn.softmax(teacher)
    return jnp.sum(p_2 * jnp.log(eps + p_2 / (p_1 + eps)), axis=-1)


def gated_logits(branches: ArrayLike, gate: ArrayLike) -> jax.Array:
    """Logits of ONE's ensemble: the gate's mixture of the branches' logits.

    `logits = sum_i softmax(gate)_i * branch_i`

    Args:
        branches: logits, [branches, batch, classes].
        gate: scores of the branches before the softmax, [batch, branches].

    Returns:
        Logits, [batch, classes].

    Raises:
        ValueError: if the shapes do not fit.

    Reference:
        Lan, Zhu and Gong, "Knowledge Distillation by On-the-Fly Native Ensemble",
        NeurIPS 2018.
    """
    shape, gates = jnp.shape(branches), jnp.shape(gate)
    if len(shape) != 3 or gates != (shape[1], shape[0]):
        raise ValueError(
            f"branches {shape} and gate {gates} must be [branches, batch, classes] "
            "and [batch, branches]"
        )
    branches, gate = _checks.promote(branches, gate)
    # [branches, B, C], [B, branches] -> [B, C]
    return jnp.einsum("nbc,bn->bc", branches, jax.nn.softmax(gate))


def one(
    student: ArrayLike,
    teacher: ArrayLike,
    *,
    temperature: float | jax.Array = 3.0,
    eps: float = 1e-7,
) -> jax.Array:
    """ONE: divergence of a branch from the gated ensemble of all branches.

    `loss = tau^2 * sum_c q_c * (log q_c - log softmax(student / tau)_c)`, with
    `q = softmax(teacher / tau) + eps`, not normalised again

    Args:
        student: logits of one branch, [batch, classes].
        teacher: logits of the ensemble, see `gated_logits`, [batch, classes].
        temperature: tau, a positive scalar.
        eps: keeps log q finite, a positive number.

    Returns:
        One value per example, [batch].

    Raises:
        ValueError: if the shapes differ, or temperature or eps are not positive.

    Reference:
        Lan, Zhu and Gong, "Knowledge Distillation by On-the-Fly Native Ensemble",
        NeurIPS 2018.

    **Deviations**: eps on the target and the factor tau^2 are the published code's,
    which also ramps the term up over 80 epochs: the caller's weight.
    """
    student, teacher = _checks.pair(student, teacher, _checks.LOGITS)
    _checks.above("temperature", temperature, 0)
    _checks.above("eps", eps, 0)
    q = jax.nn.softmax(_safe.soften(teacher, temperature)) + eps
    log_student = jax.nn.log_softmax(_safe.soften(student, temperature))
    # Gradients of softened probabilities scale as 1 / tau^2.
    return temperature**2 * jnp.sum(q * (jnp.log(q) - log_student), axis=-1)
