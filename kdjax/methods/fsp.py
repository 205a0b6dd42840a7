"""Flow of solution procedure: matrices between levels, learned first."""

import dataclasses
from typing import ClassVar

import jax

from kdjax import losses
from kdjax.methods.base import (
    Context,
    Method,
    Path,
    Phase,
    Term,
    cross_entropy,
    only,
)
from kdjax.methods.levels import (
    check_levels,
    feature_maps,
    total,
)
from kdjax.models import Outputs
from kdjax.runtime.errors import UserError

# Layers that no feature map depends on.
_BEHIND = ("head", "dense", "last")


def _check_epochs(method: str, epochs: int) -> None:
    if epochs < 1:
        raise UserError(f"{method}: init_epochs {epochs} is not positive")


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

    def teacher_targets(self, outputs: Outputs) -> dict[str, jax.Array]:
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
        own = self.teacher_targets(context.outputs["student"])
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
