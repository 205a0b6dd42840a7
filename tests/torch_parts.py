"""What the tests of PyTorch's networks share."""

import importlib.util

import numpy as np
import pytest
import torch

needs_torchax = pytest.mark.skipif(
    importlib.util.find_spec("torchax") is None, reason="torchax is not installed"
)
needs_timm = pytest.mark.skipif(
    importlib.util.find_spec("timm") is None, reason="timm is not installed"
)
DEIT = "timm:deit_tiny_patch16_224(img_size=16, patch_size=8, depth=2)"


def nchw(images):
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
