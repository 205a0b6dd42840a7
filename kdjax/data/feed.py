"""The interface of a feed, which provides a stage's programs with examples.

`DeviceFeed` gathers from a data set on the devices; `StreamedFeed` takes images that
worker processes have read and decoded. A program works with either.
"""

from collections.abc import Generator, Iterator, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from kdjax.data.stream import Batch, Stream

# Trees of arrays, or of their shapes. Only the feed that made one knows its structure.
TrainArrays = Any
"""Inputs of every call of a program, shared by all replicas."""
DispatchInputs = Any
"""Further inputs for the steps of one call of the train program."""
ExampleInputs = Any
"""A description of some examples of one epoch."""
TestBatches = Any
"""Images, labels and validity of test images, `[count, batch, ...]`."""


class Feed(Protocol):
    """Makes the training batches, the bank's examples and the test batches of a stage.

    Examples are always made by `gather_examples`, which turns example inputs into a
    batch inside a program. Example inputs come from `micro_batch`, inside the train
    program, or from `example_inputs`, on the host.
    """

    @property
    def mesh(self) -> Mesh:
        """The devices of the programs."""

    @property
    def stream(self) -> Stream:
        """The order of the images, and their augmentation."""

    @property
    def micro_batches(self) -> int:
        """The number of micro-batches in a step's batch."""

    @property
    def max_steps_per_dispatch(self) -> int:
        """The largest number of steps per call of the train program."""

    @property
    def train_arrays(self) -> TrainArrays:
        """Inputs of every call of a program."""

    @property
    def labels(self) -> np.ndarray:
        """The training labels, `[N]`."""

    @property
    def dispatch_specs(self) -> DispatchInputs:
        """Shapes and shardings of the dispatch inputs that `epoch` yields."""

    def epoch(
        self, seeds: Sequence[int], epoch: int, first: int, width: int
    ) -> Generator[tuple[int, DispatchInputs]]:
        """Yields the number of the next steps, and the dispatch inputs of these steps.

        Args:
            seeds: of the replicas that are trained at once.
            epoch: counted from 0.
            first: the step within the epoch to begin with.
            width: the largest number of steps per call of the program.
        """

    def micro_batch(
        self,
        dispatch_inputs: DispatchInputs,
        key: jax.Array,
        step: jax.Array,
        number: jax.Array | int,
    ) -> ExampleInputs:
        """Returns a micro-batch's example inputs, inside the program, for one replica.

        Args:
            dispatch_inputs: one replica's.
            key: the replica's root key.
            step: the step's number in the stage.
            number: of the micro-batch.
        """

    def example_inputs(self, index: np.ndarray, seed: int, epoch: int) -> ExampleInputs:
        """Returns example inputs on the devices, for examples of an epoch.

        Args:
            index: `[batch]` positions in the training set.
            seed: of the stream.
            epoch: counted from 0.
        """

    def gather_examples(
        self, train_arrays: TrainArrays, example_inputs: ExampleInputs
    ) -> Batch:
        """Returns the batch that example inputs describe, inside a program."""

    @property
    def test_specs(self) -> TestBatches:
        """Shapes and shardings of the results of `test`."""

    def test(self) -> Iterator[TestBatches]:
        """Yields all test batches, for one call of a program at a time."""
