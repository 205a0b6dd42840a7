"""Data sets that do not fit into memory: read, decoded and cropped by worker processes.

    with opening.open_streamed("imagenet", folder) as data:
        for batch in data.train(order, seed, epoch, batch_size=256):
            ...

Example i in epoch e depends only on the seed, e and i: not on processes, workers,
batches, or how often the run was resumed.
"""

import os
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from kdjax.data import sources
from kdjax.data.streaming import crop as crops
from kdjax.data.streaming.batches import BatchMaker, HostBatch, Varied
from kdjax.data.streaming.encoded import Records
from kdjax.data.streaming.prefetch import Batches, Made
from kdjax.runtime.closing import Closing
from kdjax.runtime.console import console
from kdjax.runtime.errors import UserError

T = TypeVar("T")
Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]


class Streamed(Closing):
    """A data set that is read during training; `close` or `with` ends its workers.

    Attributes:
        name: its key in `sources.SOURCES`, or the kind of one's own data.
        version: the version of the files.
        num_classes: labels are below this number.
        image_shape: height, width and channels.
        train_size: the number of training images.
        test_size: the number of test images.
        mean: mean of each channel, on the scale 0 to 1.
        std: standard deviation of each channel, on the scale 0 to 1.
        content: a hash of the files, not of their folder, for fingerprints.
        crop: the augmentation of training images.
        classes: their names by label, if they are known.
    """

    def __init__(
        self,
        source: sources.Source,
        train: tuple[Records, np.ndarray],
        test: tuple[Records, np.ndarray],
        crop: Varied,
        workers: int,
        broken: str,
        *,
        name: str,
        version: str,
        content: str,
        evaluation: Callable[[bytes, int], np.ndarray] = crops.evaluation,
    ):
        """Makes the object; files are read when batches are.

        Args:
            source: the data set's description.
            train: the training records, and the record number of each position.
            test: the same for the test images.
            crop: the augmentation of training images.
            workers: see `opening.open_streamed`.
            broken: see `opening.open_streamed`.
            name: of the data set.
            version: of its files.
            content: their hash.
            evaluation: makes test images from contents and their height and width.
        """
        self.name, self.version, self.content = name, version, content
        self.num_classes, self.image_shape = source.num_classes, source.image_shape
        self.mean, self.std, self.classes = source.mean, source.std, source.classes
        self.crop = crop
        self._evaluation = evaluation
        self.train_size, self.test_size = len(train[1]), len(test[1])
        self._train, self._test = train, test
        self._workers, self._broken = workers, broken
        self._told: set[str] = set()
        self._running: weakref.WeakSet[Batches] = weakref.WeakSet()

    def train(
        self,
        order: np.ndarray,
        seed: int,
        epoch: int,
        batch_size: int,
        start: int = 0,
        shard: tuple[int, int] = (0, 1),
    ) -> Batches[HostBatch]:
        """Returns this process's part of an epoch's batches.

        Args:
            order: the epoch's order of positions in the training set; the tail that
                fills no batch is dropped.
            seed: of the stream, from 0 to 2**64 - 1.
            epoch: counted from 0.
            batch_size: images per step, of all processes together.
            start: the first step to return.
            shard: this process's number and the number of processes; each has a slice
                of every batch.

        Raises:
            UserError: positions do not exist, or the batch cannot be divided.
        """
        order = np.asarray(order)
        steps = len(order) // batch_size
        if not 0 <= start <= steps:
            raise UserError(f"start={start} must be from 0 to {steps} steps")
        # A resumed run skips the steps before `start` without reading them.
        rows = self._positions(order[start * batch_size : steps * batch_size])
        part = _share(rows.reshape(-1, batch_size), shard)
        make = self._views(seed, epoch)
        return self._start(make, part, lambda made: HostBatch(*self._checked(made)))

    def test(self, batch_size: int, shard: tuple[int, int] = (0, 1)) -> Batches[Arrays]:
        """Returns this process's part of all test images, each once.

        Batches are images, labels and validity, as in `DeviceDataset.test`; padding and
        images that cannot be read are not valid.

        Args:
            batch_size: images per step, of all processes together.
            shard: as for `train`.

        Raises:
            UserError: the batch cannot be divided.
        """
        # Rounded up to whole batches, of which the last is padded with -1.
        rows = np.full(-(-self.test_size // batch_size) * batch_size, -1, np.int32)
        rows[: self.test_size] = np.arange(self.test_size)
        part = _share(rows.reshape(-1, batch_size), shard)
        make = BatchMaker(
            *self._test,
            self.image_shape[0],
            channels=self.image_shape[2],
            evaluation=self._evaluation,
        )
        return self._start(make, part, self._checked)

    def examples(self, index: np.ndarray, seed: int, epoch: int) -> HostBatch:
        """Returns given examples of an epoch, decoded in threads.

        Args:
            index: positions in the training set.
            seed: as for `train`.
            epoch: as for `train`.
        """
        index = self._positions(index)
        return HostBatch(*self._in_threads(self._views(seed, epoch), index))

    def evaluated(self, split: str, index: np.ndarray) -> Arrays:
        """Returns given examples for evaluation, decoded in threads.

        Images that cannot be read are reported and not valid, as in `test`.

        Args:
            split: 'train' or 'test'.
            index: positions in the split.

        Returns:
            Images, labels and validity.
        """
        make = BatchMaker(
            *(self._train if split == "train" else self._test),
            self.image_shape[0],
            channels=self.image_shape[2],
            evaluation=self._evaluation,
        )
        return self._in_threads(make, np.asarray(index, np.int32))

    def _in_threads(self, make: BatchMaker, index: np.ndarray) -> Arrays:
        threads = min(
            max(1, self._workers or (os.cpu_count() or 1)), max(1, len(index))
        )
        with ThreadPoolExecutor(threads) as pool:
            parts = list(pool.map(make, np.array_split(index, threads)))
        images, labels, third = (
            np.concatenate([part[field] for part in parts]) for field in range(3)
        )
        broken = tuple(one for part in parts for one in part[3])
        return self._checked((images, labels, third, broken))

    @property
    def labels(self) -> np.ndarray:
        """The training labels, `[N]`; the first call reads all records."""
        examples, numbers = self._train
        return examples.labels()[numbers]

    def close(self) -> None:
        """Ends all workers and iterators."""
        for batches in list(self._running):
            batches.close()

    def _views(self, seed: int, epoch: int) -> BatchMaker:
        if not 0 <= seed < 2**64:
            raise UserError(f"stream seed {seed} must be from 0 to 2**64 - 1")
        return BatchMaker(
            *self._train,
            self.image_shape[0],
            self.crop,
            seed,
            epoch,
            channels=self.image_shape[2],
        )

    def _positions(self, index: np.ndarray) -> np.ndarray:
        index = np.asarray(index, np.int32)
        if index.size and not 0 <= index.min() <= index.max() < self.train_size:
            raise UserError(
                f"positions from {index.min()} to {index.max()} in a training set of "
                f"{self.train_size} images"
            )
        return index

    def _start(
        self, make: BatchMaker, rows: np.ndarray, finish: Callable[[Made], T]
    ) -> Batches[T]:
        batches = Batches(make, rows, self._workers, finish)
        self._running.add(batches)
        return batches

    def _checked(self, made: Made) -> Arrays:
        """Returns the arrays; reports each broken record once, or raises UserError."""
        *arrays, broken = made
        for record, reason in broken:
            line = f"{self.name}: {record} cannot be read: {reason}"
            if self._broken == "stop":
                raise UserError(f"{line}; broken='skip' continues without it")
            if record not in self._told:
                self._told.add(record)
                console.print(f"{line}; skipped", markup=False)
        return arrays[0], arrays[1], arrays[2]


Images = sources.Dataset | Streamed
"""A data set, in memory or streamed."""


def _share(rows: np.ndarray, shard: tuple[int, int]) -> np.ndarray:
    """Returns a process's slice of every batch, `[batches, batch / processes]`."""
    number, count = shard
    batch = rows.shape[1]
    if not 0 <= number < count or batch % count:
        raise UserError(
            f"batch_size={batch} cannot be divided among {count} processes "
            f"(process {number})"
        )
    size = batch // count
    return rows[:, number * size : (number + 1) * size]  # [batches, batch / processes]
