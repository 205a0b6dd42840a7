"""Activation boundaries: a start for the student's layers, learned first."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
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
from kdjax.methods.connectors import (
    BoundaryConnector,
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

    def teacher_targets(self, outputs: Outputs) -> dict[str, jax.Array]:
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
