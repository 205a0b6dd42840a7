"""The compiled programs of one stage, made once and run by every replica."""

import math
import time
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from kdjax import backend, metrics, models, parallel
from kdjax.data.resident import Resident
from kdjax.data.stream import Stream, normalise
from kdjax.errors import UserError
from kdjax.keys import fold
from kdjax.models import Variables
from kdjax.step import Step, TrainState

_CHUNK = 1024  # images in one call of `read`


class Program:
    """Train and evaluation programs of one stage on a mesh.

    Batches are gathered, varied and normalised inside the train program, so that the
    host does no work per step.
    """

    def __init__(
        self,
        step: Step,
        data: Resident,
        stream: Stream,
        mesh: Mesh,
        banked: Collection[str] = (),
    ):
        """Traces the step, so that what does not fit is known before any training.

        Args:
            step: the stage's step.
            data: images and labels on the devices.
            stream: makes batches of the training images.
            mesh: the devices.
            banked: teachers whose outputs come from tables, not from the networks.

        Raises:
            UserError: a batch that does not divide over the devices; networks,
                features or hyper-parameters that do not fit.
        """
        parallel.check_batch(mesh, stream.batch_size)
        self.step, self.stream, self.banked = step, stream, tuple(banked)
        self._data, self._mesh = data, mesh
        self._everywhere = parallel.replicated(mesh)
        # Inside jit, so that tracing it for its shapes serves the program as well.
        self._train_step = jax.jit(step.train, inline=True)
        self._order = jax.jit(
            lambda key, epoch: stream.order(fold(key, "stream"), epoch),
            out_shardings=self._everywhere,
        )
        self.steps_per_dispatch = backend.steps_per_dispatch()
        self._readers: dict[str, Any] = {}
        self.compile_seconds = 0.0
        self._compiled: tuple[Any, Any] | None = None
        try:
            self.shapes = self._trace()
        except UserError:
            raise
        except ValueError as error:  # from a loss: shapes or values it refuses
            raise UserError(str(error).replace("\n", " ")) from error

    def _trace(self) -> tuple[TrainState, dict[str, Any]]:
        """Returns the shapes of the state and of the metrics' sums."""
        step, key = self.step, self.place(jax.random.key(0))
        frozen = {
            teacher: models.shapes(
                model, step.num_classes, step.image_shape, step.dtype
            )
            for teacher, model in step.teachers.items()
        }
        state = jax.eval_shape(step.init, step.shapes(), frozen, key)
        frozen = self.computed(frozen)
        # With their shardings, as compile() has them: what is traced once is kept.
        state, frozen, self._tables = self._placed_shapes(
            (state, frozen, self._table_shapes())
        )
        order = jax.ShapeDtypeStruct(
            (self.stream.size,), jnp.int32, sharding=self._everywhere
        )
        _, measured = jax.eval_shape(
            self._batch_and_step,
            state,
            frozen,
            self._tables,
            self._data.train,
            order,
            key,
        )
        totals = jax.eval_shape(lambda: metrics.zeros(measured))
        return state, self._placed_shapes(totals)

    def _table_shapes(self) -> dict[str, Any]:
        return {
            teacher: jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(
                    (self.stream.size, *leaf.shape[1:]), jnp.float16
                ),
                self.step.target_shapes[teacher],
            )
            for teacher in self.banked
        }

    def computed(self, frozen: Mapping[str, Variables]) -> dict[str, Variables]:
        """Returns those teachers that run inside the step."""
        return {name: frozen[name] for name in frozen if name not in self.banked}

    def _placed_shapes(self, shapes: Any) -> Any:
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=self._everywhere
            ),
            shapes,
        )

    def place(self, tree: Any) -> Any:
        """Returns a tree of arrays on every device."""
        return jax.device_put(tree, self._everywhere)

    def start(self, seed: int, frozen: Mapping[str, Variables]) -> TrainState:
        """Returns a replica's state before the first step."""
        key = jax.random.key(seed)
        state = self.step.init(self.step.start(key), frozen, key)
        # Copied: what a method takes from a teacher must not be donated with the state.
        return self.place(jax.tree.map(jnp.copy, state))

    def empty(self) -> dict[str, Any]:
        """Returns metrics' sums of nothing."""
        return self.place(metrics.zeros(self.shapes[1]["sums"]))

    def order(self, key: jax.Array, epoch: int) -> jax.Array:
        """Returns the order of the training examples in an epoch."""
        return self._order(key, epoch)

    def compile(self, key: jax.Array, frozen: Mapping[str, Variables]) -> None:
        """Compiles both programs, once for all replicas.

        Args:
            key: a replica's, for its shape.
            frozen: variables of the teachers in the step, for their shapes.
        """
        if self._compiled:
            return
        begin = time.perf_counter()
        options = backend.compiler_options()
        train = jax.jit(
            self._dispatch,
            donate_argnums=(0, 1),
            out_shardings=self._everywhere,
            compiler_options=options,
        )
        evaluate = jax.jit(
            self._test, out_shardings=self._everywhere, compiler_options=options
        )
        state, totals = self.shapes
        data, order = self._data.train, self.order(key, 0)
        self._compiled = (
            train.lower(
                state, totals, frozen, self._tables, data, order, key, 1
            ).compile(),
            evaluate.lower(state, self._data.test).compile(),
        )
        self.compile_seconds += time.perf_counter() - begin

    def train(
        self,
        state: TrainState,
        totals: dict[str, Any],
        frozen: Mapping[str, Variables],
        tables: Mapping[str, Any],
        order: jax.Array,
        key: jax.Array,
        count: int,
    ) -> tuple[TrainState, dict[str, Any], jax.Array]:
        """Returns state and metrics' sums after some steps, and a number to wait for.

        Args:
            state: before them; donated.
            totals: before them; donated.
            frozen: variables of the teachers in the step.
            tables: the other teachers' outputs in this epoch, for every example.
            order: of the epoch.
            key: the replica's.
            count: number of steps, `steps_per_dispatch` at the most.
        """
        assert self._compiled
        data = self._data.train
        return self._compiled[0](state, totals, frozen, tables, data, order, key, count)

    @property
    def chunk(self) -> int:
        """How many images one call of `read` takes."""
        devices = self._mesh.size
        return math.ceil(min(_CHUNK, self.stream.size) / devices) * devices

    def read(
        self, teacher: str, variables: Variables, index: np.ndarray, key: jax.Array
    ) -> list[jax.Array]:
        """Returns what the method reads of a teacher, in float16: a list of leaves.

        Args:
            teacher: its stage.
            variables: of the teacher.
            index: `[chunk]` positions of training images.
            key: the stream's in the epoch whose images these are.
        """
        if teacher not in self._readers:

            def read(variables, data, index, key):  # type: ignore[no-untyped-def]
                images = self.stream.examples(data, index, key).images
                images = jax.lax.with_sharding_constraint(
                    images, parallel.over_data(self._mesh)
                )
                leaves = jax.tree.leaves(
                    self.step.targets({teacher: variables}, images)
                )
                return [leaf.astype(jnp.float16) for leaf in leaves]

            begin = time.perf_counter()
            reader = jax.jit(
                read,
                out_shardings=self._everywhere,
                compiler_options=backend.compiler_options(),
            )
            lowered = reader.lower(variables, self._data.train, index, key)
            self._readers[teacher] = lowered.compile()
            self.compile_seconds += time.perf_counter() - begin
        return self._readers[teacher](variables, self._data.train, index, key)

    def evaluate(self, state: TrainState) -> dict[str, jax.Array]:
        """Returns 'accuracy/ROLE', 'top5/ROLE' and 'loss/ROLE' on all test images."""
        assert self._compiled
        return self._compiled[1](state, self._data.test)

    def _batch_and_step(self, state, frozen, tables, data, order, key):  # type: ignore[no-untyped-def]
        batch = self.stream.batch(data, order, fold(key, "stream"), state.step)
        batch = jax.lax.with_sharding_constraint(batch, parallel.over_data(self._mesh))
        targets = self.step.targets(frozen, batch.images)
        for teacher, table in tables.items():
            targets[teacher] = jax.tree.map(
                lambda leaf: leaf[batch.index].astype(self.stream.dtype), table
            )
        return self._train_step(state, targets, batch, key)

    def _dispatch(self, state, totals, frozen, tables, data, order, key, count):  # type: ignore[no-untyped-def]
        def one(_, carry):  # type: ignore[no-untyped-def]
            state, totals = carry
            new, measured = self._batch_and_step(
                state, frozen, tables, data, order, key
            )
            return new, metrics.add(totals, measured, state.step)

        carry = (state, totals)
        if self.steps_per_dispatch == 1:
            carry = one(0, carry)
        else:
            carry = jax.lax.fori_loop(0, count, one, carry)
        return *carry, carry[0].step + 0  # the last one is not donated later

    def _test(self, state, test):  # type: ignore[no-untyped-def]
        dataset = self._data.dataset

        def one(batch):  # type: ignore[no-untyped-def]
            images, labels, valid = jax.lax.with_sharding_constraint(
                batch, parallel.over_data(self._mesh)
            )
            images = normalise(images, dataset.mean, dataset.std, self.stream.dtype)
            return self.step.evaluate(state, images, labels, valid)

        sums = jax.lax.map(one, test)
        size = len(dataset.test.labels)
        return {name: jnp.sum(value) / size for name, value in sums.items()}
