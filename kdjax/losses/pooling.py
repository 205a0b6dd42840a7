"""Maps of different sizes pooled to one size, for all losses that compare maps.

There is one rule: height and width are each pooled to the smaller of the two, with the
bins of PyTorch's adaptive average pooling; maps of equal size are not changed. Where
the rule is applied:

- `nst`, `factor_transfer` and, between two levels of one network, `fsp_matrix` apply
  it themselves, so that they take maps of any size. `kdsvd` takes maps of any size
  without it: singular vectors over the channels do not depend on the number of
  positions;
- `ofd`, `vid` and `feature_mse` need equal sizes: call `match_size` first;
- `ab` and `hierarchical_context` need equal shapes, including channels: a trained
  connector gives the student's map that shape, and nothing is left to pool;
- `attention_distance` takes flat maps: call `match_attention` first.
"""

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from kdjax.losses import _checks


def adaptive_pool(features: ArrayLike, size: tuple[int, int]) -> jax.Array:
    """Average pooling to a given size.

    `out_i = mean of in_j over floor(i n / m) <= j < ceil((i + 1) n / m)`, along height
    and width; the bins overlap where m does not divide n.

    Args:
        features: feature maps, [batch, height, width, channels].
        size: the height and width of the result, at most those of the maps.

    Returns:
        `[batch, *size, channels]`.

    Raises:
        ValueError: if the rank is not 4, or the size is not between 1 and the maps'.

    Reference:
        The bins of PyTorch's `adaptive_avg_pool2d`.
    """
    (features,) = _checks.promote(features)
    _checks.rank("features", features, _checks.MAPS)
    if not all(1 <= m <= n for m, n in zip(size, features.shape[1:3], strict=True)):
        raise ValueError(
            f"maps of {features.shape[1:3]} cannot be pooled to {tuple(size)}; each "
            "side must lie between 1 and the maps' own"
        )
    for axis, side in enumerate(size, start=1):
        features = _pool(features, axis, side)
    return features


def match_size(student: ArrayLike, teacher: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """Student's and teacher's maps, the larger one pooled to the size of the smaller.

    Height and width are each pooled to the smaller of the two by `adaptive_pool`.

    Args:
        student: feature maps, [batch, height, width, channels].
        teacher: feature maps; height, width and channels may differ.

    Returns:
        Both with equal height and width.

    Raises:
        ValueError: if the batch sizes differ or the rank is not 4.
    """
    student, teacher = _checks.pair(student, teacher, _checks.MAPS, agree=1)
    sides = [min(pair) for pair in zip(student.shape, teacher.shape, strict=True)]
    size = sides[1], sides[2]
    return adaptive_pool(student, size), adaptive_pool(teacher, size)


def match_attention(
    student: ArrayLike, teacher: ArrayLike
) -> tuple[jax.Array, jax.Array]:
    """Attention maps pooled to one size by `match_size`, and flattened.

    Where the sizes differ, both maps are normalised again: a pooled map is shorter than
    1. Maps of equal size keep their values: stored ones are compared bit by bit.

    Args:
        student: attention maps, [batch, height, width]; see `attention_map`.
        teacher: attention maps; height and width may differ.

    Returns:
        Both as [batch, positions], for `attention_distance`.

    Raises:
        ValueError: if the batch sizes differ or the rank is not 3.

    **Deviations**: RepDistiller pools the features before it makes the maps. Pooled
    afterwards, the teacher's maps do not depend on the student and can be stored.
    """
    ours, theirs = _checks.pair(student, teacher, ("batch", "height", "width"), agree=1)
    if ours.shape == theirs.shape:
        return ours.reshape(len(ours), -1), theirs.reshape(len(theirs), -1)
    # [B, H, W] -> [B, H, W, 1]: maps of one channel.
    ours, theirs = match_size(ours[..., None], theirs[..., None])
    return _normalised(ours), _normalised(theirs)


def _normalised(maps: jax.Array) -> jax.Array:
    flat = maps.reshape(len(maps), -1)  # [B, HW]
    return flat / optax.safe_norm(flat, 1e-12, axis=-1, keepdims=True)


def _pool(x: jax.Array, axis: int, bins: int) -> jax.Array:
    length = x.shape[axis]
    if length == bins:
        return x
    if length % bins == 0:  # equal bins without overlap
        shape = (*x.shape[:axis], bins, length // bins, *x.shape[axis + 1 :])
        # [..., n, ...] -> [..., bins, n / bins, ...] -> [..., bins, ...]
        return jnp.mean(x.reshape(shape), axis=axis + 1)
    means = []
    for i in range(bins):
        # Rounded down and up: neighbouring bins share a position.
        first, end = i * length // bins, -(-(i + 1) * length // bins)
        part = jax.lax.slice_in_dim(x, first, end, axis=axis)
        means.append(jnp.mean(part, axis=axis))
    return jnp.stack(means, axis=axis)
