"""The networks in PyTorch under the names of public repositories.

Written from the papers and the repositories' names. Each returns logits and the
features that kdjax names, `[batch, channels, height, width]`.
"""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

# Two of PyTorch's threads wait for each other in a loop where cores are busy.
torch.set_num_threads(1)


def conv(inputs, outputs, size=3, stride=1, groups=1, bias=False):
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, 1, groups, bias)


class Empty(nn.Module):
    """Holds the modules that are set on it."""


class Padded(nn.Module):
    """akamaster's shortcut: every second pixel, zeros on both sides of the channels."""

    def __init__(self, width):
        super().__init__()
        self.border = width // 4

    def forward(self, x):
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.border, self.border))


class Residual(nn.Module):
    """A residual block in the names of torchvision, kuangliu or weiaicunzai.

    'akamaster' is kuangliu's naming with shortcuts that have no parameters.
    """

    def __init__(self, inputs, width, stride, bottleneck, naming):
        super().__init__()
        outputs = 4 * width if bottleneck else width
        sizes = [(inputs, width, 3, stride), (width, width, 3, 1)]
        if bottleneck:
            sizes = [
                (inputs, width, 1, 1),
                (width, width, 3, stride),
                (width, outputs, 1, 1),
            ]
        layers = []
        for number, (a, b, size, step) in enumerate(sizes, 1):
            layers += [conv(a, b, size, step), nn.BatchNorm2d(b), nn.ReLU()]
            if naming != "weiaicunzai":
                setattr(self, f"conv{number}", layers[-3])
                setattr(self, f"bn{number}", layers[-2])
        if naming == "weiaicunzai":
            self.residual_function = nn.Sequential(*layers[:-1])
        self.layers = [layers[:-1]]  # in a list of lists: not registered twice
        self.short = []
        if stride > 1 or inputs != outputs:
            short = nn.Sequential(
                conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)
            )
            if naming == "akamaster":
                short = Padded(outputs)
            name = "downsample" if naming == "torchvision" else "shortcut"
            setattr(self, name, short)
            self.short = [[short]]

    def forward(self, x):
        out = x
        for layer in self.layers[0]:
            out = layer(out)
        return out + (self.short[0][0](x) if self.short else x)


class ResNet(nn.Module):
    def __init__(
        self,
        blocks,
        widths,
        classes,
        stem=None,
        bottleneck=False,
        large=False,
        naming="torchvision",
        channels=3,
    ):
        super().__init__()
        inputs = stem or widths[0]
        first = (7, 2) if large else (3, 1)
        self.large = large
        self.stem = [[conv(channels, inputs, *first), nn.BatchNorm2d(inputs)]]
        if naming == "weiaicunzai":
            self.conv1 = nn.Sequential(*self.stem[0], nn.ReLU())
        else:
            self.conv1, self.bn1 = self.stem[0]
        self.stages = []
        for stage, (count, width) in enumerate(zip(blocks, widths, strict=True), 1):
            made = []
            for number in range(count):
                stride = 2 if stage > 1 and number == 0 else 1
                made.append(Residual(inputs, width, stride, bottleneck, naming))
                inputs = 4 * width if bottleneck else width
            name = f"layer{stage}"
            if naming == "weiaicunzai":
                name = f"conv{stage + 1}_x"
            setattr(self, name, nn.Sequential(*made))
            self.stages.append([made])
        self.head = [nn.Linear(inputs, classes)]
        head = "linear" if naming in ("kuangliu", "akamaster") else "fc"
        setattr(self, head, self.head[0])

    def forward(self, x):
        x = features_stem = F.relu(self.stem[0][1](self.stem[0][0](x)))
        features = {"stem": features_stem}
        if self.large:
            x = F.max_pool2d(x, 3, 2, 1)
        for stage, (blocks,) in enumerate(self.stages, 1):
            for block in blocks:
                pre = block(x)
                x = F.relu(pre)
            features |= {f"stage{stage}_pre": pre, f"stage{stage}": x}
        features["pooled"] = x.mean((2, 3))
        return self.head[0](features["pooled"]), features


class WideBlock(nn.Module):
    def __init__(self, inputs, width, stride):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), conv(inputs, width, 3, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(width), conv(width, width)
        self.convShortcut = None
        if inputs != width:
            self.convShortcut = conv(inputs, width, 1, stride)

    def forward(self, x):
        out = F.relu(self.bn1(x))
        short = x if self.convShortcut is None else self.convShortcut(out)
        return self.conv2(F.relu(self.bn2(self.conv1(out)))) + short


class WRN(nn.Module):
    def __init__(self, depth, widen, classes):
        super().__init__()
        self.conv1 = conv(3, 16)
        inputs = 16
        for group in (1, 2, 3):
            width = 8 * widen * 2**group
            blocks = [
                WideBlock(
                    width if i else inputs, width, 2 if group > 1 and i == 0 else 1
                )
                for i in range((depth - 4) // 6)
            ]
            holder = Empty()
            holder.layer = nn.Sequential(*blocks)
            setattr(self, f"block{group}", holder)
            inputs = width
        self.bn1, self.fc = nn.BatchNorm2d(inputs), nn.Linear(inputs, classes)

    def forward(self, x):
        x = self.conv1(x)
        features = {"stem": x}
        for group in (1, 2, 3):
            x = features[f"stage{group}"] = getattr(self, f"block{group}").layer(x)
        last = features["stage3_pre"] = self.bn1(x)
        features["pooled"] = F.relu(last).mean((2, 3))
        logits = self.fc(features["pooled"])
        if not self.training:  # would count the batch twice
            for group in (1, 2):
                following = getattr(self, f"block{group + 1}").layer[0].bn1
                maps = features[f"stage{group}"]
                features[f"stage{group}_pre"] = following(maps)
        return logits, features
