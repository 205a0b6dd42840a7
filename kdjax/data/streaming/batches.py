"""Batches of a streamed data set, made from positions in any process or thread."""

import dataclasses
from collections.abc import Callable
from typing import ClassVar, Protocol

import numpy as np

from kdjax.data.streaming.crop import evaluation, sample_uniform
from kdjax.data.streaming.encoded import Example, Records
from kdjax.data.streaming.prefetch import Made

_PATIENCE = 100  # this many unreadable examples in a row mean a damaged data set


@dataclasses.dataclass(frozen=True, eq=False)
class HostBatch:
    """A process's part of a training batch, in the host's memory.

    Attributes:
        images: uint8 `[batch, height, width, channels]`.
        labels: int32 `[batch]`.
        index: int32 `[batch]` positions in the training set.
    """

    images: np.ndarray
    labels: np.ndarray
    index: np.ndarray


class Varied(Protocol):
    """How training images are cut out and varied on the host."""

    DRAWS: ClassVar[int]
    """How many uniform numbers decide what one example looks like."""

    def training(self, content: bytes, size: int, uniform: np.ndarray) -> np.ndarray:
        """Returns an encoded image as training sees it, uint8 `[size, size, C]`."""


@dataclasses.dataclass(frozen=True, eq=False)
class BatchMaker:
    """Makes batches from positions, in any process; position -1 is padding.

    Attributes:
        examples: the encoded examples to read.
        numbers: the record of each position.
        size: height and width of the images.
        crop: how training images are cut; None for test images.
        seed: of the stream.
        epoch: counted from 0.
        channels: of the images.
        evaluation: makes test images of contents and `size`.
    """

    examples: Records
    numbers: np.ndarray
    size: int
    crop: Varied | None = None
    seed: int = 0
    epoch: int = 0
    channels: int = 3
    evaluation: Callable[[bytes, int], np.ndarray] = evaluation

    def __call__(self, index: np.ndarray) -> Made:
        """Returns images, labels, index or validity, and the broken records."""
        shape = len(index), self.size, self.size, self.channels
        images = np.zeros(shape, np.uint8)
        labels = np.zeros(len(index), np.int32)
        valid = np.zeros(len(index), bool)
        broken: list[tuple[str, str]] = []
        rows = np.flatnonzero(index >= 0)
        examples = self.examples.read(self.numbers[index[rows]])
        for row, example in zip(rows, examples, strict=True):
            used = self._fill(images[row], int(index[row]), example, broken)
            if used is not None:
                labels[row], valid[row] = used.label, True
        # Test batches need to know their padding; training batches have none.
        third = valid if self.crop is None else index.astype(np.int32)
        return images, labels, third, tuple(broken)

    def _fill(
        self,
        image: np.ndarray,
        index: int,
        example: Example | Exception,
        broken: list[tuple[str, str]],
    ) -> Example | None:
        """Writes an example into `image` and returns the example that was used.

        A training example that cannot be read is replaced by the next readable one of
        the set, with the crop of the first: the result depends on the files alone.
        """
        position = index
        for _ in range(min(_PATIENCE, len(self.numbers))):
            try:
                if isinstance(example, Exception):
                    raise example
                # The crop of `index`, also for the image of a later position.
                image[:] = self._view(example.content, index)
                return example
            except Exception as error:  # PIL raises many kinds for damaged files
                name = "" if isinstance(example, Exception) else f" ({example.name})"
                reason = (str(error) or type(error).__name__).splitlines()[0]
                record = f"{self.examples.split} record {self.numbers[position]}{name}"
                broken.append((record, reason))
            if self.crop is None:
                return None
            position = (position + 1) % len(self.numbers)
            (example,) = self.examples.read(self.numbers[[position]])
        what = "; ".join(map(": ".join, broken[-1:]))
        raise self.examples.damaged(f"no image readable: {what}")

    def _view(self, content: bytes, index: int) -> np.ndarray:
        if self.crop is None:
            return self.evaluation(content, self.size)
        uniform = sample_uniform(self.seed, self.epoch, index, self.crop.DRAWS)
        return self.crop.training(content, self.size, uniform)
