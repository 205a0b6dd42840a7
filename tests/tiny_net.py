"""The smallest network with all features, for tests that compile many programs."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from kdjax.models import Outputs
from kdjax.models.layers import ConvBatchNorm

VERSION = 1


class TinyNet(nn.Module):
    """A stem and three stages of one convolution each, or of several."""

    width: int
    depth: int
    num_classes: int

    def norms(self) -> dict[str, tuple[str, ...]]:
        """Where the BatchNorms before the activations are."""
        last = f"_{self.depth - 1}" if self.depth > 1 else ""
        return {f"stage{i}_pre": (f"stage{i}{last}", "bn") for i in (1, 2, 3)}

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> Outputs:
        x = ConvBatchNorm(self.width, name="stem")(x, train)
        features = {"stem": nn.relu(x)}
        x = features["stem"]
        for stage in (1, 2, 3):
            conv = ConvBatchNorm(
                self.width * stage, strides=1 if stage == 1 else 2, name=f"stage{stage}"
            )
            x = conv(x, train)
            for further in range(1, self.depth):
                name = f"stage{stage}_{further}"
                x = ConvBatchNorm(self.width * stage, name=name)(nn.relu(x), train)
            features[f"stage{stage}_pre"] = x
            x = features[f"stage{stage}"] = nn.relu(x)
        features["pooled"] = jnp.mean(x, axis=(1, 2))
        logits = nn.Dense(self.num_classes, name="head")(features["pooled"])
        return Outputs(logits, features)


def create(name: str, num_classes: int) -> TinyNet:
    """Returns the network for 'tiny-WIDTH' or 'tiny-WIDTH-DEPTH'."""
    width, *depth = map(int, name.split("-")[1:])
    return TinyNet(width, *(depth or [1]), num_classes)
