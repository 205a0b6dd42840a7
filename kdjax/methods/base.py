"""What a method is: which networks it trains, what it reads, and its loss terms."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax

from kdjax import losses
from kdjax.models import Outputs, Variables

Path = tuple[str, ...]
Weight = float | Callable[[jax.Array], jax.Array]
Call = Callable[[jax.Array], Outputs]


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
class Phase:
    """A part of a stage, with an optimiser state of its own.

    Attributes:
        recipe: what differs from the stage's recipe, such as 'epochs'.
        trains: whether a parameter is trained, by its path: role or adapter first. What
            is not trained keeps its BatchNorm statistics as well.
    """

    recipe: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    trains: Callable[[Path], bool] = lambda path: True


@dataclasses.dataclass(frozen=True)
class MemoryInit:
    """What a method's memory is made of, before the first step.

    Attributes:
        key: the replica's, for this purpose.
        labels: `[N]` of the training set.
        num_classes: the data set's.
        outputs: shapes of the roles' outputs, by role.
        targets: shapes of what `teacher_targets` takes, by teacher.
        models: names of the teachers' networks, by teacher.
        frozen: variables of the teachers.
    """

    key: jax.Array
    labels: jax.Array
    num_classes: int
    outputs: Mapping[str, Outputs]
    targets: Mapping[str, Any]
    models: Mapping[str, str]
    frozen: Mapping[str, Variables]


@dataclasses.dataclass(frozen=True)
class Context:
    """What a method's terms are made of: one batch and what every network said.

    Where a method makes further views, a batch has `num_views` rows for every image,
    one after the other, the image itself first.

    Attributes:
        labels: `[batch]` integers.
        index: `[batch]` positions in the training set.
        outputs: by trained role.
        targets: by teacher: what the method's `teacher_targets` took from its outputs.
        recorded: by teacher: the logits that it had, in training mode, at this step of
            its own training; of those that the method `replays`.
        adapted: by adapter: what it returned.
        step: the number of the step in the stage.
        key: the step's random key.
        phase: the number of the phase.
        memory: the method's, before the step.
        images: `[batch, height, width, channels]`, normalised.
        call_role: runs a trained network on other images, in training mode; running
            statistics do not move. By role.
        call_teacher: runs a frozen network on other images, in evaluation mode. By
            teacher; of methods that `call_teachers`.
    """

    labels: jax.Array
    index: jax.Array
    outputs: Mapping[str, Outputs]
    targets: Mapping[str, Any]
    recorded: Mapping[str, jax.Array]
    adapted: Mapping[str, Any]
    step: jax.Array
    key: jax.Array
    phase: int = 0
    memory: Any = None
    images: jax.Array | None = None
    call_role: Mapping[str, Call] = dataclasses.field(default_factory=dict)
    call_teacher: Mapping[str, Call] = dataclasses.field(default_factory=dict)


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
    num_views: ClassVar[int] = 1
    """How many images `make_views` makes of each; more than one bypass the bank."""
    call_teachers: ClassVar[bool] = False
    """Whether it runs teachers itself, on other images: they bypass the bank."""

    @property
    def replays(self) -> str | None:
        """Which network's path it wants its teachers' recordings for: a model's name.

        A recording is what a network said, in training mode, while it learned alone.
        """
        return None

    def network(self, student: str, teachers: Sequence[str]) -> str:
        """Returns the network that the stage ends in, by its model's name.

        It is the role 'student': what is evaluated, saved, and teaches later stages.

        Args:
            student: the stage's model.
            teachers: the teachers' networks.
        """
        del teachers
        return student

    def roles(self, student: str) -> dict[str, str]:
        """Returns the trained networks: model names by role, 'student' first."""
        return {"student": student}

    def init_indices(self, init_index: int) -> dict[str, int]:
        """Returns what tells starts of equal networks apart, by role; others have 0.

        Args:
            init_index: the stage's.
        """
        return {"student": init_index}

    def phases(self) -> tuple[Phase, ...]:
        """Returns the parts of the stage, one after the other."""
        return (Phase(),)

    def make_views(self, images: jax.Array) -> jax.Array:
        """Returns all views, `[views * batch, ...]`, those of an image together.

        The first view of an image is the image itself.
        """
        return images

    def teacher_targets(self, outputs: Outputs) -> Any:
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
            targets: shapes of what `teacher_targets` takes, by teacher.
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

    def init_memory(self, init: MemoryInit) -> Any:
        """Returns the memory: a tree of arrays that is not learned by gradient.

        It is part of the state: sharded, saved and resumed with it.
        """
        del init
        return {}

    def terms(self, context: Context) -> dict[str, Term]:
        """Returns the terms of the loss by name ('what/whom')."""
        return {"ce/student": Term(cross_entropy(context, "student"))}

    def terms_and_memory(self, context: Context) -> tuple[dict[str, Term], Any]:
        """Returns the terms and the memory after the batch.

        To be overridden where the memory changes; `terms` alone where it does not.
        """
        return self.terms(context), context.memory


def cross_entropy(context: Context, role: str) -> jax.Array:
    """Returns a role's cross-entropy with the labels, `[batch]`."""
    return losses.cross_entropy(context.outputs[role].logits, context.labels)


def only(mapping: Mapping[str, Any]) -> tuple[str, Any]:
    """Returns name and value of a mapping's single entry."""
    ((name, value),) = mapping.items()
    return name, value
