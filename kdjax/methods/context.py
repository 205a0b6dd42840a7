"""What a method computes its terms and its initial memory from."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax

from kdjax.models import Outputs, Variables

Call = Callable[[jax.Array], Outputs]
"""Runs a network on images."""
Targets = Any
"""A tree of arrays, returned by `Method.teacher_targets`; each method has its own."""
Memory = Any
"""A tree of arrays, returned by `Method.init_memory`; each method has its own."""
Adapted = Any
"""A tree of arrays, returned by an adapter; each adapter has its own."""


@dataclasses.dataclass(frozen=True)
class Context:
    """What a method computes its terms from: a batch and every network's outputs.

    If the method makes further views, a batch has `num_views` consecutive rows for
    every image, of which the first is the image itself.

    Attributes:
        labels: `[batch]` integers; with mixup, class probabilities
            `[batch, classes]`.
        index: `[batch]` positions in the training set.
        outputs: by trained role.
        targets: by teacher: what the method's `teacher_targets` makes of its outputs.
        recorded: by teacher: its training-mode logits at this step of its own
            training; only for a method that `replays` a network.
        adapted: the adapters' outputs, by adapter.
        step: the number of the step in the stage.
        key: the step's random key.
        phase: the number of the phase.
        memory: the method's memory before the step.
        label_smoothing: from the recipe; `label_cross_entropy` applies it.
        images: `[batch, height, width, channels]`, normalised.
        call_role: by role: runs the trained network on other images in training mode;
            its BatchNorm running statistics are not updated.
        call_teacher: by teacher: runs the frozen network on other images in evaluation
            mode; only for methods that set `call_teachers`.
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
class MemoryInit:
    """What a method makes its initial memory from, before the first step.

    Attributes:
        key: the random key of this replica's memory.
        labels: `[N]`, of the training set.
        num_classes: the number of classes.
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
