"""A data set that lives on the devices, as uint8, for all stages.

It feeds the compiled programs without any work of the host: batches are gathered and
varied on the device. What a program asks of it is the feeds' common interface; a data
set that does not fit is fed by `kdjax.data.streaming.feed`.
"""

import dataclasses
import math
from collections.abc import Generator, Iterator, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from kdjax.data.sources import Dataset, Source, Split
from kdjax.data.stream import Batch, Stream
from kdjax.runtime import parallel
from kdjax.runtime.rng import fold

_EVAL_BATCH = 256


@dataclasses.dataclass(frozen=True)
class DeviceDataset:
    """A data set on the devices, or the shapes of one.

    Attributes:
        dataset: the data set in the host's memory, or what is known of it.
        train: images `[N, height, width, channels]` and labels `[N]`.
        test: images, labels and validity in batches, `[count, batch, ...]`; the last
            batch is padded with examples that are not valid.
    """

    dataset: Dataset | Source
    train: tuple[Any, Any]
    test: tuple[Any, Any, Any]


def place(dataset: Dataset, mesh: Mesh) -> DeviceDataset:
    """Returns a data set on every device of a mesh."""
    train = dataset.train.images, dataset.train.labels
    test = _in_batches(dataset.test, mesh.size)
    everywhere = parallel.replicated(mesh)
    return DeviceDataset(
        dataset, parallel.place(train, everywhere), parallel.place(test, everywhere)
    )


def shapes(source: Source, mesh: Mesh) -> DeviceDataset:
    """Returns the shapes of what `place` returns, for programs that are not run.

    Args:
        source: what is known of the data set.
        mesh: need not be of this machine's devices.
    """
    everywhere = parallel.replicated(mesh)

    def arrays(*leading: int) -> tuple[Any, Any]:
        shapes = (*leading, *source.image_shape), leading
        return (
            jax.ShapeDtypeStruct(shapes[0], jnp.uint8, sharding=everywhere),
            jax.ShapeDtypeStruct(shapes[1], jnp.int32, sharding=everywhere),
        )

    batches = _batches(source.test_size, mesh.size)
    valid = jax.ShapeDtypeStruct(batches, jnp.bool_, sharding=everywhere)
    return DeviceDataset(source, arrays(source.train_size), (*arrays(*batches), valid))


def _batches(size: int, devices: int) -> tuple[int, int]:
    """Returns the number of test batches, and how many images each has."""
    batch = math.ceil(min(_EVAL_BATCH, size) / devices) * devices
    return math.ceil(size / batch), batch


def _in_batches(
    split: Split, devices: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    size = len(split.labels)
    count, batch = _batches(size, devices)

    def batches(array: np.ndarray) -> np.ndarray:
        padded = np.zeros((count * batch, *array.shape[1:]), array.dtype)
        padded[:size] = array
        return padded.reshape(count, batch, *array.shape[1:])

    return batches(split.images), batches(split.labels), batches(np.ones(size, bool))


@dataclasses.dataclass(frozen=True, eq=False)
class DeviceFeed:
    """Feeds a stage's programs from the devices' own copy of the data set.

    Attributes:
        data: the data set on the devices.
        stream: which images come when, and how they are varied.
        mesh: of the programs.
    """

    data: DeviceDataset
    stream: Stream
    mesh: Mesh
    max_steps_per_dispatch: ClassVar[int] = 1_000_000
    """How many steps one call of a program can make."""

    @property
    def train_arrays(self) -> Any:
        """What every call of the train program is given: images and labels."""
        return self.data.train

    @property
    def labels(self) -> np.ndarray:
        """The training labels, `[N]`."""
        return parallel.fetch(self.data.train[1])

    @property
    def dispatch_specs(self) -> Any:
        """The shapes of what `epoch` gives: orders by replica."""
        return jax.ShapeDtypeStruct(
            (self.mesh.shape["replica"], self.stream.size),
            jnp.int32,
            sharding=parallel.over_replicas(self.mesh),
        )

    def epoch(
        self, seeds: Sequence[int], epoch: int, first: int, width: int
    ) -> Generator[tuple[int, Any]]:
        """Yields how many steps come next, and what the program is given for them.

        Args:
            seeds: of the replicas that are trained side by side.
            epoch: counted from 0.
            first: the step within the epoch to begin with.
            width: how many steps one call of the program may make.
        """
        orders = [
            self.stream.order(fold(jax.random.key(seed), "stream"), epoch)
            for seed in seeds
        ]
        dispatch_inputs = parallel.stack(orders)
        dispatch_inputs = parallel.place(
            dispatch_inputs, parallel.over_replicas(self.mesh)
        )
        while first < self.stream.steps:
            count = min(width, self.stream.steps - first)
            yield count, dispatch_inputs
            first += count

    def draw(
        self,
        train_arrays: Any,
        dispatch_inputs: Any,
        key: jax.Array,
        step: jax.Array,
        part: jax.Array | int,
        parts: int,
    ) -> Batch:
        """Returns a part of a step's batch, inside the program, for one replica.

        Args:
            train_arrays: `train_arrays`, inside the program.
            dispatch_inputs: one replica's of what `epoch` yields.
            key: the replica's root key.
            step: the step's number in the stage.
            part: which part.
            parts: of how many.
        """
        return self.stream.batch(
            train_arrays, dispatch_inputs, fold(key, "stream"), step, part, parts
        )

    def choose(self, index: np.ndarray, seed: int, epoch: int) -> Any:
        """Returns what `pick` is given for examples as they look in an epoch.

        Args:
            index: `[batch]` positions in the training set.
            seed: of the stream.
            epoch: counted from 0.
        """
        key = fold(jax.random.key(seed), "stream", epoch, "augment")
        return parallel.place((index, key), parallel.replicated(self.mesh))

    def pick(self, train_arrays: Any, chosen: Any) -> jax.Array:
        """Returns the chosen images, inside a program."""
        return self.stream.examples(train_arrays, *chosen).images

    @property
    def test_specs(self) -> Any:
        """The shapes of what `test` yields."""
        return self.data.test

    def test(self) -> Iterator[Any]:
        """Yields images, labels and validity of test images, `[count, batch, ...]`."""
        yield self.test_specs
