"""A data set that lives on the devices, as uint8, for all stages."""

import dataclasses
import math

import jax
import numpy as np
from jax.sharding import Mesh

from kdjax import parallel
from kdjax.data.sources import Dataset, Split

_EVAL_BATCH = 256


@dataclasses.dataclass(frozen=True)
class Resident:
    """A data set on the devices.

    Attributes:
        dataset: the data set in the host's memory.
        train: images `[N, height, width, channels]` and labels `[N]`.
        test: images, labels and validity in batches, `[count, batch, ...]`; the last
            batch is padded with examples that are not valid.
    """

    dataset: Dataset
    train: tuple[jax.Array, jax.Array]
    test: tuple[jax.Array, jax.Array, jax.Array]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels."""
        return self.dataset.train.images.shape[1:]


def place(dataset: Dataset, mesh: Mesh) -> Resident:
    """Returns a data set on every device of a mesh."""
    train = dataset.train.images, dataset.train.labels
    test = _in_batches(dataset.test, mesh.size)
    everywhere = parallel.replicated(mesh)
    return Resident(
        dataset, jax.device_put(train, everywhere), jax.device_put(test, everywhere)
    )


def _in_batches(
    split: Split, devices: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    size = len(split.labels)
    batch = math.ceil(min(_EVAL_BATCH, size) / devices) * devices
    count = math.ceil(size / batch)

    def batches(array: np.ndarray) -> np.ndarray:
        padded = np.zeros((count * batch, *array.shape[1:]), array.dtype)
        padded[:size] = array
        return padded.reshape(count, batch, *array.shape[1:])

    return batches(split.images), batches(split.labels), batches(np.ones(size, bool))
