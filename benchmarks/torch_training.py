"""Whole experiments in plain PyTorch, as published code runs them.

`ctkd` trains the expert and then, with CTKD, student and scratch teacher: a DataLoader
of two workers crops and flips image by image. `chain` trains DGKD's chain without
augmentation, with every guide in every step, on images that are in memory already.
Other benchmarks run this module as a process of its own.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.cases import Case
from benchmarks.torch_steps import LAYOUTS, TorchStep, device
from configs import common, dgkd
from kdjax.data import sources
from kdjax.data.sources import Split
from kdjax.experiment import chains

_WORKERS = 2
_EVAL_BATCH = 256
Batches = Iterable[tuple[torch.Tensor, torch.Tensor]]


class Images(Dataset):
    """Images of a split, normalised; cropped and flipped if `crop` is positive."""

    def __init__(
        self, split: Split, mean: Sequence[float], std: Sequence[float], crop: int
    ):
        self._images, self._labels, self._crop = split.images, split.labels, crop
        self._mean = torch.tensor(mean).view(3, 1, 1)
        self._std = torch.tensor(std).view(3, 1, 1)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        image, crop = self._images[i], self._crop
        if crop:
            height, width, _ = image.shape
            padded = np.pad(image, ((crop, crop), (crop, crop), (0, 0)), "symmetric")
            top, left = torch.randint(0, 2 * crop + 1, (2,)).tolist()
            image = padded[top : top + height, left : left + width]
            if torch.rand(()) < 0.5:
                image = image[:, ::-1]
        tensor = torch.from_numpy(image.transpose(2, 0, 1).copy()).float() / 255
        return (tensor - self._mean) / self._std, int(self._labels[i])


def in_memory(images: Dataset, batch: int, shuffle: bool) -> Callable[[], Batches]:
    """Returns a function that gives an epoch of batches of images made beforehand."""
    pairs = [images[i] for i in range(len(images))]
    pixels = torch.stack([pixel for pixel, _ in pairs]).to(device())
    labels = torch.tensor([label for _, label in pairs]).to(device())

    def epoch() -> Batches:
        order = torch.randperm(len(labels)) if shuffle else torch.arange(len(labels))
        if shuffle:  # as kdjax: whole batches alone train
            order = order[: len(order) // batch * batch]
        for index in order.split(batch):
            yield pixels[index], labels[index]

    return epoch


def evaluate(network: nn.Module, step: TorchStep, batches: Batches) -> float:
    """Returns the share of images that the network classifies rightly."""
    network.eval()
    right = count = 0
    with torch.no_grad():
        for images, labels in batches:
            images, labels = step.move(images, labels)
            right += (network(images)[0].argmax(1) == labels).sum().item()
            count += len(labels)
    return right / count


def train(
    step: TorchStep,
    epochs: int,
    batches: Callable[[], Batches],
    test: Callable[[], Batches],
    evaluate_every: int = 1,
) -> dict[str, Any]:
    """Trains one stage and returns its seconds, images and test accuracies."""
    begin, count, accuracy = time.perf_counter(), 0, {}
    for epoch in range(1, epochs + 1):
        for images, labels in batches():
            step(*step.move(images, labels))
            count += len(labels)
        if epoch % evaluate_every == 0 or epoch == epochs:
            accuracy = {
                role: evaluate(network, step, test())
                for role, network in step.trained.items()
            }
    seconds = time.perf_counter() - begin
    return {"seconds": seconds, "images": count, "accuracy": accuracy}


def ctkd(options: argparse.Namespace) -> dict[str, Any]:
    """Trains the CTKD paper's expert, and its student with the scratch teacher."""
    setting = common.SETTINGS["cifar10"]
    data = _load("cifar10", options)
    train_images = Images(data.train, data.mean, data.std, setting.augment.crop)
    loader = DataLoader(
        train_images,
        setting.recipe.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=_WORKERS,
        persistent_workers=_WORKERS > 0,
    )
    tests = DataLoader(
        Images(data.test, data.mean, data.std, 0),
        _EVAL_BATCH,
        num_workers=_WORKERS,
        persistent_workers=_WORKERS > 0,
    )
    sizes = {"recipe": setting.recipe, "image": data.image_shape}
    expert = TorchStep(Case("supervised", setting.teacher, **sizes), options.layout)
    student = TorchStep(
        Case("ctkd", setting.student, {"expert": setting.teacher}, **sizes),
        options.layout,
        frozen=[expert.trained["student"]],
    )
    # As in the config's graph: the student learns from the expert that is trained.
    stages = {}
    for name, step in (("expert", expert), ("student", student)):
        for network in step.frozen:
            network.eval()
        stages[name] = train(step, options.epochs, lambda: loader, lambda: tests)
    return stages


def chain(options: argparse.Namespace) -> dict[str, Any]:
    """Trains DGKD's chain: every network is taught by all before it."""
    recipe = dgkd.SETTINGS["cifar100-plain"][1].recipe
    data = _load("cifar100", options, normalise=False)
    batches = in_memory(
        Images(data.train, data.mean, data.std, 0), recipe.batch_size, shuffle=True
    )
    tests = in_memory(
        Images(data.test, data.mean, data.std, 0), _EVAL_BATCH, shuffle=False
    )
    stages: dict[str, Any] = {}
    done: dict[str, nn.Module] = {}
    for model in chains.networks(options.path):
        case = Case(
            "dgkd" if done else "supervised",
            model,
            {name: name for name in done},
            image=data.image_shape,
            classes=data.num_classes,
            recipe=recipe,
        )
        step = TorchStep(
            case,
            options.layout,
            frozen=list(done.values()),
            no_grad=not options.with_grad,
        )
        stages[model] = train(step, options.epochs, batches, tests, options.epochs)
        done[model] = step.trained["student"]
    return stages


def _load(name: str, options: argparse.Namespace, normalise: bool = True) -> Any:
    return sources.load(
        name,
        options.data_dir,
        train_size=options.train_size,
        test_size=options.test_size,
        normalise=normalise,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs an experiment and writes its stages' figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.torch_training")
    parser.add_argument("experiment", choices=("ctkd", "chain"))
    parser.add_argument("--data-dir")
    parser.add_argument("--train-size", type=int)
    parser.add_argument("--test-size", type=int)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--layout", choices=tuple(LAYOUTS), default="NCHW")
    parser.add_argument("--path", help="of the chain, such as plain10/plain6/plain2")
    parser.add_argument(
        "--with-grad",
        action="store_true",
        help="guides without no_grad, as in the released code",
    )
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(argv)
    stages = {"ctkd": ctkd, "chain": chain}[options.experiment](options)
    options.out.write_text(json.dumps(stages))
    return 0


if __name__ == "__main__":
    sys.exit(main())
