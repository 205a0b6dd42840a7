"""The terms of a loss, their sum, and the cross-entropy with the labels."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

from kdjax import losses
from kdjax.methods.context import Context

Weight = float | Callable[[jax.Array], jax.Array]
"""A number, or a function of the step."""


class Term(NamedTuple):
    """One term of the loss.

    Attributes:
        value: the raw loss, `[batch]` or a scalar; the step logs and adds its mean.
        weight: a number, or a schedule: a function of the step.
        mask: a scalar or `[batch]` that multiplies `value` in the sum but not in the
            log: if guides are dropped at random, the log still shows the student's
            distance to each of them.
    """

    value: jax.Array
    weight: Weight = 1.0
    mask: jax.Array | None = None


def weighted_sum(
    terms: Mapping[str, Term], step: jax.Array, *, dtype: DTypeLike = jnp.float32
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the loss that a step minimises, and the raw mean of every term.

    `loss = sum_i weight_i(step) * mean(value_i * mask_i)`

    The train step calls it; training loops of one's own can, too.

    Args:
        terms: by name, as `Method.terms` returns them.
        step: the number of the step, for weights that are schedules.
        dtype: of the sum, unless a term's dtype is wider.

    Returns:
        The loss, a scalar; and every term's mean by name, without weight and mask.
    """
    # Terms are added in their order: in another order the sum would round differently.
    means, loss = {}, jnp.zeros((), dtype)
    for name, term in terms.items():
        means[name] = jnp.mean(term.value)
        weight = term.weight(step) if callable(term.weight) else term.weight
        added = means[name]
        if term.mask is not None:
            added = jnp.mean(term.value * term.mask)
        loss += weight * added
    return loss, means


def cross_entropy(context: Context, role: str) -> jax.Array:
    """Returns a role's cross-entropy with the labels, `[batch]`.

    Args:
        context: of the step; its label smoothing applies.
        role: of the trained network.
    """
    return label_cross_entropy(context, context.outputs[role].logits)


def label_cross_entropy(context: Context, logits: jax.Array) -> jax.Array:
    """Returns the cross-entropy of any logits with the labels, `[batch]`.

    With mixup's labels it is `l CE(y_i) + (1 - l) CE(y_j)`.

    Args:
        context: of the step; its label smoothing applies.
        logits: `[batch, classes]`.
    """
    if context.labels.ndim == 2:
        targets = optax.smooth_labels(context.labels, context.label_smoothing)
        logits = logits.astype(jnp.promote_types(logits.dtype, targets.dtype))
        return optax.losses.softmax_cross_entropy(logits, targets)
    return losses.cross_entropy(
        logits, context.labels, label_smoothing=context.label_smoothing
    )
