"""An exported model: images in, logits or the best classes out."""

import dataclasses
import itertools
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kdjax.data import pixels
from kdjax.predict import description
from kdjax.predict.runtimes import open_network
from kdjax.runtime.errors import UserError

BATCH = 16
"""Images of a call; larger batches were no faster, and take longer to be full."""

_AHEAD = 2  # batches in work, for every thread: each finds its next one waiting
_MOST_THREADS = 16  # beyond them, Python's own lock is what they wait for

Answer = np.ndarray | UserError
"""An image's logits, float32 `[classes]`; or why it cannot be read."""


@dataclasses.dataclass(frozen=True)
class ClassScore:
    """A class and how likely it is.

    Attributes:
        name: of the class; its number where the model has no names.
        index: of the class.
        probability: by the softmax of the logits.
    """

    name: str
    index: int
    probability: float


class Model:
    """A network that `python -m kdjax.export` wrote.

    Attributes:
        description: the content of its model.json.
        threads: how many batches are in work at once.
        batch_size: images of a batch.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        int8: bool = False,
        *,
        threads: int | None = None,
        batch_size: int = BATCH,
    ):
        """Opens the network.

        Args:
            folder: with model.json and the network's file.
            int8: take the quantised network.
            threads: that decode images and run the network; None takes the cores that
                this process may use, at most 16.
            batch_size: images per batch.

        Raises:
            UserError: a folder without such a network, a damaged file, or a runtime
                that is not installed.
        """
        threads = min(_cores(), _MOST_THREADS) if threads is None else threads
        for name, value in (("threads", threads), ("batch_size", batch_size)):
            if value < 1:
                raise UserError(f"{name}={value} must be 1 or more")
        self.description = description.read(Path(folder), int8)
        self.threads = threads
        self.batch_size = batch_size
        self._network = open_network(self.description, batch_size)

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes' names, or their numbers where the model has no names."""
        return self.description.classes

    def logits(self, images: Any) -> np.ndarray:
        """Returns the logits of images, float32 `[N, classes]`.

        Args:
            images: uint8 `[N, H, W]` or `[N, H, W, C]`; or a sequence whose items are
                paths of image files, PIL images, or uint8 arrays `[H, W]` or
                `[H, W, C]`; or one path or PIL image. Of any size: they are scaled to
                just cover the model's, and the middle is cropped.

        Raises:
            UserError: an image that cannot be read, or pixels that are not uint8.
        """
        if isinstance(images, str | os.PathLike | Image.Image):
            images = [images]
        if not isinstance(images, Sequence):
            images = pixels.check_array(images, "images")
        logits = np.empty((len(images), len(self.classes)), np.float32)
        for row, (_, answer) in zip(logits, self.stream(images), strict=True):
            if isinstance(answer, UserError):
                raise answer
            row[:] = answer
        return logits

    def predict(self, images: Any, top: int = 5) -> list[list[ClassScore]]:
        """Returns the best classes of each image, the best one first.

        Args:
            images: as of `logits`.
            top: how many classes; a model with fewer gives all it has.

        Raises:
            UserError: as of `logits`; or `top` is below 1.
        """
        return [self.best(row, top) for row in self.logits(images)]

    def best(self, logits: np.ndarray, top: int = 5) -> list[ClassScore]:
        """Returns the best classes for an image's logits `[classes]`.

        Raises:
            UserError: `top` is below 1.
        """
        if top < 1:
            raise UserError(f"top={top} must be 1 or more")
        wide = np.asarray(logits, np.float64)
        weights = np.exp(wide - wide.max())
        order = np.argsort(-wide, kind="stable")[:top]
        shares = weights[order] / weights.sum()
        return [
            ClassScore(self.classes[index], int(index), float(share))
            for index, share in zip(order, shares, strict=True)
        ]

    def stream(self, images: Iterable[Any]) -> Iterator[tuple[Any, Answer]]:
        """Yields each image as it was given, with its logits, in the order given.

        Holds a few batches at a time, however many images there are.

        Args:
            images: paths of image files, PIL images, or uint8 arrays.

        Yields:
            An item and its logits, float32 `[classes]`, or the error that explains why
            this one cannot be read.
        """
        numbered = enumerate(images)
        batches = iter(lambda: list(itertools.islice(numbered, self.batch_size)), [])
        waiting: deque[Future[list[tuple[Any, Answer]]]] = deque()
        pool = ThreadPoolExecutor(self.threads)
        try:
            for batch in batches:
                waiting.append(pool.submit(self._answer, batch))
                if len(waiting) >= _AHEAD * self.threads:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _answer(self, batch: list[tuple[int, Any]]) -> list[tuple[Any, Answer]]:
        """Decodes a batch and runs the network on those that can be read."""
        shape = self.description.image_shape
        images = np.empty((len(batch), *shape), np.uint8)
        answers: list[tuple[Any, Answer]] = []
        readable = 0
        errors: dict[int, UserError] = {}
        for place, (number, item) in enumerate(batch):
            try:
                images[readable] = pixels.fit_one(item, number, shape)
                readable += 1
            except UserError as error:
                errors[place] = error
        rows = iter(self._network(images[:readable]) if readable else ())
        for place, (_, item) in enumerate(batch):
            answers.append((item, errors[place] if place in errors else next(rows)))
        return answers


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
