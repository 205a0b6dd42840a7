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
    """The augmentation of training images on the host."""

    DRAWS: ClassVar[int]
    """The number of uniform random numbers for one example."""

    def training(self, content: bytes, size: int, uniform: np.ndarray) -> np.ndarray:
        """Returns an image decoded and augmented for training.

        Args:
            content: the encoded image.
            size: height and width of the result.
            uniform: random numbers in [0, 1).

        Returns:
            uint8 `[size, size, C]`.
        """


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
        evaluation: makes test images from contents and `size`.
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
        the set, with the crop of the first, so the result depends on the files only.
        """
        position = index
        for _ in range(min(_PATIENCE, len(self.numbers))):
            try:
                if isinstance(example, Exception):
                    raise example
                # The crop of `index`, also for the image of a later position.
                image[:] = self._view(example.content, index)
                return example
            except (
                Exception
            ) as error:  # PIL raises many kinds of errors for damaged files
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
