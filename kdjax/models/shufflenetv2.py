"""ShuffleNetV2 of width 1 for small images.

Ma et al., *ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design*,
2018, in the form for CIFAR of the released code of CRD (Tian et al., 2020). It differs
from the paper: the stem is a 1x1 convolution of full resolution, without pooling.
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

STAGES = ((116, 4), (232, 8), (464, 4))
"""Channels and blocks of each stage, including the block that halves the maps."""


class Branch(nn.Module):
    """1x1 convolution with ReLU, depthwise and 1x1 convolution."""

    features: int
    strides: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Returns maps before the ReLU that ends the branch."""
        out = ConvBatchNorm(self.features, 1, kernel_init=torch_kernel, name="first")(
            x, train
        )
        out = _depthwise(self.features, self.strides)(nn.relu(out), train)
        return ConvBatchNorm(self.features, 1, kernel_init=torch_kernel, name="last")(
            out, train
        )


def _depthwise(features: int, strides: int) -> ConvBatchNorm:
    return ConvBatchNorm(
        features,
        3,
        strides,
        groups=features,
        kernel_init=torch_kernel,
        name="depthwise",
    )


class Shortcut(nn.Module):
    """Depthwise and 1x1 convolution: the other half of a block that halves the maps."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Returns maps before the ReLU that ends the branch."""
        x = _depthwise(x.shape[-1], 2)(x, train)
        return ConvBatchNorm(self.features, 1, kernel_init=torch_kernel, name="last")(
            x, train
        )


class ShuffleNetV2(nn.Module):
    """ShuffleNetV2: three stages of 116, 232 and 464 channels, each halving the maps.

    The feature 'stem' is activated; 'stage1' to 'stage3' are the stages' outputs.
    'stage1_pre' to 'stage3_pre' are their values before the last ReLU and, as in the
    released code, before the last shuffle: half of these channels is the last block's
    unchanged input, the other half the output of its branch.
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
            half = channels // 2
            for block in range(1, blocks + 1):
                name = f"stage{stage}_block{block}"
                if block == 1:
                    kept = Shortcut(half, name=f"{name}_shortcut")(x, train)
                    out = Branch(half, strides=2, name=name)(x, train)
                else:
                    # The last shuffle has mixed the channels of both branches.
                    kept = x[..., :half]
                    out = Branch(half, name=name)(x[..., half:], train)
                pre = jnp.concatenate([kept, out], -1)
                # The kept half is rectified already, which a second ReLU does not
                # change, or is the shortcut's output, which needs one.
                x = channel_shuffle(nn.relu(pre), 2)
            features |= {f"stage{stage}_pre": pre, f"stage{stage}": x}
        x = ConvBatchNorm(1024, 1, kernel_init=torch_kernel, name="last")(x, train)
        return classify(nn.relu(x), features, self.num_classes)


def create(name: str, num_classes: int) -> ShuffleNetV2:
    """Returns the network 'shufflenetv2'.

    Raises:
        UserError: the name has anything after the family's.
    """
    if name != "shufflenetv2":
        raise unknown("model", name, ["shufflenetv2"])
    return ShuffleNetV2(num_classes)
