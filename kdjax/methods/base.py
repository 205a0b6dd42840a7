"""What a method is: which networks it trains, what it reads, and its loss terms."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Self, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

from kdjax import losses
from kdjax.methods import ranges
from kdjax.models import Outputs, Variables

T = TypeVar("T")
Path = tuple[str, ...]
"""Of a parameter: role or adapter, then the layers, then its name."""
Weight = float | Callable[[jax.Array], jax.Array]
"""A number, or a function of the step."""
Call = Callable[[jax.Array], Outputs]
"""Runs a network on images."""
Targets = Any
"""What `Method.teacher_targets` returns: a tree of arrays; its form is the method's."""
Memory = Any
"""What `Method.init_memory` returns: a tree of arrays; its form is the method's."""
Adapted = Any
"""What an adapter returns: a tree of arrays; its form is the adapter's."""


class Term(NamedTuple):
    """One term of the loss.

    Attributes:
        value: the raw loss, `[batch]` or a scalar; the step logs and adds its mean.
        weight: a number, or a schedule: a function of the step.
        mask: a scalar or `[batch]` that multiplies `value` in the sum, but not in the
            log: where guides are dropped at random, the log still shows how far the
            student is from each.
    """

    value: jax.Array
    weight: Weight = 1.0
    mask: jax.Array | None = None


