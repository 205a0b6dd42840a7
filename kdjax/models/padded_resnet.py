"""Residual networks for small images whose shortcuts have no parameters.

He et al., *Deep Residual Learning for Image Recognition*, 2016, Section 4.2: the 6n + 2
networks of `resnet`, with identity shortcuts throughout (the paper's option A). Where
the shape changes, the shortcut takes every second pixel and adds channels of zeros, a
quarter of the new width before the old channels and a quarter after them, as most
public PyTorch code does; the paper does not state where its zeros are.
"""

import re

from kdjax.models.resnet import ResNet
from kdjax.runtime.errors import UserError

VERSION = 1


def create(name: str, num_classes: int) -> ResNet:
    """Returns the network for a name like 'padded_resnet-20'.

    Raises:
        UserError: the name is of another form, or the depth not 6n + 2.
    """
    match = re.fullmatch("padded_resnet-([1-9][0-9]*)", name)
    if not match:
        raise UserError(f"model {name!r} is not of the form padded_resnet-DEPTH")
    depth = int(match[1])
    if depth < 8 or (depth - 2) % 6:
        raise UserError(
            f"model {name!r}: depth {depth} is not 6n + 2; choices: 8, 14, 20, 26, ..."
        )
    return ResNet((depth - 2) // 6, 16, 16, num_classes, padded_shortcuts=True)
