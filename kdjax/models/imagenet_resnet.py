"""Residual networks for ImageNet: ResNet-18, ResNet-26, ResNet-34 and ResNet-50.

He et al., *Deep Residual Learning for Image Recognition*, 2016, as torchvision builds
and initialises them: the chain 34 -> 26 -> 18 of the DGKD paper's Table 3, of basic
blocks, and ResNet-50, of bottlenecks. The DGKD paper does not define its ResNet-26.
Here it has three blocks in every stage, as in most public code that builds one from
basic blocks; 2, 3, 5 and 2 blocks would be as deep.
"""

import flax.linen as nn
import jax

from kdjax.models.base import Outputs
from kdjax.models.layers import ConvBatchNorm, classify
from kdjax.models.resnet import Block, Bottleneck
from kdjax.runtime.errors import unknown

VERSION = 1

BLOCKS = {18: (2, 2, 2, 2), 26: (3, 3, 3, 3), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
"""Blocks in each stage, by depth: basic blocks up to 34, then bottlenecks."""


class ImageNetResNet(nn.Module):
    """ResNet-d: four stages of 64, 128, 256 and 512 channels; bottlenecks: 4 times.

    The feature 'stem' is activated and not yet pooled; 'stage1' to 'stage4' are the
    stages' outputs, 'stage1_pre' to 'stage4_pre' their values before the last ReLU.

    Attributes:
        blocks: in each stage.
        num_classes: the number of classes.
        bottlenecks: whether the blocks are bottlenecks, not basic blocks.
        small_images: whether the stem is a 3x3 convolution of full resolution without
            pooling, for images of 32x32, instead of 7x7 with strides and pooling.
    """

    blocks: tuple[int, ...]
    num_classes: int
    bottlenecks: bool = False
    small_images: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> Outputs:
        """Classifies images `[batch, height, width, channels]`."""
        size, strides = (3, 1) if self.small_images else (7, 2)
        x = nn.relu(ConvBatchNorm(64, size, strides, name="stem")(x, train))
        features = {"stem": x}
        if not self.small_images:
            # As PyTorch pads: on both sides. 'SAME' would pad on one side only.
            x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        make = Bottleneck if self.bottlenecks else Block
        for stage, blocks in enumerate(self.blocks, 1):
            for block in range(1, blocks + 1):
                pre = make(
                    64 * 2 ** (stage - 1),
                    strides=2 if stage > 1 and block == 1 else 1,
                    name=f"stage{stage}_block{block}",
                )(x, train)
                x = nn.relu(pre)
            features |= {f"stage{stage}_pre": pre, f"stage{stage}": x}
        return classify(x, features, self.num_classes)

    def norms(self) -> dict[str, tuple[str, ...]]:
        """Returns the last BatchNorm before a level's activation: path by feature."""
        # The residual branch's last: its sum with the shortcut is activated.
        layer = "layer3" if self.bottlenecks else "layer2"
        return {
            f"stage{stage}_pre": (f"stage{stage}_block{blocks}", layer, "bn")
            for stage, blocks in enumerate(self.blocks, 1)
        }


def create(name: str, num_classes: int) -> ImageNetResNet:
    """Returns the network for a name like 'imagenet_resnet-18'.

    Raises:
        UserError: there is no such depth.
    """
    names = {f"imagenet_resnet-{depth}": depth for depth in BLOCKS}
    if name not in names:
        raise unknown("model", name, names)
    depth = names[name]
    return ImageNetResNet(BLOCKS[depth], num_classes, bottlenecks=depth > 34)
