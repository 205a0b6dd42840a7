"""Residual networks for small images: ResNet-8 to ResNet-110, and four times as wide.

He et al., *Deep Residual Learning for Image Recognition*, 2016, as the released code of
CRD (Tian et al., 2020) builds them and the DGKD paper uses them: where the shape
changes, the shortcut is a 1x1 convolution with BatchNorm. `padded_resnet` has He's
padded identity instead.
"""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp

from kdjax.models.base import Outputs
from kdjax.models.layers import ConvBatchNorm, classify
from kdjax.runtime.errors import UserError

VERSION = 1


class Block(nn.Module):
    """Two 3x3 convolutions with BatchNorm around a shortcut (basic block).

    Attributes:
        features: channels of both convolutions.
        strides: of the first one.
        padded_shortcut: whether a shortcut that changes the shape adds channels of
            zeros instead of being a 1x1 convolution with BatchNorm.
    """

    features: int
    strides: int = 1
    padded_shortcut: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Returns the sum, before the ReLU that ends the block."""
        out = ConvBatchNorm(self.features, 3, self.strides, name="layer1")(x, train)
        out = ConvBatchNorm(self.features, name="layer2")(nn.relu(out), train)
        if out.shape == x.shape:
            return out + x
        if self.padded_shortcut:
            return out + _padded(x, self.features, self.strides)
        short = ConvBatchNorm(self.features, 1, self.strides, name="shortcut")
        return out + short(x, train)


def _padded(x: jax.Array, features: int, strides: int) -> jax.Array:
    """Returns every `strides`-th pixel, between as many zero channels on both sides.

    Args:
        x: maps `[batch, height, width, channels]`.
        features: channels of the result: `channels` plus an even number.
        strides: of the pixels that are taken.
    """
    x = x[:, ::strides, ::strides]
    border = (features - x.shape[-1]) // 2
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (border, border)))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with BatchNorm around a shortcut.

    The 3x3 convolution takes the strides, as in torchvision, not He's first 1x1.
    """

    features: int
    strides: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Returns the sum of 4 * `features` channels, before the block's last ReLU."""
        out = ConvBatchNorm(self.features, 1, name="layer1")(x, train)
        out = ConvBatchNorm(self.features, 3, self.strides, name="layer2")(
            nn.relu(out), train
        )
        out = ConvBatchNorm(4 * self.features, 1, name="layer3")(nn.relu(out), train)
        if out.shape != x.shape:
            x = ConvBatchNorm(4 * self.features, 1, self.strides, name="shortcut")(
                x, train
            )
        return out + x


class ResNet(nn.Module):
    """ResNet-d, d = 6 * blocks + 2: three stages of 16, 32 and 64 channels.

    The feature 'stem' is activated; 'stage1' to 'stage3' are the stages' outputs,
    'stage1_pre' to 'stage3_pre' their values before the last ReLU.

    Attributes:
        blocks: in each stage.
        stem: channels of the first convolution.
        width: channels of the first stage; the others double them.
        num_classes: the number of classes.
        padded_shortcuts: see `Block`.
    """

    blocks: int
    stem: int
    width: int
    num_classes: int
    padded_shortcuts: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> Outputs:
        """Classifies images `[batch, height, width, channels]`."""
        x = nn.relu(ConvBatchNorm(self.stem, name="stem")(x, train))
        features = {"stem": x}
        for stage in (1, 2, 3):
            for block in range(1, self.blocks + 1):
                # Later stages halve the maps in their first block.
                pre = Block(
                    self.width * 2 ** (stage - 1),
                    strides=2 if stage > 1 and block == 1 else 1,
                    padded_shortcut=self.padded_shortcuts,
                    name=f"stage{stage}_block{block}",
                )(x, train)
                x = nn.relu(pre)
            features |= {f"stage{stage}_pre": pre, f"stage{stage}": x}
        return classify(x, features, self.num_classes)

    def norms(self) -> dict[str, tuple[str, ...]]:
        """Returns the last BatchNorm before a level's activation: path by feature."""
        return {
            f"stage{stage}_pre": (f"stage{stage}_block{self.blocks}", "layer2", "bn")
            for stage in (1, 2, 3)
        }


def create(name: str, num_classes: int) -> ResNet:
    """Returns the network for a name like 'resnet-20' or 'resnet-8x4'.

    'x4' means 32 channels in the stem and 64, 128 and 256 in the stages.

    Raises:
        UserError: the name is of another form, or the depth not 6n + 2.
    """
    match = re.fullmatch("resnet-([1-9][0-9]*)(x4)?", name)
    if not match:
        raise UserError(
            f"model {name!r} is not of the form resnet-DEPTH or resnet-DEPTHx4"
        )
    depth = int(match[1])
    if depth < 8 or (depth - 2) % 6:
        raise UserError(
            f"model {name!r}: depth {depth} is not 6n + 2; choices: 8, 14, 20, 26, "
            "... (with other depths: cifar_resnet-DEPTH and, for large images, "
            "imagenet_resnet-DEPTH)"
        )
    stem, width = (32, 64) if match[2] else (16, 16)
    # Three stages of blocks of two convolutions, the stem and the classifier.
    return ResNet((depth - 2) // 6, stem, width, num_classes)