def weighted_sum(
    terms: Mapping[str, Term], step: jax.Array, *, dtype: DTypeLike = jnp.float32
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the loss that a step descends, and the raw mean of every term.

    `loss = sum_i weight_i(step) * mean(value_i * mask_i)`

    The train step's own sum; for methods in training loops of one's own, too.

    Args:
        terms: by name, what `Method.terms` returns.
        step: the number of the step, for weights that are schedules.
        dtype: what the sum starts in; terms may raise it.

    Returns:
        A scalar, and scalars by the terms' names: unweighted, without the masks.
    """
    # Terms are added in their order: another one would round otherwise.
    means, loss = {}, jnp.zeros((), dtype)
    for name, term in terms.items():
        means[name] = jnp.mean(term.value)
        weight = term.weight(step) if callable(term.weight) else term.weight
        added = means[name]
        if term.mask is not None:
            added = jnp.mean(term.value * term.mask)
        loss += weight * added
    return loss, means


@dataclasses.dataclass(frozen=True)
class Phase:
    """A part of a stage, with an optimiser state of its own.

    Attributes:
        recipe: what differs from the stage's recipe, such as 'epochs'.
        trains: whether a parameter is trained, by its path: role or adapter first. What
            is not trained keeps its BatchNorm statistics as well.
        trunk: whether of the networks only that is trained which their stages (features
            'stage1', 'stage2', ...) are computed from: not the classifier.
    """

    recipe: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    trains: Callable[[Path], bool] = lambda path: True
    trunk: bool = False


@dataclasses.dataclass(frozen=True)
class MemoryInit:
    """What a method's memory is made of, before the first step.

    Attributes:
        key: the replica's, for this purpose.
        labels: `[N]` of the training set.
        num_classes: the data set's.
        outputs: shapes of the roles' outputs, by role.
        targets: shapes of the teachers' targets, by teacher.
        models: names of the teachers' networks, by teacher.
        frozen: variables of the teachers.
    """

    key: jax.Array
    labels: jax.Array
    num_classes: int
    outputs: Mapping[str, Outputs]
    targets: Mapping[str, Targets]
    models: Mapping[str, str]
    frozen: Mapping[str, Variables]


@dataclasses.dataclass(frozen=True)
class Context:
    """What a method's terms are made of: one batch and every network's outputs.

    Where a method makes further views, a batch has `num_views` rows for every image,
    one after the other, the image itself first.

    Attributes:
        labels: `[batch]` integers; of images that mixup has blended the classes'
            shares, `[batch, classes]`.
        index: `[batch]` positions in the training set.
        outputs: by trained role.
        targets: by teacher: the method's `teacher_targets` of its outputs.
        recorded: by teacher: its training-mode logits at this step of its own
            training; of those that the method `replays`.
        adapted: by adapter: its outputs.
        step: the number of the step in the stage.
        key: the step's random key.
        phase: the number of the phase.
        memory: the method's, before the step.
        label_smoothing: the recipe's; `label_cross_entropy` applies it.
        images: `[batch, height, width, channels]`, normalised.
        call_role: runs a trained network on other images, in training mode; running
            statistics do not move. By role.
        call_teacher: runs a frozen network on other images, in evaluation mode. By
            teacher; of methods that `call_teachers`.
    """

    labels: jax.Array
    index: jax.Array
    outputs: Mapping[str, Outputs]
    targets: Mapping[str, Targets]
    recorded: Mapping[str, jax.Array]
    adapted: Mapping[str, Adapted]
    step: jax.Array
    key: jax.Array
    phase: int = 0
    memory: Memory = None
    label_smoothing: float = 0.0
    images: jax.Array | None = None
    call_role: Mapping[str, Call] = dataclasses.field(default_factory=dict)
    call_teacher: Mapping[str, Call] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Method:
    """How a stage learns. Hyper-parameters are fields, the paper's values defaults.

    A new method is a subclass in a file of this package and a row of `METHODS`;
    it overrides what differs from a student that learns from labels alone, most often
    `distances`. Which values a field may take stands in its annotation (`ranges`).
    """

    NAME: ClassVar[str] = "supervised"
    """The key in `METHODS`; a subclass without one has its class's in lower case."""
    VERSION: ClassVar[int] = 1
    """Raised when the method's numbers change; goes into fingerprints."""
    ADDED: ClassVar[tuple[str, ...]] = ()
    """Fields that came after a method's first version: hashed only where they are not
    the default, so that the stages of earlier versions are found again."""
    AS_PART: ClassVar[Mapping[str, Any]] = {}
    """Defaults that are others where the method is added to another one's terms."""
    num_teachers: ClassVar[int | None] = 0
    """How many teachers it has; None: one or more."""
    num_views: ClassVar[int] = 1
    """How many images `make_views` makes of each; more than one bypass the bank."""
    call_teachers: ClassVar[bool] = False
    """Whether it runs teachers itself, on other images: they bypass the bank."""
    reads_labels: ClassVar[bool] = False
    """Whether it reads labels otherwise than by `cross_entropy` and
    `label_cross_entropy`: then it cannot learn from mixup's images, which have two."""

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
        """Which network's path it wants its teachers' recordings for: a model's name.

        A recording holds a network's training-mode logits while it learned alone.
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

    def fit(
        self, outputs: Mapping[str, Outputs], teachers: Mapping[str, Outputs]
    ) -> Self:
        """Returns the method with all that depends on the networks filled in.

        A level `stage*` stands for every stage that student and teacher have: the names
        take its place. The train step does this itself; loops of one's own call it once
        before they use a method whose options were left open.

        Args:
            outputs: the trained networks' outputs, or their shapes, by role.
            teachers: the frozen teachers', by name.

        Raises:
            UserError: the networks have no such level in common.
        """
        del outputs, teachers
        return self

    def phases(self) -> tuple[Phase, ...]:
        """Returns the parts of the stage, one after the other."""
        return (Phase(),)

    def make_views(self, images: jax.Array) -> jax.Array:
        """Returns all views, `[views * batch, ...]`, those of an image together.

        The first view of an image is the image itself.
        """
        return images

    def teacher_targets(self, outputs: Outputs) -> Targets:
        """Returns what the terms use of a teacher's outputs: all a bank need hold."""
        del outputs
        return ()

    def adapters(
        self, outputs: Mapping[str, Outputs], targets: Mapping[str, Targets]
    ) -> dict[str, nn.Module]:
        """Returns further trained modules, each `(outputs, targets, train) -> Adapted`.

        Their parameters are optimised, sharded and saved with the roles', under
        their names ('method/teacher').

        Args:
            outputs: shapes of the roles' outputs.
            targets: shapes of the teachers' targets, by teacher.
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

    def init_memory(self, init: MemoryInit) -> Memory:
        """Returns the memory: a tree of arrays that is not learned by gradient.

        It is part of the state: sharded, saved and resumed with it.
        """
        del init
        return {}

    def terms(self, context: Context) -> dict[str, Term]:
        """Returns the terms of the loss by name ('what/whom').

        Here the student's cross-entropy and `distances`. The order counts: by it the
        step adds them up, and floating-point sums depend on their order.
        """
        return {"ce/student": self.label_term(context), **self.distances(context)}

    def label_term(self, context: Context) -> Term:
        """Returns what the student learns from the labels."""
        return Term(cross_entropy(context, "student"))

    def distances(self, context: Context) -> dict[str, Term]:
        """Returns what the student learns from its teachers, by name ('what/whom')."""
        del context
        return {}

    def terms_and_memory(self, context: Context) -> tuple[dict[str, Term], Memory]:
        """Returns the terms and the memory after the batch.

        To be overridden where the memory changes; `terms` alone where it does not.
        """
        return self.terms(context), context.memory


def cross_entropy(context: Context, role: str) -> jax.Array:
    """Returns a role's cross-entropy with the labels, `[batch]`.

    Args:
        context: of the step; its label smoothing applies.
        role: a trained network.
    """
    return label_cross_entropy(context, context.outputs[role].logits)


def label_cross_entropy(context: Context, logits: jax.Array) -> jax.Array:
    """Returns the cross-entropy of any logits with the labels, `[batch]`.

    With blended labels it is `l CE(y_i) + (1 - l) CE(y_j)`.

    Args:
        context: of the step; its label smoothing applies.
        logits: `[batch, classes]`.
    """
    if context.labels.ndim == 2:
        targets = optax.smooth_labels(context.labels, context.label_smoothing)
        logits = logits.astype(jnp.promote_types(logits.dtype, targets.dtype))
        return optax.losses.softmax_cross_entropy(logits, targets)
    return losses.cross_entropy(
        logits, context.labels, label_smoothing=context.label_smoothing
    )


def only(mapping: Mapping[str, T]) -> tuple[str, T]:
    """Returns name and value of a mapping's single entry."""
    ((name, value),) = mapping.items()
    return name, value
