"""Building blocks of the losses, safe where a formula is 0/0 or overflows.

Values are always the formula's. Where a vector is too short to have a direction, or
numbers differ by rounding alone, the formula's gradient would be noise, many orders of
magnitude larger than any true gradient: it is blocked.
"""

import jax
import jax.numpy as jnp
import optax


def rescale(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns `x / k` and the scalar `k = max(max|x|, 1)`, a constant to gradients.

    For formulas that do not depend on the scale: squares of `x / k` do not overflow.
    """
    # What follows does not depend on k, so the gradient through k would be 0.
    k = jax.lax.stop_gradient(jnp.maximum(jnp.max(jnp.abs(x), initial=0.0), 1.0))
    return x / k, k


def normalise(x: jax.Array, eps: float | jax.Array) -> jax.Array:
    """Returns `x / max(||x||, eps)` along the last axis; no gradient up to `eps`."""
    norm = optax.safe_norm(x, 0.0, axis=-1, keepdims=True)
    # The inner where keeps the quotient that is not used, and its gradient, finite.
    short = norm <= eps
    return jnp.where(
        short, jax.lax.stop_gradient(x / eps), x / jnp.where(short, 1.0, norm)
    )


def centre(x: jax.Array) -> jax.Array:
    """Returns `x - mean(x)` along the last axis; 0 if `x` varies by rounding only."""
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    rounding = 8 * jnp.finfo(x.dtype).eps * jnp.max(jnp.abs(x), axis=-1, keepdims=True)
    even = jnp.max(jnp.abs(centred), axis=-1, keepdims=True) <= rounding
    return jnp.where(even, 0.0, centred)


def soften(logits: jax.Array, temperature: float | jax.Array) -> jax.Array:
    """Returns `(logits - max logits) / temperature`: the softmax is `logits / tau`'s.

    The largest is exactly 0. If the division came first, a compiler might compute the
    quotient twice, rounded in two ways, and subtract one from the other: for huge
    logits the difference is not small.
    """
    peak = jnp.max(logits, axis=-1, keepdims=True)
    # A shift does not change the softmax, so the peak needs no gradient.
    return (logits - jax.lax.stop_gradient(peak)) / temperature
