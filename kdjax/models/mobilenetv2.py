"""MobileNetV2 for small images, of half or full width.

Sandler et al., *MobileNetV2: Inverted Residuals and Linear Bottlenecks*, 2018, in the
form for CIFAR that Jin et al., *Knowledge Distillation via Route Constrained
Optimization*, 2019, use and the released code of CRD (Tian et al., 2020) builds. It
differs from the paper: the second stage does not halve the maps; ReLU replaces ReLU6;
the first block has an expansion layer too, of factor 1; and channels are not rounded to
multiples of 8.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from kdjax.models.base import Outputs
from kdjax.models.layers import ConvBatchNorm
from kdjax.runtime.errors import unknown

VERSION = 1

WIDTHS = ("0.5", "1.0")

# Per stage, groups of equal blocks: expansion, channels at full width, number of
# blocks, strides of the first block.
STAGES = (
    ((1, 16, 1, 1), (6, 24, 2, 1)),
    ((6, 32, 3, 2),),
    ((6, 64, 4, 2), (6, 96, 3, 1)),
    ((6, 160, 3, 2), (6, 320, 1, 1)),
)
"""The blocks of the network, by the stages that its features are named after."""


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution and linear projection around a shortcut."""

    features: int
    expansion: int
    strides: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Returns the block's output, which is not activated (linear bottleneck)."""
        inner = self.expansion * x.shape[-1]
        out = nn.relu(ConvBatchNorm(inner, 1, name="expand")(x, train))
        depthwise = ConvBatchNorm(
            inner, 3, self.strides, groups=inner, name="depthwise"
        )
        out = nn.relu(depthwise(out, train))
        out = ConvBatchNorm(self.features, 1, name="project")(out, train)
        if self.strides == 1 and out.shape == x.shape:
            out = out + x
        return out


class MobileNetV2(nn.Module):
    """MobileNetV2: a stem that halves the maps, 17 blocks and a layer of 1280 channels.

    The feature 'stem' is activated; 'stage1' to 'stage4' are the stages' outputs: a new
    stage begins where the maps are halved. The outputs are linear, so 'stage1_pre' to
    'stage4_pre' are the same maps.
    """

    width: float
    num_classes: int
    stages: tuple[tuple[tuple[int, int, int, int], ...], ...] = STAGES

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> Outputs:
        """Classifies images `[batch, height, width, channels]`."""
        stem = ConvBatchNorm(int(32 * self.width), strides=2, name="stem")
        x = nn.relu(stem(x, train))
        features = {"stem": x}
        for stage, groups in enumerate(self.stages, 1):
            number = 0
            for expansion, channels, blocks, strides in groups:
                for block in range(blocks):
                    number += 1
                    x = InvertedResidual(
                        int(channels * self.width),
                        expansion,
                        strides if block == 0 else 1,
                        name=f"stage{stage}_block{number}",
                    )(x, train)
            features |= {f"stage{stage}_pre": x, f"stage{stage}": x}
        x = nn.relu(ConvBatchNorm(1280, 1, name="last")(x, train))
        pooled = features["pooled"] = jnp.mean(x, axis=(1, 2))  # [B, H, W, C] -> [B, C]
        head = nn.Dense(
            self.num_classes, kernel_init=nn.initializers.normal(0.01), name="head"
        )
        return Outputs(head(pooled), features)


def create(name: str, num_classes: int) -> MobileNetV2:
    """Returns the network for a name like 'mobilenetv2-0.5' (half the width).

    Raises:
        UserError: there is no such width.
    """
    names = {f"mobilenetv2-{width}": float(width) for width in WIDTHS}
    if name not in names:
        raise unknown("model", name, names)
    return MobileNetV2(names[name], num_classes)
