"""What a method is: which networks it trains, what it reads, and its loss terms."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax

from kdjax import losses
from kdjax.models import Outputs, Variables

Path = tuple[str, ...]
Weight = float | Callable[[jax.Array], jax.Array]


class Term(NamedTuple):
    """One term of the loss.

    Attributes:
        value: the raw loss, `[batch]` or a scalar; the step logs and adds its mean.
        weight: a number, or a schedule: a function of the step.
        mask: what `value` is multiplied with before it is added, but not where it is
            logged; a scalar or `[batch]`.
    """

    value: jax.Array
    weight: Weight = 1.0
    mask: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class Context:
    """What a method's terms are made of: one batch and what every network said.

    Attributes:
        labels: `[batch]` integers.
        index: `[batch]` positions in the training set.
        outputs: by trained role.
        targets: by teacher: what the method's `read` took from its outputs.
        recorded: by teacher: the logits that it had, in training mode, at this step of
            its own training; of those that the method `replays`.
        adapted: by adapter: what it returned.
        step: the number of the step in the stage.
        key: the step's random key.
    """

    labels: jax.Array
    index: jax.Array
    outputs: Mapping[str, Outputs]
    targets: Mapping[str, Any]
    recorded: Mapping[str, jax.Array]
    adapted: Mapping[str, Any]
    step: jax.Array
    key: jax.Array


@dataclasses.dataclass(frozen=True)
class Method:
    """How a stage learns. Hyper-parameters are fields, the paper's values defaults.

    A new method is a subclass in a file of this package and a row of `METHODS`;
    it overrides what differs from a student that learns from labels alone.
    """

    VERSION: ClassVar[int] = 1
    """Raised when the method's numbers change; goes into fingerprints."""
    num_teachers: ClassVar[int | None] = 0
    """How many teachers it takes; None: one or more."""

    @property
    def replays(self) -> str | None:
        """Which network's path it wants its teachers' recordings for: a model's name.

        A recording is what a network said, in training mode, while it learned alone.
        """
        return None

    def roles(self, student: str) -> dict[str, str]:
        """Returns the trained networks: model names by role, 'student' first."""
        return {"student": student}

    def read(self, outputs: Outputs) -> Any:
        """Returns what the terms use of a teacher's outputs: all a bank need hold."""
        del outputs
        return ()

    def adapters(
        self, outputs: Mapping[str, Outputs], targets: Mapping[str, Any]
    ) -> dict[str, nn.Module]:
        """Returns further trained modules, each `(outputs, targets, train) -> Any`.

        Their parameters are optimised, sharded and saved with the roles', under
        their names ('method/teacher').

        Args:
            outputs: shapes of the roles' outputs.
            targets: shapes of what `read` takes, by teacher.
        """
        del outputs, targets
        return {}

    def initial(
        self, variables: dict[str, Variables], frozen: Mapping[str, Variables]
    ) -> dict[str, Variables]:
        """Returns another start for the trained networks, from the teachers'.

        Args:
            variables: of the trained networks, by role.
            frozen: of the teachers, by name.
        """
        del frozen
        return variables

    def ties(self, params: Mapping[str, Mapping]) -> dict[Path, Path]:
        """Returns parameters that one role takes from another: path to owner's path.

        They are stored, optimised and counted once, under the owner.

        Args:
            params: the roles' parameters, or their shapes, by role.
        """
        del params
        return {}

    def terms(self, context: Context) -> dict[str, Term]:
        """Returns the terms of the loss by name ('what/whom')."""
        return {"ce/student": Term(cross_entropy(context, "student"))}


def cross_entropy(context: Context, role: str) -> jax.Array:
    """Returns a role's cross-entropy with the labels, `[batch]`."""
    return losses.cross_entropy(context.outputs[role].logits, context.labels)


def only(mapping: Mapping[str, Any]) -> tuple[str, Any]:
    """Returns name and value of a mapping's single entry."""
    ((name, value),) = mapping.items()
    return name, value
