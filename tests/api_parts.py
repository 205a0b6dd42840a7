"""A small network and small data for the tests of the Python interface."""

import flax.linen as nn
import jax
import numpy as np
from sklearn.datasets import load_digits


def load():
    """Returns training and test images of the digits, each with their labels."""
    found = load_digits()
    images = np.round(found.images * 255 / 16).astype(np.uint8)
    return (images[:384], found.target[:384]), (images[384:512], found.target[384:512])


class Net(nn.Module):
    """One's own network: images to logits, and nothing of kdjax's."""

    num_classes: int = 10
    width: int = 16

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = nn.Conv(self.width, (3, 3), 2, name="conv")(x)
        x = nn.BatchNorm(not train, momentum=0.9, name="bn")(x)
        x = nn.Conv(self.width, (3, 3), name="deep")(nn.relu(x))
        return nn.Dense(self.num_classes, name="head")(nn.relu(x).reshape(len(x), -1))
