"""The stream of training batches: a pure function of (key, epoch, index).

Example i in epoch e depends only on the stream's key, e and i: not on stage, method or
role, devices, or how often the run was resumed.
"""

import dataclasses
import functools

import flax.struct
import jax
import jax.numpy as jnp

from kdjax.data.augment import Augment
from kdjax.data.own.vary import Vary
from kdjax.runtime.errors import UserError
from kdjax.runtime.rng import fold


@flax.struct.dataclass
class Batch:
    """One batch.

    Attributes:
        images: `[batch, height, width, channels]`, normalised.
        labels: `[batch]` integers.
        index: `[batch]` positions in the training set.
    """

    images: jax.Array
    labels: jax.Array
    index: jax.Array


def normalise(
    images: jax.Array, mean: tuple[float, ...], std: tuple[float, ...], dtype: jnp.dtype
) -> jax.Array:
    """Returns images scaled from 0..255 to 0..1, minus mean, divided by deviation."""
    shape = (1,) * (images.ndim - 1) + (-1,)  # [C] -> [1, ..., 1, C]
    scale = jnp.asarray(std, dtype).reshape(shape)
    shift = jnp.asarray(mean, dtype).reshape(shape)
    return (images.astype(dtype) / 255 - shift) / scale


@functools.partial(jax.jit, static_argnums=2)
def _order(key: jax.Array, epoch: jax.Array | int, size: int) -> jax.Array:
    examples = jnp.arange(size, dtype=jnp.int32)
    # From the epoch, not from a state: a resumed run needs no earlier permutation.
    return jax.random.permutation(fold(key, epoch, "order"), examples)


def check_batch_size(batch_size: int, size: int) -> None:
    """Raises UserError if a batch is larger than the training set."""
    if batch_size > size:
        raise UserError(
            f"batch_size={batch_size} is larger than the training set of {size} images"
        )


@dataclasses.dataclass(frozen=True)
class Stream:
    """The training stream of one data set, batch size and augmentation.

    An epoch has floor(size / batch_size) steps; the tail of its permutation is dropped,
    so that one compiled program serves all steps.

    Attributes:
        size: number of training images.
        batch_size: images per step.
        augment: the augmentation of the images.
        mean: per channel, for images of 0..1.
        std: per channel, for images of 0..1.
        dtype: of the normalised images.
    """

    size: int
    batch_size: int
    augment: Augment | Vary
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dtype: jnp.dtype = jnp.float32

    def __post_init__(self) -> None:
        check_batch_size(self.batch_size, self.size)

    @property
    def steps(self) -> int:
        """Steps per epoch."""
        return self.size // self.batch_size

    def order(self, key: jax.Array, epoch: jax.Array | int) -> jax.Array:
        """Returns the epoch's order of all examples, `[size]`.

        Args:
            key: the stream's key, `fold(replica key, 'stream')`.
            epoch: counted from 0.
        """
        return _order(key, epoch, self.size)

    def batch(
        self,
        data: tuple[jax.Array, jax.Array],
        order: jax.Array,
        key: jax.Array,
        step: jax.Array,
    ) -> Batch:
        """Returns the batch of a step, made on the device.

        Args:
            data: all training images (uint8) and labels.
            order: the epoch's order.
            key: the stream's key.
            step: the step's number in the stage.
        """
        return self.examples(data, *self.select(order, key, step))

    def select(
        self,
        order: jax.Array,
        key: jax.Array,
        step: jax.Array,
        micro_batch: jax.Array | int = 0,
        micro_batches: int = 1,
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the positions of a step's examples, and their augmentation's key.

        Args:
            order: the epoch's order.
            key: the stream's key.
            step: the step's number in the stage.
            micro_batch: the number of the micro-batch.
            micro_batches: their number in the step's batch.

        Returns:
            The arguments of `examples`: positions in the training set, `[micro-batch]`,
            and the key of the epoch.
        """
        epoch, position = step // self.steps, step % self.steps
        size = self.batch_size // micro_batches
        # Micro-batches are consecutive parts of the step's batch.
        start = position * self.batch_size + micro_batch * size
        # The step is traced, and so is the slice's start.
        index = jax.lax.dynamic_slice_in_dim(order, start, size)
        return index, fold(key, epoch, "augment")

    def examples(
        self, data: tuple[jax.Array, jax.Array], index: jax.Array, key: jax.Array
    ) -> Batch:
        """Returns examples, augmented for an epoch.

        Args:
            data: all training images (uint8) and labels.
            index: `[batch]` positions in the training set.
            key: of the epoch's augmentation; every example folds its position in.
        """
        images, labels = data
        # By position in the training set: the same keys in any batch layout.
        keys = jax.vmap(fold, in_axes=(None, 0))(key, index)
        varied = self.augment.apply(images[index], keys)
        return Batch(
            normalise(varied, self.mean, self.std, self.dtype), labels[index], index
        )
