"""The targets of frozen teachers over all training images, for the bank."""

import math
import time
from collections.abc import Callable

import jax
import numpy as np

from kdjax.data.feed import ExampleInputs, Feed, TrainArrays
from kdjax.models import Variables
from kdjax.runtime import backend, parallel
from kdjax.train import rounding
from kdjax.train.networks import Networks

_CHUNK = 1024  # images in one call


class TeacherTargets:
    """Runs a stage's teachers outside of its train program.

    Attributes:
        compile_seconds: how long its programs have taken to compile so far.
    """

    def __init__(self, networks: Networks, feed: Feed):
        """Compiles nothing yet.

        Args:
            networks: the stage's: what its method wants of every teacher.
            feed: makes the images, on its mesh.
        """
        self._networks, self._feed = networks, feed
        self._compiled: dict[str, jax.stages.Compiled] = {}
        self.compile_seconds = 0.0

    @property
    def chunk(self) -> int:
        """How many images one call takes: the same number on every device."""
        devices = self._feed.mesh.size
        return math.ceil(min(_CHUNK, self._feed.stream.size) / devices) * devices

    def shapes(self, teacher: str) -> list[tuple[int, ...]]:
        """Returns the shapes of the arrays that `over_epoch` returns."""
        leaves = jax.tree.leaves(self._networks.target_specs[teacher])
        return [(self._feed.stream.size, *leaf.shape[1:]) for leaf in leaves]

    def over_epoch(
        self,
        teacher: str,
        variables: Variables,
        stream: int,
        epoch: int,
        before_chunk: Callable[[], None] = lambda: None,
    ) -> list[np.ndarray]:
        """Returns a teacher's targets on all training images of an epoch.

        Args:
            teacher: its stage.
            variables: of the teacher, on the host.
            stream: the seed of the stream.
            epoch: counted from 0.
            before_chunk: called before every program call; what it raises ends the
                computation.

        Returns:
            The leaves of the targets, `[N, ...]`, on the host, in the dtype that is
            stored.
        """
        size, chunks = self._feed.stream.size, []
        variables = parallel.place(variables, parallel.replicated(self._feed.mesh))
        for start in range(0, size, self.chunk):
            before_chunk()
            # The last chunk is filled up with the first images, which are cut off.
            index = np.arange(start, start + self.chunk, dtype=np.int32) % size
            example_inputs = self._feed.example_inputs(index, stream, epoch)
            leaves = self._run(teacher, variables, example_inputs)
            chunks.append([leaf[: size - start] for leaf in leaves])
        return [np.concatenate(leaf) for leaf in zip(*chunks, strict=True)]

    def _run(
        self, teacher: str, variables: Variables, example_inputs: ExampleInputs
    ) -> list[np.ndarray]:
        args = variables, self._feed.train_arrays, example_inputs
        if teacher not in self._compiled:
            begin = time.perf_counter()
            everywhere = parallel.replicated(self._feed.mesh)
            targets = jax.jit(self._targets_of(teacher), out_shardings=everywhere)
            self._compiled[teacher] = targets.lower(*args).compile(
                backend.compiler_options()
            )
            self.compile_seconds += time.perf_counter() - begin
        return parallel.fetch(self._compiled[teacher](*args))

    def _targets_of(self, teacher: str) -> Callable[..., list[jax.Array]]:
        over_devices = parallel.over_devices(self._feed.mesh)
        dtype = self._networks.dtype
        stored = rounding.stored_dtype(dtype)

        def targets(
            variables: Variables,
            train_arrays: TrainArrays,
            example_inputs: ExampleInputs,
        ) -> list[jax.Array]:
            batch = self._feed.gather_examples(train_arrays, example_inputs)
            images = jax.lax.with_sharding_constraint(batch.images, over_devices)
            by_teacher = self._networks.targets({teacher: variables}, images)
            rounded = rounding.as_stored(by_teacher, dtype)
            return [leaf.astype(stored) for leaf in jax.tree.leaves(rounded)]

        return targets
