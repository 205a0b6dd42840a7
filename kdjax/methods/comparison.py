"""The base of methods that compare student and teacher by one weighted distance."""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax

from kdjax.methods.base import Adapted, Context, Method, Targets, Term, Weight, only
from kdjax.models import Outputs


class Comparison(Method):
    """The labels and one weighted distance: CE + beta d(student, teacher).

    `teacher_targets` is read of the one teacher, `student_features` of the student: the
    same, unless their levels differ. Where the two do not fit each other, an adapter
    stands between: a trained module that takes the student's outputs and returns what
    is compared instead.
    """

    num_teachers: ClassVar[int | None] = 1
    beta: float

    def compare(self, context: Context, student: Adapted, target: Targets) -> jax.Array:
        """Returns the distance, `[batch]` or a scalar.

        Every subclass has one, unless it overrides `distances` (RKD has two terms).

        Args:
            context: of the step, for what a distance takes beside the two.
            student: the adapter's outputs; without one, `student_features`.
            target: `teacher_targets` of the teacher.
        """
        raise NotImplementedError

    def student_features(self, outputs: Outputs) -> Targets:
        """Returns of the student what `teacher_targets` returns of the teacher."""
        return self.teacher_targets(outputs)

    def schedule(self) -> Weight:
        """Returns the distance's weight: beta, unless it changes with the step."""
        return self.beta

    def adapter(self, target: Targets) -> nn.Module | None:
        """Returns the module between student and comparison; None: there is none.

        Args:
            target: shapes of `teacher_targets` of the teacher.
        """
        del target
        return None

    def adapters(
        self, outputs: Mapping[str, Outputs], targets: Mapping[str, Targets]
    ) -> dict[str, nn.Module]:
        """Returns the one adapter, under the name of the term that it serves."""
        teacher, target = only(targets)
        adapter = self.adapter(target)
        return {} if adapter is None else {f"{self.NAME}/{teacher}": adapter}

    def distances(self, context: Context) -> dict[str, Term]:
        """Returns the distance."""
        teacher, target = only(context.targets)
        name = f"{self.NAME}/{teacher}"
        if name in context.adapted:
            student = context.adapted[name]
        else:
            student = self.student_features(context.outputs["student"])
        return {name: Term(self.compare(context, student, target), self.schedule())}
