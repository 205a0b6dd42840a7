"""EfficientNet-Lite0 as kdjax can call it: `lite:lite0(image_size=96)`."""

import torch
from efficientnet_lite_pytorch import EfficientNet


def lite0(num_classes: int = 1000, image_size: int = 224) -> torch.nn.Module:
    """Returns EfficientNet-Lite0 for images of `image_size` pixels."""
    return EfficientNet.from_name(
        "efficientnet-lite0", num_classes=num_classes, image_size=image_size
    )
