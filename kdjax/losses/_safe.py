"""Steps that many losses share, made safe where the formula is 0/0 or overflows.

A value is always the formula's. Where a vector is too short to have a direction, or
numbers differ by rounding alone, the formula's gradient is noise many orders larger
than any other; there it is blocked.
"""

import jax
import jax.numpy as jnp
import optax


def rescale(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns `x / k` and the scalar `k = max(max|x|, 1)`, a constant to gradients.

    For formulas that do not depend on the scale: squares of `x / k` do not overflow.
    """
    k = jax.lax.stop_gradient(jnp.maximum(jnp.max(jnp.abs(x), initial=0.0), 1.0))
    return x / k, k


def normalise(x: jax.Array, eps: float | jax.Array) -> jax.Array:
    """Returns `x / max(||x||, eps)` along the last axis, blocked where `eps` counts."""
    norm = optax.safe_norm(x, 0.0, axis=-1, keepdims=True)
    short = norm <= eps
    return jnp.where(
        short, jax.lax.stop_gradient(x / eps), x / jnp.where(short, 1.0, norm)
    )


def centre(x: jax.Array) -> jax.Array:
    """Returns `x - mean(x)` along the last axis, 0 where all are equal but rounding."""
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    rounding = 8 * jnp.finfo(x.dtype).eps * jnp.max(jnp.abs(x), axis=-1, keepdims=True)
    even = jnp.max(jnp.abs(centred), axis=-1, keepdims=True) <= rounding
    return jnp.where(even, 0.0, centred)


def soften(logits: jax.Array, temperature: float | jax.Array) -> jax.Array:
    """Returns `(logits - max logits) / temperature`, which softens as `logits / tau`.

    The largest is exactly 0. Divided first, a compiler may round the quotient in two
    ways and subtract one from the other: for huge logits that is no longer small.
    """
    peak = jnp.max(logits, axis=-1, keepdims=True)
    return (logits - jax.lax.stop_gradient(peak)) / temperature
