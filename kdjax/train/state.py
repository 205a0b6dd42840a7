"""What a train step changes, what it is given, and what it returns beside the state."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.struct
import jax

from kdjax.data.stream import Batch
from kdjax.models import Variables
from kdjax.train.metrics import Metrics

TrainLogits = tuple[jax.Array, jax.Array]
"""A batch's positions in the training set and the student's logits on it, in training
mode: what is recorded for a stage that replays them."""


class Gradients(NamedTuple):
    """What a micro-batch adds to the step: averaged over the micro-batches.

    Attributes:
        params: gradients of the total loss, of what the phase trains.
        metrics: scalars: the total 'loss', every raw term by name, and 'accuracy/ROLE'
            of every trained network.
    """

    params: dict[str, Any]
    metrics: Metrics


@flax.struct.dataclass
class StepInputs:
    """What one micro-batch of a step is computed from, besides the state.

    Attributes:
        batch: images, with all views of each, labels and positions; blended ones have
            labels `[batch, classes]`.
        targets: every teacher's targets on this batch, by stage.
        recorded: logits that teachers had at this step of their own training, by stage;
            of those that the method replays.
        frozen: variables of the teachers that run in the step, by stage.
    """

    batch: Batch
    targets: Mapping[str, Any]
    recorded: Mapping[str, jax.Array] = flax.struct.field(default_factory=dict)
    frozen: Mapping[str, Variables] = flax.struct.field(default_factory=dict)


@flax.struct.dataclass
class Average:
    """A moving average of a phase's networks: what is evaluated and saved.

    Attributes:
        params: as the state's.
        batch_stats: as the state's.
        count: number of steps in it.
    """

    params: dict[str, Any]
    batch_stats: dict[str, Any]
    count: jax.Array


@flax.struct.dataclass
class TrainState:
    """Everything that a step changes.

    Attributes:
        step: number of steps done.
        params: of trained roles and adapters, by name, without tied ones.
        batch_stats: of trained roles and adapters, by name.
        opt_state: the optimiser's, of what the phase trains.
        memory: the method's.
        phase: the number of the phase.
    """

    step: jax.Array
    params: dict[str, Any]
    batch_stats: dict[str, Any]
    opt_state: Any
    memory: Any
    phase: jax.Array


@flax.struct.dataclass
class AveragedState(TrainState):
    """The state of a recipe with `ema`: others' checkpoints stay as they were.

    Attributes:
        average: of the networks.
    """

    average: Average
