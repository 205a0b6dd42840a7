"""The compiled programs of one stage, made once and run by every replica.

State, metrics' sums, keys, frozen teachers and epoch targets have a leading axis of
replicas, the seeds that are trained side by side: it lies along the mesh's axis
'replica', and nothing passes between them.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from kdjax import models
from kdjax.data.feed import DispatchInputs, Feed
from kdjax.models import Variables
from kdjax.runtime import backend, parallel
from kdjax.runtime.errors import UserError
from kdjax.train import evaluation, mixup, rounding
from kdjax.train.dispatch import RECORDING, Dispatch, Totals, evenly
from kdjax.train.networks import PreparedTeacher
from kdjax.train.replica_step import EpochTargets
from kdjax.train.state import TrainState
from kdjax.train.step import Step
from kdjax.train.teacher_targets import TeacherTargets

Tree = TypeVar("Tree")
"""A tree of arrays."""


class Program:
    """Train and evaluation programs of one stage on a mesh.

    The feed makes batches inside the train program, so that the host does no work per
    step where the data set is on the devices.
    """

    def __init__(
        self,
        step: Step,
        feed: Feed,
        banked: Collection[str] = (),
        *,
        record: bool = False,
    ):
        """Traces the step, so that what does not fit is known before any training.

        Args:
            step: the stage's step.
            feed: makes batches, on a mesh; as many replicas are trained side by side
                as its axis 'replica' is long.
            banked: teachers whose targets come from the bank, not from the networks.
            record: whether the student's training-mode logits of every epoch are kept,
                for a stage that replays them.

        Raises:
            UserError: a batch that does not divide over the devices; networks,
                features or hyper-parameters that do not fit.
        """
        parallel.check_batch(feed.mesh, feed.stream.batch_size, feed.micro_batches)
        mixup.check_stored(step.mixup, banked)
        self.step, self.feed = step, feed
        self.banked, self.record = tuple(banked), record
        self.steps_per_dispatch = evenly(
            feed.stream.steps,
            min(backend.steps_per_dispatch(), feed.max_steps_per_dispatch),
        )
        self.teacher_targets = TeacherTargets(step, feed)
        self._compile_seconds = 0.0
        # Each phase has its own optimiser state, and so a program of its own.
        self._later = [
            Program(dataclasses.replace(step, phase=phase), feed, banked, record=record)
            for phase in range(1, 0 if step.phase else len(step.optimisers))
        ]
        # Train programs by their number of steps, which is compiled in.
        self._train: dict[int, jax.stages.Compiled] = {}
        self._evaluate: jax.stages.Compiled | None = None
        self._dispatch = Dispatch(
            step, feed, record=record, looped=self.steps_per_dispatch > 1
        )
        try:
            self.specs = self._trace()
        except UserError:
            raise
        except ValueError as error:  # from a loss: shapes or values it refuses
            raise UserError(str(error).replace("\n", " ")) from error

    @property
    def mesh(self) -> Mesh:
        """The devices."""
        return self.feed.mesh

    @property
    def phases(self) -> "list[Program]":
        """The programs of the method's phases, the first of which this one is."""
        return [self, *self._later]

    @property
    def compile_seconds(self) -> float:
        """How long its programs have taken to compile so far."""
        return self._compile_seconds + self.teacher_targets.compile_seconds

    @property
    def replicas(self) -> int:
        """How many replicas are trained side by side."""
        return self.mesh.shape["replica"]

    @property
    def replayed(self) -> tuple[str, ...]:
        """The teachers whose recorded logits stand in for a network's."""
        return tuple(self.step.teachers) if self.step.method.replays else ()

    def _trace(self) -> tuple[TrainState, Totals]:
        """Returns the shapes of one replica's state and of its metrics' sums."""
        step, key = self.step, jax.eval_shape(lambda: jax.random.key(0))
        frozen = {
            teacher: models.shapes(
                model, step.num_classes, step.image_shape, step.dtype
            )
            for teacher, model in step.teachers.items()
        }
        labels = jax.ShapeDtypeStruct((self.feed.stream.size,), jnp.int32)
        state = jax.eval_shape(step.init, step.shapes(), frozen, key, labels)
        prepared = jax.eval_shape(self._prepare, self.inside(frozen))
        teachers, targets, keys = self._stacked((prepared, self._epoch_specs(), key))
        self._inputs = (
            teachers,
            targets,
            self.feed.train_arrays,
            self.feed.dispatch_specs,
            keys,
        )

        traced = parallel.by_replica(self._dispatch.metrics, self.mesh, shared=(3,))
        with jax.set_mesh(self.mesh):
            measured = jax.eval_shape(traced, self._stacked(state), *self._inputs)
        return state, jax.eval_shape(lambda: self._dispatch.zeros(measured))

    def _epoch_specs(self) -> EpochTargets:
        size, step = self.feed.stream.size, self.step
        stored = rounding.stored_dtype(step.dtype)
        targets = {
            teacher: jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct((size, *leaf.shape[1:]), stored),
                step.target_specs[teacher],
            )
            for teacher in self.banked
        }
        logits = jax.ShapeDtypeStruct((size, step.num_classes), step.dtype)
        return EpochTargets(targets, dict.fromkeys(self.replayed, logits))

    def inside(self, frozen: Mapping[str, Variables]) -> dict[str, Variables]:
        """Returns the variables of those teachers that run inside the step."""
        return {name: frozen[name] for name in frozen if name not in self.banked}

    def _prepare(self, inside: Mapping[str, Variables]) -> dict[str, PreparedTeacher]:
        """Returns one replica's teachers as its steps take them."""
        images = self.feed.stream.batch_size // self.feed.micro_batches
        return self.step.prepare(inside, self.step.num_rows(images))

    def prepare_teachers(
        self, frozen: Sequence[Mapping[str, Variables]]
    ) -> dict[str, PreparedTeacher]:
        """Returns the replicas' teachers as the train program takes them.

        On the devices, all replicas as one. Once for a run: on CPU, where every step
        is a call, a step of VGG-8 with VGG-13 as its teacher otherwise takes 3 %
        longer.

        Args:
            frozen: every replica's teachers' variables, on the host.
        """
        inside = self.stack_replicas([self.inside(one) for one in frozen])
        prepare = jax.jit(
            parallel.by_replica(self._prepare, self.mesh),
            out_shardings=jax.tree.map(lambda leaf: leaf.sharding, self._inputs[0]),
        )
        begin = time.perf_counter()
        with jax.set_mesh(self.mesh):
            compiled = prepare.lower(inside).compile(backend.compiler_options())
        self._compile_seconds += time.perf_counter() - begin
        return compiled(inside)

    def _stacked(self, specs: Tree) -> Tree:
        """Returns one replica's shapes as those of all, with their shardings."""

        def stacked(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            all_replicas = jax.ShapeDtypeStruct(
                (self.replicas, *leaf.shape), leaf.dtype
            )
            sharding = parallel.spread(self.mesh, all_replicas)
            return all_replicas.update(sharding=sharding)

        return jax.tree.map(stacked, specs)

    def start(
        self,
        seed: int,
        frozen: Mapping[str, Variables],
        given: Callable[[Variables], Variables] = lambda own: own,
    ) -> TrainState:
        """Returns one replica's state before the first step, on the host.

        Args:
            seed: of the replica.
            frozen: all its teachers' variables.
            given: makes the student's first variables of its own ones.
        """
        key, labels = jax.random.key(seed), jnp.zeros(self.feed.stream.size, jnp.int32)
        # Labels are read for a memory alone: streamed ones take a pass over the files.
        if jax.tree.leaves(self.specs[0].memory):
            labels = jnp.asarray(self.feed.labels)
        start = self.step.start(key)
        start["student"] = given(start["student"])
        return jax.device_get(self.step.init(start, frozen, key, labels))

    def start_phase(self, state: TrainState) -> TrainState:
        """Returns one replica's state at the phase's start, on the host.

        Args:
            state: at the end of the phase before.
        """
        return jax.device_get(self.step.start_phase(state))

    def zero_metrics(self) -> Totals:
        """Returns one replica's sums before the first step of an epoch, on the host."""
        return jax.device_get(self._dispatch.zeros(self.specs[1]["sums"]))

    def stack_replicas(self, trees: Sequence[Tree]) -> Tree:
        """Returns the replicas' trees as one, on the devices."""
        return jax.tree.map(
            lambda leaf: parallel.place(leaf, parallel.spread(self.mesh, leaf)),
            parallel.stack(trees),
        )

    def unstack_replicas(self, tree: Tree) -> list[Tree]:
        """Returns the replicas' own trees, on the host of every process."""
        leaves, structure = jax.tree.flatten(parallel.fetch(tree))
        return [
            jax.tree.unflatten(structure, [leaf[i] for leaf in leaves])
            for i in range(self.replicas)
        ]

    def compile(self) -> None:
        """Compiles train and evaluation programs, once for all replicas.

        The train program is that of `steps_per_dispatch` steps; one of another number
        is compiled when it is first needed.
        """
        self._train_program(self.steps_per_dispatch)
        if self._evaluate is None:
            begin = time.perf_counter()
            lowered = evaluation.lower(
                self.step, self.feed, self._stacked(self.specs[0])
            )
            self._evaluate = lowered.compile(backend.compiler_options())
            self._compile_seconds += time.perf_counter() - begin

    def _train_program(self, count: int) -> jax.stages.Compiled:
        """Returns the program of `count` steps, compiled when it is first needed."""
        if count not in self._train:
            begin = time.perf_counter()
            lowered = self.lower_train(count)
            self._train[count] = lowered.compile(backend.compiler_options())
            self._compile_seconds += time.perf_counter() - begin
        return self._train[count]

    @property
    def inputs(self) -> tuple[Any, ...]:
        """The shapes of the train program's arguments."""
        return (*self._stacked(self.specs), *self._inputs)

    def lower_train(self, count: int | None = None) -> jax.stages.Lowered:
        """Returns a train program before it is compiled.

        Args:
            count: how many steps it makes; by default `steps_per_dispatch`. It is a
                constant of the program: with the count as an argument, a GPU waits for
                the host after every step, to be told whether another one follows (on an
                H100 in bf16 1.41 ms a supervised step of WRN-16-1 instead of 1.25, 5.62
                a step of CTKD instead of 5.15).
        """
        dispatch = functools.partial(
            self._dispatch, self.steps_per_dispatch if count is None else count
        )
        train = jax.jit(
            parallel.by_replica(dispatch, self.mesh, shared=(4,)),
            donate_argnums=(0, 1),  # state and sums: updated in place
            out_shardings=jax.tree.map(
                lambda leaf: leaf.sharding, self._stacked(self.specs)
            ),
        )
        with jax.set_mesh(self.mesh):
            return train.lower(*self.inputs)

    def train(
        self,
        state: TrainState,
        totals: Totals,
        teachers: Mapping[str, PreparedTeacher],
        targets: EpochTargets,
        dispatch_inputs: DispatchInputs,
        keys: jax.Array,
        count: int,
    ) -> tuple[TrainState, Totals, jax.Array]:
        """Returns state and metrics' sums after some steps, and a number to wait for.

        Args:
            state: before them; donated.
            totals: before them; donated.
            teachers: from `prepare_teachers`.
            targets: the other teachers' in this epoch.
            dispatch_inputs: from the feed.
            keys: the replicas'.
            count: number of steps; its program is compiled if there is none yet.
        """
        state, totals = self._train_program(count)(
            state,
            totals,
            teachers,
            targets,
            self.feed.train_arrays,
            dispatch_inputs,
            keys,
        )
        # Not state.step itself, which the next call donates.
        return state, totals, state.step + 0

    def recorded_logits(self, totals: Totals) -> np.ndarray:
        """Returns the student's logits of an epoch, `[N, classes]`, from its sums."""
        return totals[RECORDING]

    def evaluate(self, state: TrainState) -> list[dict[str, float]]:
        """Returns 'accuracy/ROLE', 'top5/ROLE' and 'loss/ROLE' on all test images.

        One dictionary for every replica.
        """
        assert self._evaluate
        return evaluation.run(self._evaluate, state, self.feed)
