"""VGG networks with BatchNorm for small images: VGG-8 to VGG-19.

Simonyan and Zisserman, *Very Deep Convolutional Networks for Large-Scale Image
Recognition*, 2015, as the released code of CRD (Tian et al., 2020) builds them and the
DGKD paper uses them: without the hidden dense layers, which the depth still counts,
and with a VGG-8.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from kdjax.models.base import Outputs
from kdjax.models.layers import ConvBatchNorm
from kdjax.runtime.errors import UserError, unknown

VERSION = 1

LAYERS = {
    8: (1, 1, 1, 1, 1),
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
"""Convolutions in the stem and the four stages, by depth."""


class VGG(nn.Module):
    """VGG-d: a stem and four stages of 64, 128, 256, 512 and 512 channels.

    The features 'stem' and 'stage1' to 'stage4' are the maps before each pooling,
    'stage1_pre' to 'stage4_pre' their values before the last ReLU. Only images of 64x64
    are pooled before the last stage.
    """

    depth: int
    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> Outputs:
        """Classifies images `[batch, height, width, channels]`.

        Raises:
            UserError: the images are too small.
        """
        height, width = x.shape[1:3]
        # Three poolings halve the maps.
        if min(height, width) < 8:
            raise UserError(
                f"model 'vgg-{self.depth}' pools images of {height}x{width} to "
                "nothing; it takes 8x8 and larger"
            )
        features: dict[str, jax.Array] = {}
        pooled_before = {"stage1", "stage2", "stage3"}
        if (height, width) == (64, 64):
            pooled_before.add("stage4")
        parts = ("stem", "stage1", "stage2", "stage3", "stage4")
        channels = (64, 128, 256, 512, 512)
        for part, size, layers in zip(parts, channels, LAYERS[self.depth], strict=True):
            if part in pooled_before:
                x = nn.max_pool(x, (2, 2), (2, 2))
            for layer in range(1, layers + 1):
                # BatchNorm cancels the bias, but published parameter counts include it.
                pre = ConvBatchNorm(size, use_bias=True, name=f"{part}_layer{layer}")(
                    x, train
                )
                x = nn.relu(pre)
            if part != "stem":
                features[f"{part}_pre"] = pre
            features[part] = x
        pooled = features["pooled"] = jnp.mean(x, axis=(1, 2))  # [B, H, W, C] -> [B, C]
        head = nn.Dense(
            self.num_classes, kernel_init=nn.initializers.normal(0.01), name="head"
        )
        return Outputs(head(pooled), features)

    def norms(self) -> dict[str, tuple[str, ...]]:
        """Returns the last BatchNorm before a level's activation: path by feature."""
        return {
            f"stage{stage}_pre": (f"stage{stage}_layer{layers}", "bn")
            for stage, layers in enumerate(LAYERS[self.depth])
            if stage  # 0 is the stem, which has no '_pre' feature
        }


def create(name: str, num_classes: int) -> VGG:
    """Returns the network for a name like 'vgg-13'.

    Raises:
        UserError: there is no such depth.
    """
    names = {f"vgg-{depth}": depth for depth in LAYERS}
    if name not in names:
        raise unknown("model", name, names)
    return VGG(names[name], num_classes)
