"""The compiled programs of one stage, made once and run by every replica.

State, sums, keys, frozen teachers and tables have a leading axis of replicas, the seeds
that are trained side by side: it lies along the mesh's axis 'replica', and nothing
passes between them.
"""

import dataclasses
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from kdjax import models
from kdjax.data.device_feed import DeviceFeed
from kdjax.data.stream import normalise
from kdjax.data.streaming.feed import StreamedFeed
from kdjax.models import Variables
from kdjax.runtime import backend, parallel
from kdjax.runtime.errors import UserError
from kdjax.train import metrics
from kdjax.train.step import Step, StepInputs, TrainLogits, TrainState
from kdjax.train.teacher_targets import Reader


class EpochTargets(NamedTuple):
    """What a stage reads of its teachers in one epoch, for every example.

    Attributes:
        targets: by banked teacher, what the method reads of it, float16.
        recorded: by replayed teacher, its logits when it learned.
    """

    targets: Mapping[str, Any] = {}
    recorded: Mapping[str, Any] = {}


class Program:
    """Train and evaluation programs of one stage on a mesh.

    The feed makes batches inside the train program, so that the host does no work per
    step where the data set is on the devices.
    """

    def __init__(
        self,
        step: Step,
        feed: DeviceFeed | StreamedFeed,
        banked: Collection[str] = (),
        *,
        record: bool = False,
    ):
        """Traces the step, so that what does not fit is known before any training.

        Args:
            step: the stage's step.
            feed: makes batches, on a mesh; as many replicas are trained side by side
                as its axis 'replica' is long.
            banked: teachers whose outputs come from tables, not from the networks.
            record: whether what the student says in an epoch is kept, for a stage that
                replays it.

        Raises:
            UserError: a batch that does not divide over the devices; networks,
                features or hyper-parameters that do not fit.
        """
        parallel.check_batch(feed.mesh, feed.stream.batch_size, step.micro_batches)
        self.step, self.feed = step, feed
        self.banked, self.record = tuple(banked), record
        self.steps_per_dispatch = min(
            backend.steps_per_dispatch(), feed.max_steps_per_dispatch
        )
        self.reader = Reader(step, feed)
        self._compile_seconds = 0.0
        self._later = [
            Program(dataclasses.replace(step, phase=phase), feed, banked, record=record)
            for phase in range(1, 0 if step.phase else len(step.optimisers))
        ]
        self._compiled: tuple[Any, Any] | None = None
        # Inside jit, so that tracing it for its shapes serves the program as well.
        self._step = jax.jit(self._draw_and_train, inline=True)
        try:
            self.shapes = self._trace()
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
        return self._compile_seconds + self.reader.compile_seconds

    @property
    def replicas(self) -> int:
        """How many replicas are trained side by side."""
        return self.mesh.shape["replica"]

    def _trace(self) -> tuple[TrainState, dict[str, Any]]:
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
        inputs = self._stacked((self.computed(frozen), self._table_shapes(), key))
        self._inputs = (
            *inputs[:2],
            self.feed.train_arrays,
            self.feed.dispatch_specs,
            inputs[2],
        )
        traced = self._by_replica(self._step, shared=(3,))
        with jax.set_mesh(self.mesh):
            _, measured, _ = jax.eval_shape(traced, self._stacked(state), *self._inputs)
        return state, jax.eval_shape(lambda: self._zeros(measured))

    def _zeros(self, measured: dict[str, Any]) -> dict[str, Any]:
        """Returns the sums of nothing, for one replica."""
        totals = metrics.zeros(measured)
        if self.record:
            size = self.feed.stream.size, self.step.num_classes
            totals["said"] = jnp.zeros(size, self.step.dtype)
        return totals

    def _table_shapes(self) -> EpochTargets:
        size, step = self.feed.stream.size, self.step
        targets = {
            teacher: jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct((size, *leaf.shape[1:]), jnp.float16),
                step.target_specs[teacher],
            )
            for teacher in self.banked
        }
        logits = jax.ShapeDtypeStruct((size, step.num_classes), step.dtype)
        replayed = step.teachers if step.method.replays else ()
        return EpochTargets(targets, dict.fromkeys(replayed, logits))

    def computed(self, frozen: Mapping[str, Variables]) -> dict[str, Variables]:
        """Returns those teachers that run inside the step."""
        return {name: frozen[name] for name in frozen if name not in self.banked}

    def _stacked(self, shapes: Any) -> Any:
        """Returns one replica's shapes as those of all, with their shardings."""

        def stacked(leaf: Any) -> jax.ShapeDtypeStruct:
            found = jax.ShapeDtypeStruct((self.replicas, *leaf.shape), leaf.dtype)
            return found.update(sharding=parallel.spread(self.mesh, found))

        return jax.tree.map(stacked, shapes)

    def start(self, seed: int, frozen: Mapping[str, Variables]) -> TrainState:
        """Returns one replica's state before the first step, on the host.

        Args:
            seed: of the replica.
            frozen: all its teachers' variables.
        """
        key, labels = jax.random.key(seed), jnp.zeros(self.feed.stream.size, jnp.int32)
        if jax.tree.leaves(self.shapes[0].memory):  # nothing else is made of them
            labels = jnp.asarray(self.feed.labels)
        start = self.step.start(key)
        return jax.device_get(self.step.init(start, frozen, key, labels))

    def start_phase(self, state: TrainState) -> TrainState:
        """Returns one replica's state at the phase's start, on the host.

        Args:
            state: at the end of the phase before.
        """
        return jax.device_get(self.step.start_phase(state))

    def zero_metrics(self) -> dict[str, Any]:
        """Returns one replica's sums of nothing, on the host."""
        return jax.device_get(self._zeros(self.shapes[1]["sums"]))

    def stack_replicas(self, trees: Sequence[Any]) -> Any:
        """Returns the replicas' trees as one, on the devices."""
        return jax.tree.map(
            lambda leaf: parallel.place(leaf, parallel.spread(self.mesh, leaf)),
            parallel.stack(trees),
        )

    def unstack_replicas(self, tree: Any) -> list[Any]:
        """Returns the replicas' own trees, on the host of every process."""
        leaves, structure = jax.tree.flatten(parallel.fetch(tree))
        return [
            jax.tree.unflatten(structure, [leaf[i] for leaf in leaves])
            for i in range(self.replicas)
        ]

    def compile(self) -> None:
        """Compiles train and evaluation programs, once for all replicas."""
        if self._compiled:
            return
        begin = time.perf_counter()
        self._compiled = (
            self.lower_train().compile(backend.compiler_options()),
            self._lower_test().compile(backend.compiler_options()),
        )
        self._compile_seconds += time.perf_counter() - begin

    @property
    def inputs(self) -> tuple[Any, ...]:
        """The shapes of what the train program is given, but the number of steps."""
        return (*self._stacked(self.shapes), *self._inputs)

    def lower_train(self) -> jax.stages.Lowered:
        """Returns the train program before it is compiled."""
        train = jax.jit(
            self._by_replica(self._dispatch, shared=(4, 7)),
            donate_argnums=(0, 1),
            out_shardings=jax.tree.map(
                lambda leaf: leaf.sharding, self._stacked(self.shapes)
            ),
        )
        with jax.set_mesh(self.mesh):
            return train.lower(*self.inputs, 1)

    def _lower_test(self) -> jax.stages.Lowered:
        test = jax.jit(
            self._by_replica(self._test, shared=(1,)),
            out_shardings=parallel.over_replicas(self.mesh),
        )
        with jax.set_mesh(self.mesh):
            return test.lower(self._stacked(self.shapes[0]), self.feed.test_specs)

    def train(
        self,
        state: TrainState,
        totals: dict[str, Any],
        frozen: Mapping[str, Variables],
        tables: EpochTargets,
        given: Any,
        keys: jax.Array,
        count: int,
    ) -> tuple[TrainState, dict[str, Any], jax.Array]:
        """Returns state and metrics' sums after some steps, and a number to wait for.

        Args:
            state: before them; donated.
            totals: before them; donated.
            frozen: variables of the teachers in the step.
            tables: the other teachers' outputs in this epoch.
            given: by the feed.
            keys: the replicas'.
            count: number of steps, `steps_per_dispatch` at the most.
        """
        assert self._compiled
        state, totals = self._compiled[0](
            state, totals, frozen, tables, self.feed.train_arrays, given, keys, count
        )
        return state, totals, state.step + 0  # which is not donated later

    def evaluate(self, state: TrainState) -> list[dict[str, float]]:
        """Returns 'accuracy/ROLE', 'top5/ROLE' and 'loss/ROLE' on all test images.

        One dictionary for every replica.
        """
        assert self._compiled
        sums = [self._compiled[1](state, batches) for batches in self.feed.test()]
        found = self.unstack_replicas(jax.tree.map(lambda *parts: sum(parts), *sums))
        sizes = [one.pop("count") for one in found]
        return [
            {name: float(value) / float(size) for name, value in one.items()}
            for one, size in zip(found, sizes, strict=True)
        ]

    def _by_replica(self, function: Any, shared: tuple[int, ...]) -> Any:
        return parallel.by_replica(function, self.mesh, shared)

    def _draw_and_train(
        self,
        state: TrainState,
        frozen: Mapping[str, Variables],
        tables: EpochTargets,
        fixed: Any,
        given: Any,
        key: jax.Array,
    ) -> tuple[TrainState, dict[str, jax.Array], TrainLogits]:
        """Returns what `Step.train` does, for one replica."""
        step, feed = self.step, self.feed

        def draw(part: Any) -> StepInputs:
            batch = feed.draw(fixed, given, key, state.step, part, step.micro_batches)
            batch = jax.lax.with_sharding_constraint(batch, parallel.DATA)
            batch = step.prepare(batch)
            targets = step.targets(frozen, batch.images)
            targets |= jax.tree.map(
                lambda leaf: leaf[batch.index].astype(step.dtype), dict(tables.targets)
            )
            recorded = {
                name: said[batch.index] for name, said in tables.recorded.items()
            }
            return StepInputs(batch, targets, recorded, frozen)

        return step.train(state, draw, key)

    def _dispatch(self, state, totals, frozen, tables, fixed, given, key, count):  # type: ignore[no-untyped-def]
        def one(_, carry):  # type: ignore[no-untyped-def]
            state, totals = carry
            new, measured, said = self._step(state, frozen, tables, fixed, given, key)
            sums = metrics.add(totals, measured, state.step)
            if self.record:
                index, logits = said
                sums["said"] = totals["said"].at[index].set(logits)
            return new, sums

        if self.steps_per_dispatch == 1:
            return one(0, (state, totals))
        return jax.lax.fori_loop(0, count, one, (state, totals))

    def _test(self, state, test):  # type: ignore[no-untyped-def]
        stream = self.feed.stream

        def one(batch):  # type: ignore[no-untyped-def]
            images, labels, valid = jax.lax.with_sharding_constraint(
                batch, parallel.DATA
            )
            images = normalise(images, stream.mean, stream.std, stream.dtype)
            found = self.step.evaluate(state, images, labels, valid)
            return {**found, "count": jnp.sum(valid)}

        sums = jax.lax.map(one, test)
        return {name: jnp.sum(value) for name, value in sums.items()}
