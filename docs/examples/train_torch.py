"""A teacher in plain PyTorch: ResNet-20 on a folder of images, saved as a state dict.

    python docs/examples/train_torch.py photos/ teacher.pth --epochs 30

Nothing here is kdjax's: it stands for a training script that somebody has already.
`photos/` has a folder for every class below `train/` and `test/`; images are 32x32.
"""

import argparse
import pathlib

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F  # noqa: N812

MEAN, STD = 0.47, 0.25  # what this script normalises with, for all channels


class Block(nn.Module):
    """Two 3x3 convolutions around a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False),
                nn.BatchNorm2d(outputs),
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns maps of `outputs` channels."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + (x if self.downsample is None else self.downsample(x)))


class ResNet20(nn.Module):
    """Three stages of three blocks: 16, 32 and 64 channels."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, 1)
        self.layer2 = self._stage(16, 32, 2)
        self.layer3 = self._stage(32, 64, 2)
        self.fc = nn.Linear(64, num_classes)

    @staticmethod
    def _stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
        blocks = [Block(inputs, outputs, stride)]
        blocks += [Block(outputs, outputs, 1) for _ in range(2)]
        return nn.Sequential(*blocks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns logits of images `[batch, 3, height, width]`."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean(dim=(2, 3)))


def read(folder: pathlib.Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns normalised images and labels; classes are the folders, sorted."""
    images, labels = [], []
    for number, name in enumerate(sorted(path.name for path in folder.iterdir())):
        for path in sorted((folder / name).iterdir()):
            images.append(np.asarray(Image.open(path).convert("RGB")))
            labels.append(number)
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 255
    return (pixels - MEAN) / STD, torch.tensor(labels)


def varied(images: torch.Tensor) -> torch.Tensor:
    """Returns a batch, shifted by up to four pixels and mirrored at random."""
    padded = F.pad(images, (4, 4, 4, 4))
    top, left = torch.randint(0, 9, (2,)).tolist()
    images = padded[:, :, top : top + 32, left : left + 32]
    return images.flip(3) if torch.rand(()) < 0.5 else images


def main() -> None:
    """Trains, and saves the state dict."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--epochs", type=int, default=30)
    args = parser.parse_args()
    torch.manual_seed(0)
    images, labels = read(args.data / "train")
    tests = read(args.data / "test")
    net = ResNet20(int(labels.max()) + 1)
    optimizer = torch.optim.SGD(
        net.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs)
    for epoch in range(args.epochs):
        net.train()
        for rows in torch.randperm(len(labels)).split(64):
            loss = F.cross_entropy(net(varied(images[rows])), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
        net.eval()
        with torch.no_grad():
            hits = sum(
                int((net(x).argmax(1) == y).sum())
                for x, y in zip(tests[0].split(500), tests[1].split(500), strict=True)
            )
        accuracy = 100 * hits / len(tests[1])
        print(
            f"epoch {epoch + 1}/{args.epochs}  loss {loss.item():.3f}  "
            f"{hits} of {len(tests[1])} test images right ({accuracy:.2f} %)",
            flush=True,
        )
    torch.save({"net": net.state_dict(), "accuracy": accuracy}, args.out)


if __name__ == "__main__":
    main()
