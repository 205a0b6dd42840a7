"""VGG, plain CNNs, MobileNetV2 and ShuffleNets in PyTorch, as `torch_nets`."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch_nets import conv


class VGG(nn.Module):
    def __init__(self, layers, classes):
        super().__init__()
        inputs = 3
        for block, (count, width) in enumerate(
            zip(layers, (64, 128, 256, 512, 512), strict=True)
        ):
            made = []
            for _ in range(count):
                made += [conv(inputs, width, bias=True), nn.BatchNorm2d(width)]
                made.append(nn.ReLU())
                inputs = width
            setattr(self, f"block{block}", nn.Sequential(*made[:-1]))
        self.classifier = nn.Linear(512, classes)

    def forward(self, x):
        features = {}
        for block in range(5):
            if block in (1, 2, 3):
                x = F.max_pool2d(x, 2)
            pre = getattr(self, f"block{block}")(x)
            x = F.relu(pre)
            features |= (
                {f"stage{block}_pre": pre, f"stage{block}": x} if block else {"stem": x}
            )
        features["pooled"] = x.mean((2, 3))
        return self.classifier(features["pooled"]), features


class Plain(nn.Module):
    """TAKD's plain CNN; words as 'C16', 'P' and 'F64'."""

    def __init__(self, words, classes, side=32, channels=3):
        super().__init__()
        convolutions, dense = [], []
        for word in words.split():
            kind, width = word[0], int(word[1:] or 0)
            if kind == "C":
                convolutions += [conv(channels, width, bias=True)]
                convolutions += [nn.BatchNorm2d(width), nn.ReLU()]
                channels = width
            elif kind == "P":
                convolutions.append(nn.MaxPool2d(2))
                side //= 2
        size = channels * side**2
        for width in [int(word[1:]) for word in words.split() if word[0] == "F"]:
            dense += [nn.Linear(size, width), nn.ReLU()]
            size = width
        self.conv_layers = nn.Sequential(*convolutions)
        self.fc_layers = nn.Sequential(*dense, nn.Linear(size, classes))

    def forward(self, x):
        features, stage = {}, 1
        for layer in self.conv_layers:
            x = layer(x)
            if isinstance(layer, nn.Conv2d):
                features.setdefault("stem", x)
            elif isinstance(layer, nn.BatchNorm2d):
                features[f"stage{stage}_pre"] = x
            elif isinstance(layer, nn.ReLU):
                features[f"stage{stage}"] = x
            else:
                stage += 1
        flat = self.fc_layers[:-1](x.flatten(1))  # of [B, C, H, W]
        features["pooled"] = flat
        if len(self.fc_layers) == 1:  # kdjax flattens [B, H, W, C]
            features["pooled"] = x.permute(0, 2, 3, 1).flatten(1)
        return self.fc_layers[-1](flat), features


class Inverted(nn.Module):
    def __init__(self, inputs, outputs, stride, factor):
        super().__init__()
        width = factor * inputs
        self.conv = nn.Sequential(
            conv(inputs, width, 1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            conv(width, width, 3, stride, width),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            conv(width, outputs, 1),
            nn.BatchNorm2d(outputs),
        )
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x):
        return self.conv(x) + x if self.adds else self.conv(x)


class MobileNetV2(nn.Module):
    def __init__(self, width, classes):
        super().__init__()
        inputs = int(32 * width)
        self.conv1 = nn.Sequential(
            conv(3, inputs, 3, 2), nn.BatchNorm2d(inputs), nn.ReLU()
        )
        self.blocks = nn.ModuleList()
        for factor, channels, count, stride in (
            (1, 16, 1, 1),
            (6, 24, 2, 1),
            (6, 32, 3, 2),
            (6, 64, 4, 2),
            (6, 96, 3, 1),
            (6, 160, 3, 2),
            (6, 320, 1, 1),
        ):
            outputs, made = int(channels * width), []
            for number in range(count):
                made.append(Inverted(inputs, outputs, 1 if number else stride, factor))
                inputs = outputs
            self.blocks.append(nn.Sequential(*made))
        self.conv2 = nn.Sequential(
            conv(inputs, 1280, 1), nn.BatchNorm2d(1280), nn.ReLU()
        )
        self.classifier = nn.Sequential(nn.Linear(1280, classes))

    def forward(self, x):
        x = self.conv1(x)
        features = {"stem": x}
        ends = {1: 1, 2: 2, 4: 3, 6: 4}  # the last group of each stage
        for number, group in enumerate(self.blocks):
            x = group(x)
            if number in ends:
                stage = f"stage{ends[number]}"
                features |= {stage: x, f"{stage}_pre": x}
        features["pooled"] = self.conv2(x).mean((2, 3))
        return self.classifier(features["pooled"]), features


