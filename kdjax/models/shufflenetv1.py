"""ShuffleNetV1 for small images, with 3 groups and width 1.

Zhang et al., *ShuffleNet: An Extremely Efficient Convolutional Neural Network for
Mobile Devices*, 2018, in the form for CIFAR of the released code of CRD (Tian et al.,
2020). It differs from the paper: the stem is a 1x1 convolution of full resolution,
without pooling, and a ReLU follows the depthwise convolutions.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from kdjax.models.base import Outputs
from kdjax.models.layers import (
    ConvBatchNorm,
    channel_shuffle,
    classify,
    torch_kernel,
)
from kdjax.runtime.errors import unknown

VERSION = 1

GROUPS = 3
STAGES = ((240, 4), (480, 8), (960, 4))
"""Channels and blocks of each stage."""


class Unit(nn.Module):
    """Grouped 1x1, shuffle, depthwise and grouped 1x1 convolution around a shortcut.

    With `strides` of 2 the shortcut is average-pooled and concatenated, not added:
    `features` counts the channels of both together.
    """

    features: int
    groups: int
    strides: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Returns the sum or concatenation, before the ReLU that ends the unit."""
        # The concatenated shortcut brings the remaining channels.
        outer = self.features - x.shape[-1] if self.strides == 2 else self.features
        inner = outer // 4
        out = ConvBatchNorm(
            inner, 1, groups=self.groups, kernel_init=torch_kernel, name="reduce"
        )(x, train)
        out = channel_shuffle(nn.relu(out), self.groups)
        out = ConvBatchNorm(
            inner,
            3,
            self.strides,
            groups=inner,
            kernel_init=torch_kernel,
            name="depthwise",
        )(out, train)
        out = ConvBatchNorm(
            outer, 1, groups=GROUPS, kernel_init=torch_kernel, name="expand"
        )(nn.relu(out), train)
        if self.strides == 1:
            return out + x
        # The padding's zeros count in the averages, as in PyTorch.
        x = nn.avg_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        return jnp.concatenate([out, x], -1)


class ShuffleNetV1(nn.Module):
    """ShuffleNet: three stages of 240, 480 and 960 channels, each halving the maps.

    The feature 'stem' is activated; 'stage1' to 'stage3' are the stages' outputs,
    'stage1_pre' to 'stage3_pre' their values before the last ReLU.
    """

    num_classes: int
    stages: tuple[tuple[int, int], ...] = STAGES

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> Outputs:
        """Classifies images `[batch, height, width, channels]`."""
        stem = ConvBatchNorm(24, 1, kernel_init=torch_kernel, name="stem")
        x = nn.relu(stem(x, train))
        features = {"stem": x}
        for stage, (channels, blocks) in enumerate(self.stages, 1):
            for block in range(1, blocks + 1):
                pre = Unit(
                    channels,
                    # The stem's 24 channels are too few for groups (the paper).
                    groups=1 if stage == block == 1 else GROUPS,
                    strides=2 if block == 1 else 1,
                    name=f"stage{stage}_block{block}",
                )(x, train)
                x = nn.relu(pre)
            features |= {f"stage{stage}_pre": pre, f"stage{stage}": x}
        return classify(x, features, self.num_classes)


def create(name: str, num_classes: int) -> ShuffleNetV1:
    """Returns the network 'shufflenetv1'.

    Raises:
        UserError: the name has anything after the family's.
    """
    if name != "shufflenetv1":
        raise unknown("model", name, ["shufflenetv1"])
    return ShuffleNetV1(num_classes)
