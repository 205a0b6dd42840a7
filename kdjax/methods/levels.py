"""The named features of a network, its levels, as methods use them."""

from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import optax

from kdjax import losses
from kdjax.models import Outputs
from kdjax.runtime.errors import UserError, unknown


def feature(outputs: Outputs, name: str) -> jax.Array:
    """Returns a named feature.

    Raises:
        UserError: the network has none of that name.
    """
    if name not in outputs.features:
        raise unknown("feature", name, sorted(outputs.features))
    return outputs.features[name]


def feature_maps(outputs: Outputs, levels: tuple[str, ...]) -> dict[str, jax.Array]:
    """Returns some features by name; a vector such as 'pooled' as a map of 1x1."""
    maps = {level: feature(outputs, level) for level in levels}
    return {
        level: found[:, None, None] if found.ndim == 2 else found
        for level, found in maps.items()
    }


def check_levels(method: str, levels: tuple[str, ...], least: int = 1) -> None:
    """Raises UserError if there are too few levels."""
    if len(levels) < least:
        raise UserError(f"{method}: levels {levels} are too few; it wants {least}")


def total(values: Iterable[jax.Array]) -> jax.Array:
    """Returns the sum over the levels, `[batch]`."""
    return jnp.sum(jnp.stack(list(values)), axis=0)


def attention_maps(
    outputs: Outputs, levels: tuple[str, ...], power: float
) -> dict[str, jax.Array]:
    """Returns the attention maps of some features, `[batch, height, width]` by name."""
    maps = {}
    for level in levels:
        found = feature(outputs, level)
        flat = losses.attention_map(found, power=power)
        maps[level] = flat.reshape(found.shape[:3])
    return maps


def attention_distance(
    student: Mapping[str, jax.Array], teacher: Mapping[str, jax.Array], norm: str
) -> jax.Array:
    """Returns the attention term, summed over the levels, `[batch]`.

    Where the sizes differ, the larger map is pooled to the size of the smaller and
    normalised again.
    """
    if not teacher:
        raise UserError("attention transfer wants at least one level")
    distances = []
    for level in teacher:
        pair = [student[level], teacher[level]]
        resized = pair[0].shape != pair[1].shape
        if resized:
            pair = list(losses.match_size(*(maps[..., None] for maps in pair)))
        flat = [maps.reshape(len(maps), -1) for maps in pair]
        if resized:
            flat = [
                maps / optax.safe_norm(maps, 1e-12, axis=-1, keepdims=True)
                for maps in flat
            ]
        distances.append(losses.attention_distance(*flat, norm=norm))
    return jnp.sum(jnp.stack(distances), axis=0)
