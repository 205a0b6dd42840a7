"""The named features of a network, its levels, and the methods that compare them."""

from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp

from kdjax import losses
from kdjax.methods.base import Context, Path, Phase, Term
from kdjax.methods.comparison import Comparison
from kdjax.models import Outputs
from kdjax.runtime.errors import UserError, unknown

Maps = Mapping[str, jax.Array]
"""Feature or attention maps, or what is made of them, by level."""


def feature(outputs: Outputs, name: str) -> jax.Array:
    """Returns a named feature.

    Raises:
        UserError: the network has none of that name.
    """
    if name in outputs.features:
        return outputs.features[name]
    error = unknown("feature", name, sorted(outputs.features))
    # The package's networks all have a stem; others name their levels themselves.
    if "stem" not in outputs.features:
        error = UserError(
            f"{error} (which of one's own network's modules are its levels is said by "
            "student_levels= and teacher_levels=, in Python levels=)"
        )
    raise error


def feature_maps(outputs: Outputs, levels: tuple[str, ...]) -> dict[str, jax.Array]:
    """Returns some features by name; a vector such as 'pooled' as a map of 1x1."""
    features = {level: feature(outputs, level) for level in levels}
    return {
        level: x[:, None, None] if x.ndim == 2 else x for level, x in features.items()
    }


def total(values: Iterable[jax.Array]) -> jax.Array:
    """Returns the sum over the levels, `[batch]`."""
    return jnp.sum(jnp.stack(list(values)), axis=0)


class OneLevel(Comparison):
    """Compares one feature.

    Attributes:
        level: the feature's name.
    """

    level: str

    def teacher_targets(self, outputs: Outputs) -> jax.Array:
        """Returns the feature."""
        return feature(outputs, self.level)


class SeveralLevels(Comparison):
    """Compares the feature maps of several levels.

    Attributes:
        levels: the features' names, from the first to the deepest.
    """

    levels: tuple[str, ...]

    def teacher_targets(self, outputs: Outputs) -> dict[str, jax.Array]:
        """Returns the feature maps, by level."""
        return feature_maps(outputs, self.levels)


class InitialisedLevels(SeveralLevels):
    """Learns the layers below the classifier by the distance first, then from labels.

    The distance gives these layers a start and is gone in the second phase, which is
    the stage's recipe.

    Attributes:
        init_epochs: of the first phase, before the recipe's.
    """

    init_epochs: int

    def init_phase(self) -> Phase:
        """Returns the first phase, which trains what `lower` names."""
        return Phase({"epochs": self.init_epochs, "milestones": ()}, self.lower)

    def lower(self, path: Path) -> bool:
        """Returns whether the first phase trains a parameter: the student's trunk."""
        return path[0] == "student" and path[1] not in ("head", "dense", "last")

    def terms(self, context: Context) -> dict[str, Term]:
        """Returns the phase's one term."""
        if context.phase:
            return {"ce/student": self.label_term(context)}
        return self.distances(context)


def attention_maps(
    outputs: Outputs, levels: tuple[str, ...], power: float
) -> dict[str, jax.Array]:
    """Returns the attention maps of some features, `[batch, height, width]` by name."""
    maps = {}
    for level in levels:
        x = feature(outputs, level)
        flat = losses.attention_map(x, power=power)
        maps[level] = flat.reshape(x.shape[:3])
    return maps


def attention_distance(student: Maps, teacher: Maps, norm: str) -> jax.Array:
    """Returns the attention term, summed over the levels, `[batch]`.

    `losses.attention_transfer` is `attention_map` of both networks and then
    `attention_distance`. Here the two halves are called apart, because the bank stores
    the teacher's attention maps, one number a position instead of one a channel.

    Args:
        student: attention maps, `[batch, height, width]` by level.
        teacher: attention maps; where the sizes differ, see `losses.match_attention`.
        norm: 'mean_square' or 'l2'.
    """
    if not teacher:
        raise UserError("attention transfer wants at least one level")
    return total(
        losses.attention_distance(
            *losses.match_attention(student[level], teacher[level]), norm=norm
        )
        for level in teacher
    )
