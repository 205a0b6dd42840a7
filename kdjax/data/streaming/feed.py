"""Feeds a stage's programs from a streamed data set.

Worker processes decode the images of the next steps while the devices compute. Data
sets that fit on the devices are fed by `kdjax.data.device_feed`.
"""

import contextlib
import dataclasses
import math
from collections.abc import Generator, Iterator, Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from kdjax.data.stream import Batch, Stream, normalise
from kdjax.data.streaming.dataset import Streamed
from kdjax.runtime import parallel
from kdjax.runtime.rng import fold

_EVAL_BATCH = 256


@dataclasses.dataclass(frozen=True, eq=False)
class StreamedFeed:
    """A `Feed` of one replica from a streamed data set, step by step.

    Attributes:
        data: the data set.
        stream: the order of the images.
        mesh: of the programs; its axis 'replica' is 1 long.
        micro_batches: the number of micro-batches in a step's batch.
    """

    data: Streamed
    stream: Stream
    mesh: Mesh
    micro_batches: int = 1
    max_steps_per_dispatch: ClassVar[int] = 1
    """One: the dispatch inputs are the images of a single step."""

    train_arrays: ClassVar[tuple[()]] = ()

    @property
    def labels(self) -> np.ndarray:
        """The training labels, `[N]`."""
        return self.data.labels

    @property
    def dispatch_specs(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """The shapes of a step's images, labels and positions, by micro-batch."""
        micro_batch = self.stream.batch_size // self.micro_batches
        shape = 1, self.micro_batches, micro_batch
        sharding = NamedSharding(self.mesh, P("replica", None, "data"))
        return tuple(
            jax.ShapeDtypeStruct((*shape, *rest), dtype, sharding=sharding)
            for rest, dtype in (
                (self.data.image_shape, jnp.uint8),
                ((), jnp.int32),
                ((), jnp.int32),
            )
        )

    def epoch(
        self, seeds: Sequence[int], epoch: int, first: int, width: int
    ) -> Generator[tuple[int, tuple[jax.Array, ...]]]:
        """Yields 1, and the next step's images, labels and positions on the devices."""
        (seed,), count = seeds, jax.process_count()
        order = np.asarray(
            self.stream.order(fold(jax.random.key(seed), "stream"), epoch)
        )
        rows = order[: self.stream.steps * self.stream.batch_size]
        # A process's slice of a batch holds its slice of every micro-batch:
        # [steps, micro, processes, size] -> [steps, processes, micro, size] -> flat.
        size = self.stream.batch_size // (self.micro_batches * count)
        rows = rows.reshape(self.stream.steps, self.micro_batches, count, size)
        batches = self.data.train(
            rows.swapaxes(1, 2).reshape(-1),
            seed,
            epoch,
            self.stream.batch_size,
            first,
            (jax.process_index(), count),
        )
        with contextlib.closing(batches):
            for batch in batches:
                arrays = batch.images, batch.labels, batch.index
                yield (
                    width,
                    tuple(
                        jax.make_array_from_process_local_data(
                            shape.sharding,
                            # [B / processes, ...] -> [1, micro, size, ...]
                            array.reshape(
                                1, self.micro_batches, size, *array.shape[1:]
                            ),
                            shape.shape,
                        )
                        for array, shape in zip(
                            arrays, self.dispatch_specs, strict=True
                        )
                    ),
                )

    def micro_batch(
        self,
        dispatch_inputs: tuple[jax.Array, ...],
        key: jax.Array,
        step: jax.Array,
        number: jax.Array | int,
    ) -> tuple[jax.Array, ...]:
        """Returns the micro-batch's images, uint8, labels and positions."""
        del key, step  # the workers have chosen and cropped the images already
        return tuple(array[number] for array in dispatch_inputs)

    def example_inputs(
        self, index: np.ndarray, seed: int, epoch: int
    ) -> tuple[jax.Array, ...]:
        """Reads images, labels and positions, and places them on all devices."""
        batch = self.data.examples(index, seed, epoch)
        arrays = batch.images, batch.labels, batch.index
        return parallel.place(arrays, parallel.over_devices(self.mesh))

    def gather_examples(
        self, train_arrays: tuple[()], example_inputs: tuple[jax.Array, ...]
    ) -> Batch:
        """Returns the images, normalised, with labels and positions."""
        del train_arrays
        images, labels, index = example_inputs
        stream = self.stream
        images = normalise(images, stream.mean, stream.std, stream.dtype)
        return Batch(images, labels, index)

    @property
    def test_specs(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """The shapes of the results of `test`."""
        devices = self.mesh.size
        batch = math.ceil(min(_EVAL_BATCH, self.data.test_size) / devices) * devices
        sharding = NamedSharding(self.mesh, P(None, "data"))
        return tuple(
            jax.ShapeDtypeStruct((1, batch, *rest), dtype, sharding=sharding)
            for rest, dtype in (
                (self.data.image_shape, jnp.uint8),
                ((), jnp.int32),
                ((), jnp.bool_),
            )
        )

    def test(self) -> Iterator[tuple[jax.Array, ...]]:
        """Yields images, labels and validity of test images, `[1, batch, ...]`."""
        tested = self.test_specs
        shard = jax.process_index(), jax.process_count()
        with contextlib.closing(self.data.test(tested[0].shape[1], shard)) as batches:
            for arrays in batches:
                yield tuple(
                    jax.make_array_from_process_local_data(
                        shape.sharding, array[None], shape.shape
                    )
                    # [batch, ...] -> [1, batch, ...]
                    for array, shape in zip(arrays, tested, strict=True)
                )
