"""Feeds a stage's programs from a data set that is read as it is used.

The counterpart of `kdjax.data.device_feed`: every step is given its images by worker
processes, which decode the next ones while the devices compute.
"""

import contextlib
import dataclasses
import math
from collections.abc import Generator, Iterator, Sequence
from typing import Any, ClassVar

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
    """Feeds the programs of one replica, step by step.

    Attributes:
        data: the data set.
        stream: which images come when.
        mesh: of the programs; its axis 'replica' is 1 long.
        micro_batches: in a step.
    """

    data: Streamed
    stream: Stream
    mesh: Mesh
    micro_batches: int = 1
    max_steps_per_dispatch: ClassVar[int] = 1
    """How many steps one call of a program can make: all that it is given is one's."""

    train_arrays: ClassVar[Any] = ()

    @property
    def labels(self) -> np.ndarray:
        """The training labels, `[N]`."""
        return self.data.labels

    @property
    def dispatch_specs(self) -> Any:
        """The shapes of what `epoch` gives: images, labels and positions of a step."""
        shape = 1, self.micro_batches, self.stream.batch_size // self.micro_batches
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
    ) -> Generator[tuple[int, Any]]:
        """Yields 1, and what the program is given for the next step.

        Args:
            seeds: the replica's, as the only one.
            epoch: counted from 0.
            first: the step within the epoch to begin with.
            width: 1.
        """
        (seed,), count = seeds, jax.process_count()
        order = np.asarray(
            self.stream.order(fold(jax.random.key(seed), "stream"), epoch)
        )
        rows = order[: self.stream.steps * self.stream.batch_size]
        # A process's slice of a batch holds its slice of every part.
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

    def draw(
        self,
        train_arrays: Any,
        dispatch_inputs: Any,
        key: jax.Array,
        step: jax.Array,
        part: jax.Array | int,
        parts: int,
    ) -> Batch:
        """Returns a part of a step's batch, inside the program."""
        del train_arrays, key, step, parts
        images, labels, index = (array[part] for array in dispatch_inputs)
        return Batch(self._normalised(images), labels, index)

    def _normalised(self, images: jax.Array) -> jax.Array:
        stream = self.stream
        return normalise(images, stream.mean, stream.std, stream.dtype)

    def choose(self, index: np.ndarray, seed: int, epoch: int) -> Any:
        """Returns the images of examples as they look in an epoch, on the devices.

        Args:
            index: `[batch]` positions in the training set.
            seed: of the stream.
            epoch: counted from 0.
        """
        images = self.data.examples(index, seed, epoch).images
        return parallel.place(images, parallel.over_devices(self.mesh))

    def pick(self, train_arrays: Any, chosen: Any) -> jax.Array:
        """Returns the chosen images, inside a program."""
        del train_arrays
        return self._normalised(chosen)

    @property
    def test_specs(self) -> Any:
        """The shapes of what `test` yields."""
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

    def test(self) -> Iterator[Any]:
        """Yields images, labels and validity of test images, `[1, batch, ...]`."""
        tested = self.test_specs
        shard = jax.process_index(), jax.process_count()
        with contextlib.closing(self.data.test(tested[0].shape[1], shard)) as batches:
            for arrays in batches:
                yield tuple(
                    jax.make_array_from_process_local_data(
                        shape.sharding, array[None], shape.shape
                    )
                    for array, shape in zip(arrays, tested, strict=True)
                )
