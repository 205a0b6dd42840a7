"""SimKD: the student's features are classified by the teacher's classifier."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar

import jax

from kdjax import losses
from kdjax.methods.base import Context, Method, Path, Phase, Term, only
from kdjax.methods.ranges import Count
from kdjax.models import Outputs, Variables, simkd
from kdjax.runtime.errors import UserError


def _trains(path: Path) -> bool:
    return path[:2] != ("student", "head")


@dataclasses.dataclass(frozen=True)
class SimKD(Method):
    """The reused teacher classifier (Chen et al., 2022): beta MSE, and no labels.

    The stage ends in another network than its model: the model's trunk, a projector to
    the teacher's width, and the teacher's classifier, which is not trained
    (`simkd-2:MODEL:TEACHER` in `kdjax.models`). That network is evaluated and saved,
    and teaches like any other.

    For which maps these are, see `kdjax.models.simkd`. Deviations: the published code
    pools a student's map that is larger than the teacher's before the projector; here
    it is pooled after it, for the loss alone.

    Attributes:
        beta: weight of the mean squared difference of the last maps.
        factor: how many times narrower than the teacher's map the projector's first two
            convolutions are.
    """

    num_teachers: ClassVar[int | None] = 1
    beta: float = 1.0
    factor: Count = 2

    def network(self, student: str, teachers: Sequence[str]) -> str:
        """Returns the student's trunk with the teacher's classifier."""
        if len(teachers) != 1:
            raise UserError(f"simkd: it has one teacher, not {len(teachers)}")
        return simkd.name_of(self.factor, student, teachers[0])

    def phases(self) -> tuple[Phase, ...]:
        """Returns the only phase, which does not train the classifier."""
        return (Phase(trains=_trains),)

    def teacher_targets(self, outputs: Outputs) -> jax.Array:
        """Returns the last feature map."""
        return simkd.last_map(outputs)

    def initial(
        self, variables: dict[str, Variables], frozen: Mapping[str, Variables]
    ) -> dict[str, Variables]:
        """Returns the student with the teacher's classifier."""
        _, teacher = only(frozen)
        student = variables["student"]
        params = {**student["params"], "head": teacher["params"]["head"]}
        return {**variables, "student": {**student, "params": params}}

    def terms(self, context: Context) -> dict[str, Term]:
        """Returns the distance of the last maps; the labels are not used."""
        teacher, target = only(context.targets)
        own = simkd.last_map(context.outputs["student"])
        loss = losses.feature_mse(*losses.match_size(own, target))
        return {f"simkd/{teacher}": Term(loss, self.beta)}
