"""A data set kept on the devices as uint8, shared by all stages, and its `Feed`.

Batches are gathered and augmented on the device: the host has no work in a step. A data
set that does not fit there is fed by `kdjax.data.streaming.feed`.
"""

import dataclasses
import math
from collections.abc import Generator, Iterator, Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from kdjax.data.sources import Dataset, Source, Split
from kdjax.data.stream import Batch, Stream
from kdjax.runtime import parallel
from kdjax.runtime.rng import fold

_EVAL_BATCH = 256

Leaf = jax.Array | jax.ShapeDtypeStruct
"""An array on the devices, or its shape if no program is run."""


@dataclasses.dataclass(frozen=True)
class DeviceDataset:
    """A data set on the devices, or the shapes of one.

    Attributes:
        dataset: the data set in the host's memory, or its description.
        train: images `[N, height, width, channels]` and labels `[N]`.
        test: images, labels and validity in batches, `[count, batch, ...]`; the last
            batch is padded with examples that are not valid.
    """

    dataset: Dataset | Source
    train: tuple[Leaf, Leaf]
    test: tuple[Leaf, Leaf, Leaf]


def place(dataset: Dataset, mesh: Mesh) -> DeviceDataset:
    """Returns a data set on every device of a mesh."""
    train = dataset.train.images, dataset.train.labels
    test = _in_batches(dataset.test, mesh.size)
    everywhere = parallel.replicated(mesh)
    return DeviceDataset(
        dataset, parallel.place(train, everywhere), parallel.place(test, everywhere)
    )


def shapes(source: Dataset | Source, mesh: Mesh) -> DeviceDataset:
    """Returns the shapes of the result of `place`, for programs that are not run.

    Args:
        source: the data set, or its description.
        mesh: may consist of devices that this machine does not have.
    """
    everywhere = parallel.replicated(mesh)

    def arrays(*leading: int) -> tuple[Leaf, Leaf]:
        shapes = (*leading, *source.image_shape), leading
        return (
            jax.ShapeDtypeStruct(shapes[0], jnp.uint8, sharding=everywhere),
            jax.ShapeDtypeStruct(shapes[1], jnp.int32, sharding=everywhere),
        )

    batches = _batches(source.test_size, mesh.size)
    valid = jax.ShapeDtypeStruct(batches, jnp.bool_, sharding=everywhere)
    return DeviceDataset(source, arrays(source.train_size), (*arrays(*batches), valid))


def _batches(size: int, devices: int) -> tuple[int, int]:
    """Returns the number of test batches and of the images in each."""
    # A multiple of the devices, so that a batch is sharded evenly.
    batch = math.ceil(min(_EVAL_BATCH, size) / devices) * devices
    return math.ceil(size / batch), batch


def _in_batches(
    split: Split, devices: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    size = len(split.labels)
    count, batch = _batches(size, devices)

    def batches(array: np.ndarray) -> np.ndarray:
        # The padding is not valid, so that no test image counts twice.
        padded = np.zeros((count * batch, *array.shape[1:]), array.dtype)
        padded[:size] = array
        return padded.reshape(count, batch, *array.shape[1:])  # [count, batch, ...]

    return batches(split.images), batches(split.labels), batches(np.ones(size, bool))


@dataclasses.dataclass(frozen=True, eq=False)
class DeviceFeed:
    """A `Feed` from the devices' own copy of the data set.

    Attributes:
        data: the data set on the devices.
        stream: the order of the images, and their augmentation.
        mesh: of the programs.
        micro_batches: the number of micro-batches in a step's batch.
    """

    data: DeviceDataset
    stream: Stream
    mesh: Mesh
    micro_batches: int = 1
    max_steps_per_dispatch: ClassVar[int] = 1_000_000
    """No limit: the steps of an epoch share its dispatch inputs."""

    @property
    def train_arrays(self) -> tuple[Leaf, Leaf]:
        """All training images and labels, on every device."""
        return self.data.train

    @property
    def labels(self) -> np.ndarray:
        """The training labels, `[N]`."""
        return parallel.fetch(self.data.train[1])

    @property
    def dispatch_specs(self) -> jax.ShapeDtypeStruct:
        """The shape of the dispatch inputs: the epoch's order, by replica."""
        return jax.ShapeDtypeStruct(
            (self.mesh.shape["replica"], self.stream.size),
            jnp.int32,
            sharding=parallel.over_replicas(self.mesh),
        )

    def epoch(
        self, seeds: Sequence[int], epoch: int, first: int, width: int
    ) -> Generator[tuple[int, jax.Array]]:
        """Yields the number of the next steps, and the epoch's order by replica."""
        orders = [
            self.stream.order(fold(jax.random.key(seed), "stream"), epoch)
            for seed in seeds
        ]
        by_replica = parallel.over_replicas(self.mesh)
        # On the devices once: all dispatches of the epoch share it.
        placed = parallel.place(parallel.stack(orders), by_replica)
        while first < self.stream.steps:
            count = min(width, self.stream.steps - first)
            yield count, placed
            first += count

    def micro_batch(
        self,
        dispatch_inputs: jax.Array,
        key: jax.Array,
        step: jax.Array,
        number: jax.Array | int,
    ) -> tuple[jax.Array, jax.Array]:
        """Returns positions in the training set and the augmentation's key."""
        key = fold(key, "stream")
        return self.stream.select(
            dispatch_inputs, key, step, number, self.micro_batches
        )

    def example_inputs(
        self, index: np.ndarray, seed: int, epoch: int
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the positions and the augmentation's key, on all devices."""
        key = fold(jax.random.key(seed), "stream", epoch, "augment")
        return parallel.place((index, key), parallel.replicated(self.mesh))

    def gather_examples(
        self,
        train_arrays: tuple[jax.Array, jax.Array],
        example_inputs: tuple[jax.Array, jax.Array],
    ) -> Batch:
        """Returns the examples, gathered, augmented and normalised on the device."""
        return self.stream.examples(train_arrays, *example_inputs)

    @property
    def test_specs(self) -> tuple[Leaf, Leaf, Leaf]:
        """The test images, labels and validity themselves."""
        return self.data.test

    def test(self) -> Iterator[tuple[Leaf, Leaf, Leaf]]:
        """Yields all test batches in one item, `[count, batch, ...]`."""
        yield self.data.test
