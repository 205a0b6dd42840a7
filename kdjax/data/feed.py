"""The interface of a feed: it provides a stage's compiled programs with examples.

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
"""A description of some examples as they look in one epoch."""
TestBatches = Any
"""Images, labels and validity of test images, `[count, batch, ...]`."""


class Feed(Protocol):
    """Makes the training batches, the bank's examples and the test batches of a stage.

    An example is made in one way: `gather_examples` turns example inputs into a batch,
    inside a program. Example inputs come from `micro_batch`, inside the train program,
    or from `example_inputs`, on the host.
    """

    @property
    def mesh(self) -> Mesh:
        """The devices of the programs."""

    @property
    def stream(self) -> Stream:
        """Which images come when, and how they are varied."""

    @property
    def micro_batches(self) -> int:
        """Into how many micro-batches a step's batch is cut."""

    @property
    def max_steps_per_dispatch(self) -> int:
        """How many steps one call of the train program may make."""

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
        """Yields how many steps come next, and the dispatch inputs of these steps.

        Args:
            seeds: of the replicas that are trained side by side.
            epoch: counted from 0.
            first: the step within the epoch to begin with.
            width: how many steps one call of the program may make.
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
        """Returns example inputs on the devices, for examples as an epoch shows them.

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
        """Shapes and shardings of what `test` yields."""

    def test(self) -> Iterator[TestBatches]:
        """Yields all test batches, as many at a time as one call of a program takes."""
