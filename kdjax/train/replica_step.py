"""One train step and one evaluation of a replica, as its program runs them.

Straight down: the feed makes a micro-batch, teachers that are not banked run on it, the
step computes gradients and then applies them.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kdjax.data.feed import DispatchInputs, Feed, TestBatches, TrainArrays
from kdjax.data.stream import Batch, Stream, normalise
from kdjax.runtime import backend, parallel
from kdjax.runtime.rng import fold
from kdjax.train import rounding
from kdjax.train.metrics import Metrics
from kdjax.train.mixup import mix
from kdjax.train.networks import PreparedTeacher
from kdjax.train.state import Gradients, StepInputs, TrainLogits, TrainState
from kdjax.train.step import Step


class EpochTargets(NamedTuple):
    """What a stage has of its teachers for one epoch, for every training image.

    Attributes:
        targets: by banked teacher, its targets as they are stored,
            `[N, ...]`.
        recorded: by replayed teacher, its logits when it learned, `[N, classes]`.
    """

    targets: Mapping[str, Any] = {}
    recorded: Mapping[str, Any] = {}


def train_step(
    step: Step,
    feed: Feed,
    state: TrainState,
    teachers: Mapping[str, PreparedTeacher],
    targets: EpochTargets,
    train_arrays: TrainArrays,
    dispatch_inputs: DispatchInputs,
    key: jax.Array,
    compute_params: dict[str, Any] | None = None,
) -> tuple[TrainState, Metrics, TrainLogits]:
    """Returns one replica's state after a step, its metrics and its logits.

    Args:
        step: the stage's.
        feed: makes the batch.
        state: before the step.
        teachers: those that run in the step.
        targets: the other teachers' in this epoch.
        train_arrays: the feed's.
        dispatch_inputs: one replica's, from the feed.
        key: the replica's root key.
        compute_params: the state's, as `Step.gradients` takes them.
    """

    def micro_batch(
        state: TrainState, number: jax.Array | int
    ) -> tuple[Gradients, TrainState, TrainLogits]:
        # state.step is one for all micro-batches: `apply_gradients` counts it up.
        examples = feed.micro_batch(dispatch_inputs, key, state.step, number)
        batch = feed.gather_examples(train_arrays, examples)
        if step.mixup:
            # By the step alone: a resumed run blends as one that was not stopped.
            batch = mix(
                batch,
                step.mixup,
                fold(key, "step", state.step),
                num_classes=step.num_classes,
                number=number,
            )
        inputs = _step_inputs(step, batch, teachers, targets)
        return step.gradients(state, inputs, key, compute_params)

    gradients, state, train_logits = _over_micro_batches(
        micro_batch, state, feed.micro_batches
    )
    state = step.apply_gradients(state, gradients.params)
    return state, gradients.metrics, train_logits


def _step_inputs(
    step: Step,
    batch: Batch,
    teachers: Mapping[str, PreparedTeacher],
    targets: EpochTargets,
) -> StepInputs:
    """Returns a micro-batch with its views and all teachers' targets on it."""
    # BatchNorm and losses then see the global batch; XLA adds the all-reduces.
    batch = jax.lax.with_sharding_constraint(batch, parallel.DATA)
    batch = step.with_views(batch)
    batch_targets = step.targets_of(teachers, batch.images)
    if not rounding.needs_teachers(step.method, step.mixup):
        batch_targets = rounding.as_stored(batch_targets, step.dtype)
    # Banked targets are rows of the epoch's table. They are rounded also in the pass
    # that computes them, so that a resumed run reads the same numbers.
    batch_targets |= jax.tree.map(
        lambda leaf: leaf[batch.index].astype(step.dtype), dict(targets.targets)
    )
    recorded = {name: logits[batch.index] for name, logits in targets.recorded.items()}
    variables = {name: teacher.variables for name, teacher in teachers.items()}
    return StepInputs(batch, batch_targets, recorded, variables)


def _over_micro_batches(
    micro_batch: Callable[
        [TrainState, jax.Array | int], tuple[Gradients, TrainState, TrainLogits]
    ],
    state: TrainState,
    count: int,
) -> tuple[Gradients, TrainState, TrainLogits]:
    """Returns what a step's micro-batches do, one after the other.

    Gradients and metrics are averaged, so that a step needs the memory of one
    micro-batch. BatchNorm and the losses between the examples of a batch see one
    micro-batch at a time; running statistics and the memory move once for each.

    Args:
        micro_batch: of a state and the micro-batch's number.
        state: before the step.
        count: how many micro-batches the step has.
    """
    if count == 1:
        return micro_batch(state, 0)
    # The loop's carry needs zeros of the gradients' shapes; tracing alone tells them.
    specs = jax.eval_shape(micro_batch, state, 0)[0]
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), specs)

    def add(
        carry: tuple[Gradients, TrainState], number: jax.Array | int
    ) -> tuple[tuple[Gradients, TrainState], TrainLogits]:
        sums, state = carry
        gradients, state, train_logits = micro_batch(state, number)
        return (jax.tree.map(jnp.add, sums, gradients), state), train_logits

    (sums, state), train_logits = backend.loop(add, (zeros, state), count)
    gradients = jax.tree.map(lambda leaf: leaf / count, sums)
    # [micro-batches, rows, ...] -> [batch, ...]
    train_logits = jax.tree.map(
        lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), train_logits
    )
    return gradients, state, train_logits


def evaluate_batches(
    step: Step, stream: Stream, state: TrainState, test: TestBatches
) -> dict[str, jax.Array]:
    """Returns one replica's sums over test batches, and how many images 'count'.

    Args:
        step: the stage's.
        stream: normalises the images.
        state: the networks.
        test: images, labels and validity, `[count, batch, ...]`.
    """

    def one(batch: TestBatches) -> dict[str, jax.Array]:
        images, labels, valid = jax.lax.with_sharding_constraint(batch, parallel.DATA)
        images = normalise(images, stream.mean, stream.std, stream.dtype)
        sums = step.evaluate(state, images, labels, valid)
        return {**sums, "count": jnp.sum(valid)}

    # A loop is no trap here: only weight gradients are slow inside one (on CPU).
    sums = jax.lax.map(one, test)
    return {name: jnp.sum(value) for name, value in sums.items()}
