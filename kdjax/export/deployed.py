"""A network as it is deployed, without anything that only training needs."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from kdjax import models
from kdjax.data.stream import normalise
from kdjax.models import Variables
from kdjax.runtime import backend


@dataclasses.dataclass(frozen=True)
class Deployed:
    """A trained network and the format of its images.

    Attributes:
        model: its name.
        num_classes: the number of its logits.
        image_shape: height, width and channels.
        variables: 'params' and 'batch_stats'.
        mean: of each channel, on the scale 0 to 1.
        std: standard deviation of each channel.
    """

    model: str
    num_classes: int
    image_shape: tuple[int, int, int]
    variables: Variables
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def apply(self, uint8: bool = False) -> Callable[[jax.Array], jax.Array]:
        """Returns the function from images to float32 logits, to be traced.

        Args:
            uint8: whether it takes uint8 images `[N, height, width, channels]` and
                normalises them; otherwise it takes normalised float32 images.
        """
        network = models.create(self.model, self.num_classes)
        variables = jax.tree.map(
            lambda leaf: jnp.asarray(leaf, jnp.float32), self.variables
        )

        def logits(images: jax.Array) -> jax.Array:
            if uint8:
                images = normalise(images, self.mean, self.std, jnp.dtype(jnp.float32))
            # Grouped convolutions stay grouped: other runtimes are not slow with them.
            with backend.compiling_for("tpu"):
                outputs = network.apply(variables, images, train=False)
            return outputs.logits

        return logits
