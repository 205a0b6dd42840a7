"""Methods that prepare in a first phase: AB, FT and FSP."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax

from kdjax import losses
from kdjax.errors import UserError
from kdjax.methods.base import Context, Method, Path, Phase, Term, cross_entropy, only
from kdjax.methods.connectors import BoundaryConnector, Paraphraser, Translator
from kdjax.methods.features import feature
from kdjax.methods.maps import check_levels, feature_maps, total
from kdjax.models import Outputs

# Layers that no feature map depends on.
_BEHIND = ("head", "dense", "last")


def _check_epochs(method: str, epochs: int) -> None:
    if epochs < 1:
        raise UserError(f"{method}: init_epochs {epochs} is not positive")


class _Boundaries(nn.Module):
    levels: tuple[str, ...]

    @nn.compact
    def __call__(
        self, outputs: Mapping[str, Outputs], targets: Mapping[str, Any], train: bool
    ) -> dict[str, jax.Array]:
        """Returns the student's maps in the teacher's shapes, by level."""
        _, target = only(targets)
        maps = feature_maps(outputs["student"], self.levels)
        return {
            level: BoundaryConnector(target[level].shape[1:], name=level)(
                maps[level], train
            )
            for level in self.levels
        }


@dataclasses.dataclass(frozen=True)
class AB(Method):
    """Activation boundaries (Heo et al., 2019): a start for the student's layers.

    First phase: beta sum_j w_j AB_j moves the student's layers below the classifier,
    and connectors to the teacher's shapes. Second phase: the cross-entropy; 'ab+kd'
    adds Hinton's term, as the paper has it.

    Deviations: see `losses.ab`; beta = 3/1000 and w = 2^(j - n) for level j of n are
    the published code's (RepDistiller). There the first phase keeps the learning rate
    of the start; here, too.

    Attributes:
        beta: the weight.
        margin: of the boundaries.
        levels: the features before the activations.
        init_epochs: of the first phase, before the recipe's.
    """

    num_teachers: ClassVar[int] = 1
    beta: float = 3e-3
    margin: float = 1.0
    levels: tuple[str, ...] = ("stage1_pre", "stage2_pre", "stage3_pre")
    init_epochs: int = 30

    def __post_init__(self) -> None:
        check_levels("ab", self.levels)
        _check_epochs("ab", self.init_epochs)
        if not self.margin > 0:
            raise UserError(f"ab: margin {self.margin} is not positive")

    def read(self, outputs: Outputs) -> dict[str, jax.Array]:
        """Returns the feature maps."""
        return feature_maps(outputs, self.levels)

    def adapters(
        self, outputs: Mapping[str, Outputs], targets: Mapping[str, Any]
    ) -> dict[str, nn.Module]:
        """Returns the connectors."""
        teacher, _ = only(targets)
        return {f"ab/{teacher}": _Boundaries(self.levels)}

    def phases(self) -> tuple[Phase, ...]:
        """Returns the boundaries' phase and the labels'."""

        def lower(path: Path) -> bool:
            student = path[0] == "student" and path[1] not in _BEHIND
            return student or path[0].startswith("ab/")

        first = Phase({"epochs": self.init_epochs, "milestones": ()}, lower)
        return first, Phase(trains=lambda path: not path[0].startswith("ab/"))

    def terms(self, context: Context) -> dict[str, Term]:
        """Returns the phase's term."""
        if context.phase:
            return {"ce/student": Term(cross_entropy(context, "student"))}
        teacher, target = only(context.targets)
        name = f"ab/{teacher}"
        maps = context.adapted[name]
        loss = total(
            losses.ab(maps[level], target[level], margin=self.margin) / 2**i
            for i, level in enumerate(reversed(self.levels))
        )
        return {name: Term(loss, self.beta)}


