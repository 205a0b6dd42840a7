"""Residual networks of bottlenecks for small images: ResNet-50.

He et al., *Deep Residual Learning for Image Recognition*, 2016: the stages of the
ImageNet network after a 3x3 stem of full resolution, without pooling. This is the
teacher 'ResNet50' in the CIFAR-100 tables of CRD (Tian et al., 2020) and later papers.

It is neither 'resnet-50', the 6n + 2 network for CIFAR with basic blocks in three
stages of 16 to 64 channels (0.8 million parameters; this one has 23.7), nor
'imagenet_resnet-50', whose stem would shrink images of 32x32 to maps of 8x8.
"""

from kdjax.models.imagenet_resnet import BLOCKS, ImageNetResNet
from kdjax.runtime.errors import unknown

VERSION = 1

DEPTHS = (50,)


def create(name: str, num_classes: int) -> ImageNetResNet:
    """Returns the network 'bottleneck_resnet-50'.

    Raises:
        UserError: there is no such depth.
    """
    names = {f"bottleneck_resnet-{depth}": depth for depth in DEPTHS}
    if name not in names:
        raise unknown("model", name, names)
    return ImageNetResNet(
        BLOCKS[names[name]], num_classes, bottlenecks=True, small_images=True
    )
