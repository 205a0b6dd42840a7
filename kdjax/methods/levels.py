"""The named features of a network, its levels, and the methods that compare them.

A level is the name of a feature, or `stage*`: every stage that student and teacher have
in common; for a method with one level, the last of these. `Method.fit` replaces
`stage*` by the names.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp

from kdjax import losses
from kdjax.methods.base import Context, Path, Phase, Term, only
from kdjax.methods.comparison import Comparison
from kdjax.methods.ranges import Levels, TeacherLevels
from kdjax.models import Outputs
from kdjax.runtime.errors import UserError, unknown

Maps = Mapping[str, jax.Array]
"""Feature maps, or values computed from them, by the student's level."""
_MOST = 100  # the largest number of stages of a network


def _hint(*networks: Outputs) -> str:
    """Returns a hint on how to name the levels of one's own networks.

    It is empty for the package's networks, all of which have the feature 'stem'.
    """
    if all("stem" in outputs.features for outputs in networks):
        return ""
    return (
        " (name the levels of your own network by student_levels= or teacher_levels=, "
        "in Python by levels=)"
    )


def feature(outputs: Outputs, name: str) -> jax.Array:
    """Returns a named feature.

    Raises:
        UserError: the network has none of that name.
    """
    if name in outputs.features:
        return outputs.features[name]
    if "*" in name and outputs.features:
        raise UserError(
            f"level {name!r} is named by Method.fit, once the networks are known"
        )
    error = unknown("feature", name, sorted(outputs.features))
    raise UserError(f"{error}{_hint(outputs)}")


def feature_map(outputs: Outputs, name: str) -> jax.Array:
    """Returns a feature by name; a vector such as 'pooled' as a map of 1x1."""
    x = feature(outputs, name)
    return x[:, None, None] if x.ndim == 2 else x


def feature_maps(outputs: Outputs, levels: tuple[str, ...]) -> dict[str, jax.Array]:
    """Returns some features by name; vectors as maps of 1x1."""
    return {level: feature_map(outputs, level) for level in levels}


def total(values: Iterable[jax.Array]) -> jax.Array:
    """Returns the sum over the levels, `[batch]`."""
    return jnp.sum(jnp.stack(list(values)), axis=0)


def shared_stages(name: str, *networks: tuple[Sequence[str], Outputs]) -> list[str]:
    """Returns what the `*` of some levels stands for: '1', '2', ...

    Args:
        name: of the method, for errors.
        *networks: the levels that a network has to have, and the network.

    Raises:
        UserError: the networks share no stage.
    """

    def has(outputs: Outputs, level: str, number: str) -> bool:
        return "*" not in level or level.replace("*", number) in outputs.features

    numbers = [
        number
        for number in map(str, range(1, _MOST))
        if all(has(outputs, level, number) for ls, outputs in networks for level in ls)
    ]
    if not numbers:
        wanted = " and ".join(", ".join(levels) for levels, _ in networks)
        known = "; ".join(", ".join(outputs.features) for _, outputs in networks)
        raise UserError(
            f"{name}: the networks have no level {wanted} in common; they have "
            f"{known or 'none'}{_hint(*(outputs for _, outputs in networks))}"
        )
    return numbers


def expand(levels: Sequence[str], numbers: Sequence[str]) -> tuple[str, ...]:
    """Returns levels with those that have a `*` repeated, once for every number."""
    return tuple(
        level.replace("*", number)
        for level in levels
        for number in (numbers if "*" in level else numbers[:1])
    )


@dataclasses.dataclass(frozen=True)
class OneLevel(Comparison):
    """Compares one feature.

    Attributes:
        level: the feature's name; `stage*` is the last stage that both networks have.
        teacher_level: its name in the teacher if it differs; empty: the same.
    """

    ADDED: ClassVar[tuple[str, ...]] = ("teacher_level",)
    level: str = "stage*"
    teacher_level: str = dataclasses.field(default="", kw_only=True)

    def fit(
        self, outputs: Mapping[str, Outputs], teachers: Mapping[str, Outputs]
    ) -> Self:
        """Returns the method with its level by name."""
        if "*" not in self.level + self.teacher_level:
            return self
        theirs = self.teacher_level or self.level
        last = shared_stages(
            self.NAME,
            ([self.level], outputs["student"]),
            ([theirs], only(teachers)[1]),
        )[-1]
        return dataclasses.replace(
            self,
            level=self.level.replace("*", last),
            teacher_level=self.teacher_level.replace("*", last),
        )

    def teacher_targets(self, outputs: Outputs) -> jax.Array:
        """Returns the feature."""
        return feature(outputs, self.teacher_level or self.level)

    def student_features(self, outputs: Outputs) -> jax.Array:
        """Returns the feature."""
        return feature(outputs, self.level)


