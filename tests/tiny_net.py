"""The smallest network with all features, for tests that compile many programs."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from kdjax.models import Outputs
from kdjax.models.layers import ConvBatchNorm

VERSION = 1


class TinyNet(nn.Module):
    """A stem and three stages of one convolution each."""

    width: int
    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> Outputs:
        x = ConvBatchNorm(self.width, name="stem")(x, train)
        features = {"stem": nn.relu(x)}
        x = features["stem"]
        for stage in (1, 2, 3):
            conv = ConvBatchNorm(
                self.width * stage, strides=1 if stage == 1 else 2, name=f"stage{stage}"
            )
            features[f"stage{stage}_pre"] = conv(x, train)
            x = features[f"stage{stage}"] = nn.relu(features[f"stage{stage}_pre"])
        features["pooled"] = jnp.mean(x, axis=(1, 2))
        logits = nn.Dense(self.num_classes, name="head")(features["pooled"])
        return Outputs(logits, features)


def create(name: str, num_classes: int) -> TinyNet:
    """Returns the network for 'tiny-WIDTH'."""
    return TinyNet(int(name.split("-")[1]), num_classes)
