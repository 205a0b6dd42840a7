"""Networks of PyTorch as users write them: nothing of kdjax in them."""

import random

import numpy as np
import torch
from torch import nn
from torch.nn import functional


class Net(nn.Module):
    """Convolution, BatchNorm, dropout and a classifier."""

    def __init__(self, width=4, num_classes=10, rate=0.0, channels=3):
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.drop = nn.Dropout(rate)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x):
        x = torch.relu(self.bn(self.conv(x)))
        return self.head(self.drop(x.mean((2, 3))))


class Padded(nn.Module):
    """A block with He's shortcut: strided slices, padded with channels of zeros."""

    def __init__(self, num_classes=10):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.conv1 = nn.Conv2d(4, 8, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, num_classes)

    def forward(self, x):
        x = functional.relu(self.stem(x))
        short = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        x = functional.relu(self.bn1(self.conv1(x)))
        x = functional.relu(self.bn2(self.conv2(x)) + short)
        return self.fc(functional.avg_pool2d(x, x.shape[3]).flatten(1))


class Bad(nn.Module):
    """Does what cannot be traced, or returns no logits."""

    def __init__(self, what, num_classes=10):
        super().__init__()
        self.what = what
        self.plain = torch.ones(3)  # neither a parameter nor a buffer
        self.head = nn.Linear(3, num_classes)

    def forward(self, x):
        x = x.mean((2, 3))
        if self.what == "branch" and x.sum() > 0:
            x = -x
        if self.what == "cuda":
            x = x.cuda()
        if self.what == "to cuda":
            x = x.to("cuda")
        if self.what == "attribute":
            x = x * self.plain
        if self.what == "noise":
            x = x * torch.rand(3)
        if self.what == "random":
            x = x * random.random()
        if self.what == "generator":
            x = x * torch.rand(3, generator=torch.Generator().manual_seed(1))
        if self.what == "operation":
            x = torch.special.airy_ai(x)
        logits = self.head(x)
        if self.what == "dict":
            return {"logits": logits, "aux": x}
        if self.what == "tuple":
            return logits, x
        return logits


class Makes(nn.Module):
    """Makes tensors as it runs, without saying on which device."""

    def __init__(self, num_classes=10):
        super().__init__()
        self.head = nn.Linear(3, num_classes)

    def forward(self, x):
        order = torch.tensor([2, 0, 1])
        x = x.mean((2, 3))[:, order] * torch.tensor([1.0, 2.0, 3.0])
        x = x + torch.arange(3) - torch.zeros(len(x), 3)
        if self.training:
            x = x * torch.rand(3)
        return self.head(x)


class Sized(nn.Module):
    """Takes images of 16x16 alone, as a transformer of one size does."""

    def __init__(self, num_classes=10):
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 16)
        self.head = nn.Linear(2, num_classes)

    def forward(self, x):
        assert x.shape[2:] == (16, 16), f"images of 16x16, not {tuple(x.shape[2:])}"
        return self.head(self.conv(x).flatten(1))


class Asks(nn.Module):
    """Wants an argument that nobody has."""

    def forward(self, x, mask):
        return x.mean((2, 3)) * mask


class Tied(nn.Module):
    """Uses one weight in two places, and NumPy's numbers for a start."""

    def __init__(self, num_classes=10):
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.scale = nn.Parameter(torch.tensor(np.random.rand(3)).float())
        self.head = nn.Linear(3, num_classes)

    def forward(self, x):
        x = torch.relu(self.first(x.mean((2, 3)))) * self.scale
        return self.head(self.second(x))
