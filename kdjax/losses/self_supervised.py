"""The parts of SSKD: similarities of views, and the rows to learn from.

None of these functions stops a gradient.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from kdjax.losses import _checks, _safe
from kdjax.losses.logits import kd


def view_similarities(augmented: ArrayLike, normal: ArrayLike) -> jax.Array:
    """Cosine similarities between the augmented views and the normal ones.

    `s_ij = a_i . n_j / (max(||a_i||, 1e-8) * max(||n_j||, 1e-8))`

    Args:
        augmented: projections of the augmented views, [views, dimensions].
        normal: projections of the normal views, [batch, dimensions].

    Returns:
        Similarities, [views, batch]: logits of which image a view was made from.

    Raises:
        ValueError: if the shapes do not fit.

    Reference:
        Xu et al., "Knowledge Distillation Meets Self-Supervision", ECCV 2020.
    """
    shapes = jnp.shape(augmented), jnp.shape(normal)
    if {len(shape) for shape in shapes} != {2} or shapes[0][1] != shapes[1][1]:
        raise ValueError(
            f"augmented {shapes[0]} and normal {shapes[1]} must be "
            "[views, dimensions] and [batch, dimensions]"
        )
    augmented, normal = _checks.promote(augmented, normal)
    # [views, D] @ [D, B] -> [views, B]
    return _safe.normalise(augmented, 1e-8) @ _safe.normalise(normal, 1e-8).T


def select_ranked(teacher: ArrayLike, targets: ArrayLike, *, ratio: float) -> jax.Array:
    """Selects the teacher's predictions to learn: the correct and nearly correct ones.

    A row's rank is the place of its target when the scores are sorted downwards, 0 for
    a correct prediction. All correct rows are kept, and of the wrong ones the
    `int(wrong * ratio)` with the smallest ranks. Equal scores and equal ranks keep
    their order.

    Args:
        teacher: scores (logits or similarities), [rows, choices].
        targets: the correct choice of each row, integers, [rows].
        ratio: the share of wrong rows that is kept, from 0 to 1.

    Returns:
        Booleans, [rows].

    Raises:
        ValueError: if the shapes do not fit or the ratio is outside 0..1.

    Reference:
        Xu et al., "Knowledge Distillation Meets Self-Supervision", ECCV 2020.

    **Deviations**: In the published code the order of ties is undefined (PyTorch's
    sort); here it is stable.
    """
    targets = _checks.labels("teacher", teacher, targets)
    if not 0 <= ratio <= 1:
        raise ValueError(f"ratio must be in 0..1, not {ratio}")
    (teacher,) = _checks.promote(teacher)
    rows, choices = teacher.shape
    own = jnp.take_along_axis(teacher, targets[:, None], axis=1)
    earlier = jnp.arange(choices)[None] < targets[:, None]
    # How many choices precede the target; of equal scores, the earlier choice does.
    rank = jnp.sum((teacher > own) | ((teacher == own) & earlier), axis=1)
    # From a table, so that int(wrong * ratio) is rounded as Python does it.
    kept = jnp.asarray([int(wrong * ratio) for wrong in range(rows + 1)])
    wrong = jnp.sum(rank > 0)
    # Twice argsort: the position of each row in the order of ranks.
    place = jnp.argsort(jnp.argsort(rank, stable=True))
    # Right rows, of rank 0, come first.
    return place < rows - wrong + kept[wrong]


def selected_kd(
    student: ArrayLike,
    teacher: ArrayLike,
    selected: ArrayLike,
    *,
    temperature: float | jax.Array = 4.0,
) -> jax.Array:
    """Mean of `kd` over selected rows: SSKD's terms on transformed views.

    `loss = sum_i selected_i * kd(student_i, teacher_i) / max(sum_i selected_i, 1)`

    The transformed term takes the class logits of the augmented views (temperature
    4), the self-supervised one their `view_similarities` (temperature 0.5); the rows
    are chosen by `select_ranked`.

    Args:
        student: scores, [rows, choices].
        teacher: scores, [rows, choices].
        selected: which rows count, booleans, [rows].
        temperature: tau, a positive scalar.

    Returns:
        A scalar; 0 where no row is selected.

    Raises:
        ValueError: if the shapes do not fit or the temperature is not positive.

    Reference:
        Xu et al., "Knowledge Distillation Meets Self-Supervision", ECCV 2020.

    **Deviations**: The factor tau^2 of both terms is the published code's.
    """
    divergence = kd(student, teacher, temperature=temperature)
    selected = jnp.asarray(selected)
    if selected.shape != divergence.shape:
        raise ValueError(
            f"selected {selected.shape} must be [rows] for student {jnp.shape(student)}"
        )
    # Not by multiplication: a row that is left out may be infinite, and 0 * inf is NaN.
    kept = jnp.sum(jnp.where(selected, divergence, 0.0))
    return kept / jnp.maximum(jnp.sum(selected), 1)