class _Paraphrase(nn.Module):
    rate: float

    @nn.compact
    def __call__(
        self, outputs: Mapping[str, Outputs], targets: Mapping[str, Any], train: bool
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the teacher's factor and the reconstruction of its map."""
        del outputs, train
        return Paraphraser(self.rate, name="paraphraser")(only(targets)[1])


class _Translate(nn.Module):
    level: str
    channels: int

    @nn.compact
    def __call__(
        self, outputs: Mapping[str, Outputs], targets: Mapping[str, Any], train: bool
    ) -> jax.Array:
        """Returns the student's factor."""
        del targets
        x = feature(outputs["student"], self.level)
        return Translator(self.channels, name="translator")(x, train)


@dataclasses.dataclass(frozen=True)
class FT(Method):
    """Factor transfer (Kim et al., 2018): CE + beta FT between factors of the last map.

    First phase: the paraphraser learns to reconstruct the teacher's map; the student
    rests. Second phase: the paraphraser rests; student and translator learn.

    Deviations: see `losses.factor_transfer`; weight, level and the first phase's epochs
    and learning rate are RepDistiller's for ResNets.

    Attributes:
        beta: the weight.
        level: the feature map.
        rate: how wide the factor is, as a share of the teacher's map.
        init_epochs: of the first phase, before the recipe's.
        init_learning_rate: of the first phase.
    """

    num_teachers: ClassVar[int] = 1
    beta: float = 200.0
    level: str = "stage3"
    rate: float = 0.5
    init_epochs: int = 30
    init_learning_rate: float = 0.01

    def __post_init__(self) -> None:
        _check_epochs("ft", self.init_epochs)
        if not 0 < self.rate <= 1:
            raise UserError(f"ft: rate {self.rate} is outside (0, 1]")

    def read(self, outputs: Outputs) -> jax.Array:
        """Returns the feature map."""
        return feature(outputs, self.level)

    def adapters(
        self, outputs: Mapping[str, Outputs], targets: Mapping[str, Any]
    ) -> dict[str, nn.Module]:
        """Returns paraphraser and translator."""
        teacher, target = only(targets)
        channels = int(target.shape[-1] * self.rate)
        if not channels:
            raise UserError(f"ft: rate {self.rate} leaves no channel of {target.shape}")
        return {
            f"ft/{teacher}/paraphraser": _Paraphrase(self.rate),
            f"ft/{teacher}/translator": _Translate(self.level, channels),
        }

    def phases(self) -> tuple[Phase, ...]:
        """Returns the paraphraser's phase and the student's."""

        def paraphraser(path: Path) -> bool:
            name = path[0]
            return name.startswith("ft/") and name.endswith("/paraphraser")

        recipe = {
            "epochs": self.init_epochs,
            "milestones": (),
            "learning_rate": self.init_learning_rate,
        }
        return (
            Phase(recipe, paraphraser),
            Phase(trains=lambda path: not paraphraser(path)),
        )

    def terms(self, context: Context) -> dict[str, Term]:
        """Returns the phase's terms."""
        teacher, target = only(context.targets)
        name = f"ft/{teacher}"
        factor, reconstruction = context.adapted[f"{name}/paraphraser"]
        if not context.phase:
            loss = losses.feature_mse(reconstruction, target)
            return {f"reconstruction/{teacher}": Term(loss)}
        own = context.adapted[f"{name}/translator"]
        return {
            "ce/student": Term(cross_entropy(context, "student")),
            name: Term(losses.factor_transfer(own, factor), self.beta),
        }


@dataclasses.dataclass(frozen=True)
class FSP(Method):
    """Flow of solution procedure (Yim et al., 2017): a start for the student's layers.

    First phase: beta sum_j FSP_j, between the matrices of consecutive levels, moves the
    student's layers up to the last level. Second phase: the cross-entropy; 'fsp+kd'
    adds Hinton's term.

    Networks of equal widths. Deviations: see `losses.fsp`; RepDistiller's scripts have
    a weight of 50, but its first phase does not use it: beta = 1. Its first phase keeps
    the learning rate of the start; here, too.

    Attributes:
        beta: the weight.
        levels: the features, two or more.
        init_epochs: of the first phase, before the recipe's.
    """

    num_teachers: ClassVar[int] = 1
    beta: float = 1.0
    levels: tuple[str, ...] = ("stem", "stage1", "stage2", "stage3")
    init_epochs: int = 30

    def __post_init__(self) -> None:
        check_levels("fsp", self.levels, least=2)
        _check_epochs("fsp", self.init_epochs)

    def read(self, outputs: Outputs) -> dict[str, jax.Array]:
        """Returns the matrices of consecutive levels, by the second."""
        maps = feature_maps(outputs, self.levels)
        return {
            level: losses.fsp_matrix(maps[before], maps[level])
            for before, level in zip(self.levels, self.levels[1:], strict=False)
        }

    def phases(self) -> tuple[Phase, ...]:
        """Returns the matrices' phase and the labels'."""

        def lower(path: Path) -> bool:
            # The last 'bn' of a Wide ResNet is behind its last level.
            return path[0] == "student" and path[1] not in (*_BEHIND, "bn")

        first = Phase({"epochs": self.init_epochs, "milestones": ()}, lower)
        return first, Phase()

    def terms(self, context: Context) -> dict[str, Term]:
        """Returns the phase's term."""
        if context.phase:
            return {"ce/student": Term(cross_entropy(context, "student"))}
        teacher, target = only(context.targets)
        own = self.read(context.outputs["student"])
        for level, matrix in own.items():
            ours, theirs = matrix.shape[1:], target[level].shape[1:]
            if ours != theirs:
                raise UserError(
                    f"fsp: up to {level} the student's levels are {ours} wide and the "
                    f"teacher's {theirs}; it wants networks of equal widths, such as "
                    "wrn-16-2 taught by wrn-40-2"
                )
        loss = total(losses.fsp(own[level], target[level]) for level in own)
        return {f"fsp/{teacher}": Term(loss, self.beta)}