def shuffle(x, groups):
    """Returns the first channel of every group, then the second, ..."""
    batch, channels, height, width = x.shape
    x = x.view(batch, groups, channels // groups, height, width)
    return x.transpose(1, 2).reshape(batch, channels, height, width)


class UnitV1(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.stride, self.groups = stride, 1 if inputs == 24 else 3
        outer = outputs - inputs if stride == 2 else outputs
        width = outer // 4
        self.conv1 = conv(inputs, width, 1, groups=self.groups)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3, stride, width)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3, self.bn3 = conv(width, outer, 1, groups=3), nn.BatchNorm2d(outer)

    def forward(self, x):
        out = shuffle(F.relu(self.bn1(self.conv1(x))), self.groups)
        out = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(out)))))
        if self.stride == 1:
            return out + x
        return torch.cat([out, F.avg_pool2d(x, 3, 2, 1)], 1)


class ShuffleNetV1(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.conv1, self.bn1 = conv(3, 24, 1), nn.BatchNorm2d(24)
        inputs = 24
        for stage, (width, count) in enumerate(((240, 4), (480, 8), (960, 4)), 1):
            made = []
            for number in range(count):
                made.append(UnitV1(inputs, width, 1 if number else 2))
                inputs = width
            setattr(self, f"layer{stage}", nn.Sequential(*made))
        self.linear = nn.Linear(960, classes)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        features = {"stem": x}
        for stage in (1, 2, 3):
            for unit in getattr(self, f"layer{stage}"):
                pre = unit(x)
                x = F.relu(pre)
            features |= {f"stage{stage}_pre": pre, f"stage{stage}": x}
        features["pooled"] = x.mean((2, 3))
        return self.linear(features["pooled"]), features


class UnitV2(nn.Module):
    """Of two halves: the shortcut, which has layers where the maps are halved."""

    def __init__(self, inputs, outputs, down):
        super().__init__()
        half = outputs // 2
        sizes = []
        if down:
            sizes = [(inputs, inputs, 3, 2, inputs), (inputs, half, 1, 1, 1)]
        self.down = down
        sizes += [
            (inputs if down else half, half, 1, 1, 1),
            (half, half, 3, 2 if down else 1, half),
            (half, half, 1, 1, 1),
        ]
        for number, size in enumerate(sizes, 1):
            setattr(self, f"conv{number}", conv(*size))
            setattr(self, f"bn{number}", nn.BatchNorm2d(size[1]))

    def layer(self, number, x):
        return getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(x))

    def forward(self, x):
        if self.down:
            kept, first = self.layer(2, self.layer(1, x)), 3
        else:
            kept, x = x.chunk(2, 1)
            first = 1
        out = self.layer(first + 1, F.relu(self.layer(first, x)))
        return torch.cat([kept, self.layer(first + 2, out)], 1)


class ShuffleNetV2(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.conv1, self.bn1 = conv(3, 24, 1), nn.BatchNorm2d(24)
        inputs = 24
        for stage, (width, count) in enumerate(((116, 4), (232, 8), (464, 4)), 1):
            made = [
                UnitV2(inputs if number == 0 else width, width, number == 0)
                for number in range(count)
            ]
            inputs = width
            setattr(self, f"layer{stage}", nn.Sequential(*made))
        self.conv2, self.bn2 = conv(464, 1024, 1), nn.BatchNorm2d(1024)
        self.linear = nn.Linear(1024, classes)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        features = {"stem": x}
        for stage in (1, 2, 3):
            for unit in getattr(self, f"layer{stage}"):
                pre = unit(x)
                x = shuffle(F.relu(pre), 2)
            features |= {f"stage{stage}_pre": pre, f"stage{stage}": x}
        features["pooled"] = F.relu(self.bn2(self.conv2(x))).mean((2, 3))
        return self.linear(features["pooled"]), features
