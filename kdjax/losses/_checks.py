"""What every loss asks of its arguments before it computes."""

import math

import jax
import jax.numpy as jnp
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
    """Returns student and teacher promoted, if their shapes allow a comparison.

    Args:
        student: array with the given axes.
        teacher: array with the same axes.
        axes: what the axes mean.
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


def above(name: str, value: float | jax.Array, bound: float) -> None:
    """Raises ValueError unless the value is a finite scalar greater than the bound.

    A traced scalar (a schedule inside jit) has no value to check yet and passes.
    """
    known = not isinstance(value, jax.core.Tracer)
    if jnp.ndim(value) or (known and not bound < value < math.inf):
        raise ValueError(
            f"{name} must be a finite number greater than {bound:g}, not {value}"
        )
