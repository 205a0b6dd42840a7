"""Checks of the losses' arguments, and a safe normalisation."""

import math

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

LOGITS = ("batch", "classes")
MAPS = ("batch", "height", "width", "channels")


def promote(*arrays: ArrayLike) -> list[jax.Array]:
    """Returns the arrays in their common dtype, float32 or wider."""
    dtype = jnp.result_type(*arrays, jnp.float32)
    return [jnp.asarray(array).astype(dtype) for array in arrays]


def pair(
    student: ArrayLike,
    teacher: ArrayLike,
    axes: tuple[str, ...],
    *,
    agree: int | None = None,
) -> list[jax.Array]:
    """Returns student and teacher promoted, after a check of their shapes.

    Args:
        student: array with the given axes.
        teacher: array with the same axes.
        axes: the names of the axes, for the message.
        agree: how many leading axes must have equal sizes; None means all.

    Raises:
        ValueError: if an array has another rank, or the sizes differ.
    """
    shapes = jnp.shape(student), jnp.shape(teacher)
    if {len(shape) for shape in shapes} != {len(axes)} or (
        shapes[0][:agree] != shapes[1][:agree]
    ):
        raise ValueError(
            f"student {shapes[0]} and teacher {shapes[1]} must both be "
            f"[{', '.join(axes)}] and agree in {', '.join(axes[:agree])}"
        )
    return promote(student, teacher)


def rank(name: str, array: jax.Array, axes: tuple[str, ...]) -> None:
    """Raises ValueError unless the array has the given axes."""
    if array.ndim != len(axes):
        raise ValueError(f"{name} {array.shape} must be [{', '.join(axes)}]")


def per_channel(name: str, array: jax.Array, channels: int) -> None:
    """Raises ValueError unless the array holds one number for each channel."""
    if array.shape != (channels,):
        raise ValueError(
            f"{name} {array.shape} must be one number for each of {channels} channels"
        )


def above(name: str, value: float | jax.Array, bound: float) -> None:
    """Raises ValueError unless the value is a finite scalar greater than the bound.

    A traced scalar (a schedule inside jit) has no value to check yet and passes.
    """
    known = not isinstance(value, jax.core.Tracer)
    if jnp.ndim(value) or (known and not bound < value < math.inf):
        raise ValueError(
            f"{name} must be a finite number greater than {bound:g}, not {value}"
        )


def labels(name: str, logits: ArrayLike, labels: ArrayLike) -> jax.Array:
    """Returns the labels of logits as an array.

    Raises:
        ValueError: if the shapes do not fit or the labels are not integers.
    """
    shape, labels = jnp.shape(logits), jnp.asarray(labels)
    if len(shape) != 2 or shape[:1] != labels.shape:
        raise ValueError(
            f"{name} {shape} and labels {labels.shape} must be [batch, classes] "
            "and [batch]"
        )
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"labels must be integers, not {labels.dtype}")
    return labels


def batch_of_vectors(student: ArrayLike, teacher: ArrayLike) -> list[jax.Array]:
    """Returns both arrays promoted and flattened to one vector per example.

    Raises:
        ValueError: if an array has no axis beside the batch, or the batches differ.
    """
    shapes = jnp.shape(student), jnp.shape(teacher)
    if min(map(len, shapes)) < 2 or shapes[0][0] != shapes[1][0]:
        raise ValueError(
            f"student {shapes[0]} and teacher {shapes[1]} must both be [batch, ...] "
            "and agree in batch"
        )
    return [x.reshape(len(x), -1) for x in promote(student, teacher)]  # [B, D]


def positions(name: str, array: jax.Array, leading: tuple[int, ...], rank: int) -> None:
    """Raises ValueError unless the array is of integers, that rank and leading axes."""
    if array.ndim != rank or array.shape[: len(leading)] != leading:
        axes = ["batch", "entries"][:rank]
        raise ValueError(
            f"{name} {array.shape} must be [{', '.join(axes)}] and start with {leading}"
        )
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise ValueError(f"{name} must be integers, not {array.dtype}")


def at_least(name: str, value: float | jax.Array, bound: float) -> None:
    """Raises ValueError unless the value is a finite scalar not below the bound.

    A traced scalar passes, as for `above`.
    """
    known = not isinstance(value, jax.core.Tracer)
    if jnp.ndim(value) or (known and not bound <= value < math.inf):
        raise ValueError(
            f"{name} must be a finite number of at least {bound:g}, not {value}"
        )


def unit(x: jax.Array, axis: int | tuple[int, ...]) -> jax.Array:
    """Returns `x / max(||x||_2, 1e-12)` along the axes; value and gradient 0 at 0."""
    # Squares of large numbers overflow. The result does not depend on the scale, so a
    # scale above 1 (where the 1e-12 has no effect) is divided out, as a constant.
    peak = jnp.max(jnp.abs(x), axis=axis, keepdims=True)
    x = x / jax.lax.stop_gradient(jnp.maximum(peak, 1.0))
    # A plain norm's gradient at 0 is NaN; safe_norm's is 0.
    return x / optax.safe_norm(x, 1e-12, axis=axis, keepdims=True)
