"""The base of methods that compare student and teacher by one weighted distance."""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax

from kdjax.methods.base import Adapted, Context, Method, Targets, Term, Weight, only
from kdjax.models import Outputs


class Comparison(Method):
    """The labels and one weighted distance: CE + beta d(student, teacher).

    `teacher_targets` selects what is compared of the teacher's outputs and
    `student_features` of the student's: the same, unless their levels differ. If the
    shapes do not match, an adapter, which is a trained module, maps the student's
    outputs to what is compared.
    """

    num_teachers: ClassVar[int | None] = 1
    beta: float

    def compare(self, context: Context, student: Adapted, target: Targets) -> jax.Array:
        """Returns the distance, `[batch]` or a scalar.

        Every subclass has this, unless it overrides `distances` (RKD has two terms).

        Args:
            context: of the step, for further inputs of the distance.
            student: the adapter's outputs; without one, `student_features`.
            target: `teacher_targets` of the teacher.
        """
        raise NotImplementedError

    def student_features(self, outputs: Outputs) -> Targets:
        """Returns the counterpart of `teacher_targets` for the student."""
        return self.teacher_targets(outputs)

    def schedule(self) -> Weight:
        """Returns the distance's weight: beta, unless it changes with the step."""
        return self.beta

    def adapter(self, target: Targets) -> nn.Module | None:
        """Returns the module that maps the student's outputs; None: there is none.

        Args:
            target: shapes of `teacher_targets` of the teacher.
        """
        del target
        return None

    def adapters(
        self, outputs: Mapping[str, Outputs], targets: Mapping[str, Targets]
    ) -> dict[str, nn.Module]:
        """Returns the adapter under the name of its term."""
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
