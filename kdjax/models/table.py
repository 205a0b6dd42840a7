"""A placeholder network for stages with given predictions: it is never run."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from kdjax.models.base import Outputs

NAME = "kdjax.models.table:Table()"
"""The name of the network of a stage with given predictions."""


class Table(nn.Module):
    """A network with logits of the right shape, no features and no parameters.

    It is the network of a stage that is given a table of predictions, so that the
    shapes of a method's targets can be computed. The targets' values come from the
    table; if this network ran by mistake, every loss would be NaN and end the run.

    Attributes:
        num_classes: the number of classes.
    """

    num_classes: int

    def __call__(self, images: jax.Array, train: bool = False) -> Outputs:
        """Returns logits that are all NaN, `[batch, classes]`."""
        return Outputs(jnp.full((len(images), self.num_classes), jnp.nan), {})
