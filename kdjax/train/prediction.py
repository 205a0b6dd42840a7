"""A finished network on images: its logits, batch by batch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.data.stream import normalise
from kdjax.models import Variables
from kdjax.runtime import backend
from kdjax.train.model_outputs import apply_model

_BATCH = 256


class Predictor:
    """Computes a network's logits of images as they are stored.

    One program is compiled for all batches, when the first is asked for.
    """

    def __init__(
        self,
        model: str,
        num_classes: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        dtype: jnp.dtype = jnp.float32,
        compute: jnp.dtype = jnp.float32,
    ):
        """Compiles nothing yet.

        Args:
            model: the network's name.
            num_classes: the length of its logits.
            mean: of each channel, or one for all, on the scale 0 to 1.
            std: standard deviation, likewise.
            dtype: of the logits.
            compute: of the network's computation.
        """
        self._num_classes = num_classes

        def apply(variables: Variables, images: jax.Array) -> jax.Array:
            pixels = normalise(images, mean, std, dtype)
            outputs, _ = apply_model(
                model, num_classes, compute, False, variables, pixels
            )
            return outputs.logits.astype(dtype)

        self._apply = jax.jit(apply, compiler_options=backend.compiler_options())

    def logits(self, variables: Variables, images: np.ndarray) -> np.ndarray:
        """Returns logits, `[N, classes]`.

        Args:
            variables: the network's.
            images: uint8 `[N, height, width, channels]`, of the network's size.
        """
        batch = functools.partial(_filled, images)
        rows = [
            np.asarray(self._apply(variables, batch(start)))
            for start in range(0, len(images), _BATCH)
        ]
        if not rows:
            return np.zeros((0, self._num_classes), np.float32)
        return np.concatenate(rows)[: len(images)]


def _filled(images: np.ndarray, start: int) -> np.ndarray:
    """Returns a batch of images; the last one is filled up with black ones."""
    part = images[start : start + _BATCH]
    padding = [(0, _BATCH - len(part)), *[(0, 0)] * (images.ndim - 1)]
    return np.pad(part, padding)
