"""The networks in plain PyTorch, with the names of kdjax's parameters."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (PyTorch's own habit)
from flax.traverse_util import flatten_dict
from torch import nn

from kdjax.models import plain

_NAMES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}


class Block(nn.Module):
    """BatchNorm-ReLU-convolution twice around a shortcut."""

    def __init__(self, inputs: int, features: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, features, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(features)
        self.conv2 = nn.Conv2d(features, features, 3, 1, 1, bias=False)
        self.shortcut = None
        if inputs != features:
            self.shortcut = nn.Conv2d(inputs, features, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the block's output."""
        out = F.relu(self.bn1(x), inplace=True)
        shortcut = x if self.shortcut is None else self.shortcut(out)
        out = F.relu(self.bn2(self.conv1(out)), inplace=True)
        return self.conv2(out) + shortcut


class WideResNet(nn.Module):
    """WRN-d-k for small images; returns logits and the three groups' maps."""

    def __init__(self, depth: int, widen: int, classes: int):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        inputs, self.groups = 16, []
        for stage, stride in ((1, 1), (2, 2), (3, 2)):
            features, names = 16 * widen * 2 ** (stage - 1), []
            for block in range(1, (depth - 4) // 6 + 1):
                names.append(f"stage{stage}_block{block}")
                first = stride if block == 1 else 1
                self.add_module(names[-1], Block(inputs, features, first))
                inputs = features
            self.groups.append(names)
        self.bn = nn.BatchNorm2d(inputs)
        self.head = nn.Linear(inputs, classes)
        # As kdjax's networks start: He normal with the fan of the inputs, no biases.
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        nn.init.zeros_(self.head.bias)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Classifies images `[batch, channels, height, width]`."""
        x, maps = self.stem(x), []
        for names in self.groups:
            for name in names:
                x = getattr(self, name)(x)
            maps.append(x)
        x = F.relu(self.bn(x), inplace=True)
        return self.head(x.mean((2, 3))), maps


class Plain(nn.Module):
    """A plain CNN of the DGKD paper; returns logits and no maps."""

    def __init__(self, depth: int, classes: int, image: tuple[int, int, int]):
        super().__init__()
        layers: list[nn.Module] = []
        table = plain.CIFAR10 if classes <= 10 else plain.CIFAR100
        side, _, channels = image
        flat = False
        for kind, width in table[depth]:
            if kind == "C":
                layers += [
                    nn.Conv2d(channels, width, 3, padding=1),
                    nn.BatchNorm2d(width),
                    nn.ReLU(inplace=True),
                ]
                channels = width
            elif kind == "P":
                layers.append(nn.MaxPool2d(2))
                side //= 2
            else:
                flat = True
                layers += [nn.Flatten(), nn.Linear(channels * side**2, width)]
                layers.append(nn.ReLU(inplace=True))
                channels = width
        if not flat:
            layers.append(nn.Flatten())
            channels *= side**2
        self.layers = nn.Sequential(*layers, nn.Linear(channels, classes))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Classifies images `[batch, channels, height, width]`."""
        return self.layers(x), []


def create(name: str, classes: int, image: tuple[int, int, int]) -> nn.Module:
    """Returns a network by kdjax's name for it."""
    family, *sizes = name.split("-")
    if family == "plain":
        return Plain(int(sizes[0]), classes, image)
    depth, widen = map(int, sizes)
    return WideResNet(depth, widen, classes)


def tensors(variables: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Returns a WRN's parameters and statistics under PyTorch's names and layout."""
    flat = flatten_dict(variables["params"]) | flatten_dict(variables["batch_stats"])
    found = {}
    for path, leaf in flat.items():
        array = np.asarray(leaf)
        if path[-1] == "kernel":
            array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
        name = ".".join((*path[:-1], _NAMES[path[-1]]))
        found[name] = torch.from_numpy(array.copy())
    return found


def load(network: nn.Module, variables: Mapping[str, Any]) -> None:
    """Gives a WRN the weights of kdjax's."""
    # Counters of batches are all that kdjax does not have.
    state = network.state_dict()
    counters = {name for name in state if name.endswith("num_batches_tracked")}
    given = tensors(variables)
    assert given.keys() == state.keys() - counters
    network.load_state_dict(given, strict=False)
