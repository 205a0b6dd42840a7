"""ImageNet's residual networks for images of 32x32: ResNet-18, 34 and 50.

He et al., *Deep Residual Learning for Image Recognition*, 2016: four stages of 64 to
512 channels after a 3x3 stem of full resolution without pooling, as the public
PyTorch code for CIFAR builds them. 'cifar_resnet-50' has the architecture of
'bottleneck_resnet-50', the name that the configs of the CIFAR-100 benchmark use.
"""

from kdjax.models.imagenet_resnet import BLOCKS, ImageNetResNet
from kdjax.runtime.errors import unknown

VERSION = 1

DEPTHS = (18, 34, 50)


def create(name: str, num_classes: int) -> ImageNetResNet:
    """Returns the network for a name like 'cifar_resnet-18'.

    Raises:
        UserError: there is no such depth.
    """
    names = {f"cifar_resnet-{depth}": depth for depth in DEPTHS}
    if name not in names:
        raise unknown("model", name, names)
    depth = names[name]
    return ImageNetResNet(
        BLOCKS[depth], num_classes, bottlenecks=depth > 34, small_images=True
    )
