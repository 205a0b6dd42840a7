"""What a method is: which networks it trains, what it reads, and its loss terms.

Everything that a new method needs can be imported from here: `Method`, `Context`
(its inputs) and `Term` (its outputs), and the functions beside them.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self, TypeVar

import flax.linen as nn
import jax

from kdjax.methods import ranges
from kdjax.methods.context import Adapted, Call, Context, Memory, MemoryInit, Targets
from kdjax.methods.terms import (
    Term,
    Weight,
    cross_entropy,
    label_cross_entropy,
    weighted_sum,
)
from kdjax.models import Outputs, Variables

__all__ = [
    "Adapted",
    "Call",
    "Context",
    "Memory",
    "MemoryInit",
    "Method",
    "Path",
    "Phase",
    "Targets",
    "Term",
    "Weight",
    "cross_entropy",
    "label_cross_entropy",
    "only",
    "weighted_sum",
]

T = TypeVar("T")
Path = tuple[str, ...]
"""Of a parameter: role or adapter, then the layers, then its name."""


@dataclasses.dataclass(frozen=True)
class Phase:
    """A part of a stage, with an optimiser state of its own.

    Attributes:
        recipe: settings that differ from the stage's recipe, such as 'epochs'.
        trains: returns whether the parameter at a path is trained; the path starts with
            the role or adapter. Layers that are not trained keep their BatchNorm
            statistics as well.
        trunk: whether to train only those layers of the networks that their stages
            (features 'stage1', 'stage2', ...) are computed from: not the classifier.
    """

    recipe: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    trains: Callable[[Path], bool] = lambda path: True
    trunk: bool = False


@dataclasses.dataclass(frozen=True)
class Method:
    """How a stage learns. Its hyper-parameters are fields with the paper's defaults.

    A new method is a subclass in a file of this package and a row of `METHODS`. It
    overrides what differs from a student that learns from labels alone, most often
    `distances`. The annotation of a field declares its valid values (see `ranges`).
    """

    NAME: ClassVar[str] = "supervised"
    """The key in `METHODS`; by default the class's name in lower case."""
    VERSION: ClassVar[int] = 1
    """Raised when the method's numbers change; a part of fingerprints."""
    ADDED: ClassVar[tuple[str, ...]] = ()
    """Fields added after a method's first version: they are hashed only if they differ
    from the default, so that stages trained by earlier versions are found again."""
    AS_PART: ClassVar[Mapping[str, Any]] = {}
    """Defaults that differ when the method is added to another one, as in 'crd+kd'."""
    num_teachers: ClassVar[int | None] = 0
    """The number of teachers; None: one or more."""
    num_views: ClassVar[int] = 1
    """How many views `make_views` makes of an image; with several, no bank is used."""
    call_teachers: ClassVar[bool] = False
    """Whether it runs its teachers itself on other images; then no bank is used."""
    reads_labels: ClassVar[bool] = False
    """Whether it reads labels by other means than `cross_entropy` and
    `label_cross_entropy`: then it cannot be used with mixup, where an image has two."""

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        if "NAME" not in vars(cls):
            cls.NAME = cls.__name__.lower()

    def __post_init__(self) -> None:
        """Checks the fields against their declared ranges.

        Raises:
            UserError: a value is out of range.
        """
        ranges.check(self.NAME, self)

    @property
    def replays(self) -> str | None:
        """The model whose recorded training it uses in place of a trained network.

        A recording holds the training-mode logits of a network that learned alone, at
        every step; here those of the method's teacher. None: it uses no recording.
        """
        return None

    def network(self, student: str, teachers: Sequence[str]) -> str:
        """Returns the name of the network that the stage trains as its student.

        It is the role 'student': it is evaluated, saved, and teaches later stages.

        Args:
            student: the stage's model.
            teachers: the teachers' networks.
        """
        del teachers
        return student

    def roles(self, student: str) -> dict[str, str]:
        """Returns the trained networks: model names by role, 'student' first.

        Args:
            student: the name of the role's network, as `network` returns it.
        """
        return {"student": student}

    def init_indices(self, init_index: int) -> dict[str, int]:
        """Returns the number that selects a role's initial weights, by role.

        Networks of the same model and seed start from the same weights unless it
        differs. Roles that are not in the result have 0.

        Args:
            init_index: the stage's setting.
        """
        return {"student": init_index}

    def fit(
        self, outputs: Mapping[str, Outputs], teachers: Mapping[str, Outputs]
    ) -> Self:
        """Returns the method with the options that depend on the networks filled in.

        For example, a level `stage*` means every stage that student and teacher have
        in common, and is replaced by their names. The train step calls this itself;
        training loops of one's own call it once before they use the method.

        Args:
            outputs: the trained networks' outputs, or their shapes, by role.
            teachers: the frozen teachers' outputs, or their shapes, by name.

        Raises:
            UserError: the networks have no such level in common.
        """
        del outputs, teachers
        return self

    def phases(self) -> tuple[Phase, ...]:
        """Returns the phases of the stage, in their order."""
        return (Phase(),)

    def make_views(self, images: jax.Array) -> jax.Array:
        """Returns `[views * batch, ...]`: the views of an image in consecutive rows.

        The first view of an image is the image itself.

        Args:
            images: `[batch, height, width, channels]`.
        """
        return images

    def teacher_targets(self, outputs: Outputs) -> Targets:
        """Returns what the terms use of a teacher's outputs: the bank stores only this.

        Args:
            outputs: of one teacher.
        """
        del outputs
        return ()

    def adapters(
        self, outputs: Mapping[str, Outputs], targets: Mapping[str, Targets]
    ) -> dict[str, nn.Module]:
        """Returns further trained modules, each `(outputs, targets, train) -> Adapted`.

        Such as FitNet's regressor. Their parameters are optimised, sharded and saved
        like those of the roles, under the adapters' names ('method/teacher').

        Args:
            outputs: shapes of the roles' outputs.
            targets: shapes of the teachers' targets, by teacher.
        """
        del outputs, targets
        return {}

    def initial(
        self, variables: dict[str, Variables], frozen: Mapping[str, Variables]
    ) -> dict[str, Variables]:
        """Returns the trained networks' initial variables, taken from the teachers.

        By default they stay as they were initialised.

        Args:
            variables: of the trained networks, by role.
            frozen: of the teachers, by name.
        """
        del frozen
        return variables

    def ties(self, params: Mapping[str, Mapping]) -> dict[Path, Path]:
        """Returns the parameters that one role shares with another, the owner.

        They are stored, optimised and counted once, under the owner.

        Args:
            params: the roles' parameters, or their shapes, by role.

        Returns:
            The owner's path by the path of the parameter that is taken from it.
        """
        del params
        return {}

    def init_memory(self, init: MemoryInit) -> Memory:
        """Returns the initial memory: arrays that are not learned by gradient.

        They are part of the train state: sharded, saved and restored with it.

        Args:
            init: what the memory can be made from.
        """
        del init
        return {}

    def terms(self, context: Context) -> dict[str, Term]:
        """Returns the terms of the loss by name, such as 'kd/teacher'.

        By default the student's cross-entropy and `distances`. The step adds them up in
        this order, on which floating-point sums depend.

        Args:
            context: the batch and the networks' outputs.
        """
        return {"ce/student": self.label_term(context), **self.distances(context)}

    def label_term(self, context: Context) -> Term:
        """Returns the student's term with the labels."""
        return Term(cross_entropy(context, "student"))

    def distances(self, context: Context) -> dict[str, Term]:
        """Returns the student's terms with its teachers, such as 'kd/teacher'."""
        del context
        return {}

    def terms_and_memory(self, context: Context) -> tuple[dict[str, Term], Memory]:
        """Returns the terms, and the memory after the batch.

        A method whose memory changes overrides this; all others override `terms`.

        Args:
            context: the batch and the networks' outputs.
        """
        return self.terms(context), context.memory


def only(mapping: Mapping[str, T]) -> tuple[str, T]:
    """Returns the name and the value of a mapping's only entry."""
    ((name, value),) = mapping.items()
    return name, value