@dataclasses.dataclass(frozen=True)
class SeveralLevels(Comparison):
    """Compares the feature maps of several levels.

    Attributes:
        levels: the features' names, from the first to the deepest; `stage*` means all
            stages that both networks have.
        teacher_levels: their names in the teacher, in the same order, if they differ;
            empty: the same.
    """

    ADDED: ClassVar[tuple[str, ...]] = ("teacher_levels",)
    levels: Levels = ("stage*",)
    teacher_levels: TeacherLevels = dataclasses.field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_pairs(self.NAME, self.levels, self.teacher_levels)

    def fit(
        self, outputs: Mapping[str, Outputs], teachers: Mapping[str, Outputs]
    ) -> Self:
        """Returns the method with its levels by name."""
        if not any("*" in level for level in (*self.levels, *self.teacher_levels)):
            return self
        numbers = shared_stages(
            self.NAME,
            (self.levels, outputs["student"]),
            (self.their_levels, only(teachers)[1]),
        )
        return dataclasses.replace(
            self,
            levels=expand(self.levels, numbers),
            teacher_levels=expand(self.teacher_levels, numbers),
        )

    @property
    def their_levels(self) -> tuple[str, ...]:
        """The teacher's levels, in the order of the student's."""
        return self.teacher_levels or self.levels

    def read(self, outputs: Outputs, level: str) -> jax.Array:
        """Returns what is compared of one feature: its map."""
        return feature_map(outputs, level)

    def read_all(self, outputs: Outputs, levels: tuple[str, ...]) -> dict[str, Any]:
        """Returns what is compared of some features, by the student's levels."""
        return {
            own: self.read(outputs, level)
            for own, level in zip(self.levels, levels, strict=True)
        }

    def teacher_targets(self, outputs: Outputs) -> dict[str, jax.Array]:
        """Returns what is compared of the teacher, by the student's levels."""
        return self.read_all(outputs, self.their_levels)

    def student_features(self, outputs: Outputs) -> dict[str, jax.Array]:
        """Returns what is compared of the student, by level."""
        return self.read_all(outputs, self.levels)


def check_pairs(
    name: str, levels: tuple[str, ...], teacher_levels: tuple[str, ...]
) -> None:
    """Raises UserError unless every level of the student has one of the teacher."""
    if not teacher_levels or any("*" in level for level in (*levels, *teacher_levels)):
        return
    if len(levels) != len(teacher_levels):
        raise UserError(
            f"{name}: {len(levels)} levels ({', '.join(levels)}), but "
            f"{len(teacher_levels)} teacher_levels ({', '.join(teacher_levels)})"
        )
    if len(set(levels)) < len(levels):
        raise UserError(f"{name}: levels= names a level twice: {', '.join(levels)}")


class InitialisedLevels(SeveralLevels):
    """Trains the layers below the classifier by the distance, then all by the labels.

    The distance initialises these layers in the first phase; the second phase, with the
    stage's recipe, does not use it.

    Attributes:
        init_epochs: the epochs of the first phase, before the recipe's.
    """

    init_epochs: int

    def init_phase(self) -> Phase:
        """Returns the first phase: it trains the student's trunk and the adapters."""

        def trains(path: Path) -> bool:
            return path[0] == "student" or path[0].startswith(f"{self.NAME}/")

        recipe = {"epochs": self.init_epochs, "milestones": ()}
        return Phase(recipe, trains, trunk=True)

    def terms(self, context: Context) -> dict[str, Term]:
        """Returns the phase's one term."""
        if context.phase:
            return {"ce/student": self.label_term(context)}
        return self.distances(context)


def attention_map(outputs: Outputs, level: str, power: float) -> jax.Array:
    """Returns the attention map of a feature, `[batch, height, width]`."""
    x = feature(outputs, level)
    return losses.attention_map(x, power=power).reshape(x.shape[:3])


def attention_distance(student: Maps, teacher: Maps, norm: str) -> jax.Array:
    """Returns the attention term, summed over the levels, `[batch]`.

    `losses.attention_transfer` is `attention_map` of both networks and then
    `attention_distance`. Here they are called separately, because the bank stores the
    teacher's attention maps: one number per position, not one per channel.

    Args:
        student: attention maps, `[batch, height, width]` by level.
        teacher: attention maps; where the sizes differ, see `losses.match_attention`.
        norm: 'mean_square' or 'l2'.
    """
    if not teacher:
        raise UserError("attention transfer needs at least one level")
    return total(
        losses.attention_distance(
            *losses.match_attention(student[level], teacher[level]), norm=norm
        )
        for level in teacher
    )
