"""Whole experiments in plain PyTorch, as its fastest public codes run them.

`labels` trains the CTKD paper's student from labels alone. `ctkd` trains the expert and
then, with CTKD, student and scratch teacher. `chain` trains DGKD's chain without
augmentation, with every guide in every step. The images lie in the device's memory,
where whole batches are gathered, cropped and flipped at once.
Other benchmarks run this module as a process of its own.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks import torch_steps
from benchmarks.cases import Case
from benchmarks.torch_steps import LAYOUTS, Form, TorchStep, device
from configs import common, dgkd
from kdjax.data import sources
from kdjax.data.sources import Split
from kdjax.experiment import chains
from kdjax.runtime import command
from kdjax.runtime.files import write_json
from kdjax.train.recipe import Recipe

_EVAL_BATCH = 256
_RECIPE = (
    *("epochs", "batch_size", "learning_rate", "momentum", "nesterov"),
    *("weight_decay", "milestones", "decay_factor"),
)


class Images:
    """A split on the device; every iteration is an epoch of batches made there."""

    def __init__(
        self,
        split: Split,
        mean: Sequence[float],
        std: Sequence[float],
        batch: int,
        *,
        crop: int = 0,
        shuffle: bool = False,
    ):
        """Moves the images to the device; without a crop they are normalised once.

        Args:
            split: uint8 images `[N, height, width, channels]` and labels `[N]`.
            mean: by channel, of values from 0 to 1.
            std: likewise.
            batch: images in a batch.
            crop: how far the border is reflected; images are then cropped at random
                from it, and half of them flipped.
            shuffle: whether an epoch has an order of its own, and whole batches only,
                as kdjax's has.
        """
        self._batch, self._crop, self._shuffle = batch, crop, shuffle
        self._mean, self._std = (
            torch.tensor(values, device=device()).view(3, 1, 1)
            for values in (mean, std)
        )
        border = (0, 0), (crop, crop), (crop, crop), (0, 0)
        pixels = np.pad(split.images, border, "symmetric")
        # [N, channels, height, width] whatever the layout in memory is.
        self._pixels = torch.from_numpy(pixels).to(device()).permute(0, 3, 1, 2)
        self._labels = torch.from_numpy(np.array(split.labels)).long().to(device())
        if not crop:
            self._pixels = self._normalised(self._pixels)

    def _normalised(self, pixels: torch.Tensor) -> torch.Tensor:
        return (pixels.float() / 255 - self._mean) / self._std

    def __len__(self) -> int:
        """Returns the number of batches."""
        size = len(self._labels)
        return size // self._batch if self._shuffle else -(-size // self._batch)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yields images `[batch, channels, height, width]` and labels."""
        size = len(self._labels)
        order = torch.arange(size, device=device())
        if self._shuffle:
            order = torch.randperm(size, device=device())
            order = order[: len(self) * self._batch]
        for index in order.split(self._batch):
            yield self.images(index), self._labels[index]

    def images(self, index: torch.Tensor) -> torch.Tensor:
        """Returns images by position, varied if there is a crop."""
        if not self._crop:
            return self._pixels[index]
        *_, height, width = self._pixels.shape
        count, shifts = len(index), 2 * self._crop

        def some(high: int) -> torch.Tensor:
            return torch.randint(0, high, (count, 1), device=device())

        rows = some(shifts + 1) + torch.arange(height - shifts, device=device())
        columns = torch.arange(width - shifts, device=device()).expand(count, -1)
        columns = torch.where(some(2) == 1, columns.flip(1), columns)
        columns = some(shifts + 1) + columns
        # One gather for the batch: [batch, height, width, channels], and back.
        cropped = self._pixels.permute(0, 2, 3, 1)[
            index[:, None, None], rows[:, :, None], columns[:, None, :]
        ]
        return self._normalised(cropped.permute(0, 3, 1, 2))


def evaluate(network: nn.Module, step: TorchStep, images: Images) -> float:
    """Returns the share of images that the network classifies rightly."""
    network.eval()
    right = torch.zeros((), dtype=torch.long, device=device())
    count = 0
    with torch.no_grad():
        for batch, labels in images:
            batch, labels = step.move(batch, labels)
            right += (network(batch)[0].argmax(1) == labels).sum()
            count += len(labels)
    network.train()
    return right.item() / count


def drops(recipe: Recipe, steps: int) -> dict[int, float]:
    """Returns the learning rates after the first, by the step from which they hold.

    Written apart from kdjax's own, against which it is tested.

    Args:
        recipe: with SGD and milestones; of its other options this module knows none.
        steps: of the whole training; they count from 0.
    """
    known = {name: getattr(recipe, name) for name in _RECIPE}
    assert recipe == Recipe(**known), recipe
    rates, rate = {}, recipe.learning_rate
    for milestone in recipe.milestones:
        rate *= recipe.decay_factor
        rates[round(milestone * steps)] = rate
    return rates


def train(
    step: TorchStep,
    epochs: int,
    images: Images,
    test: Images,
    evaluate_every: int = 1,
) -> dict[str, Any]:
    """Trains one stage by its recipe; returns what it took and reached.

    'accuracy' is that of the test images after the last epoch, by role. What is
    compiled or captured is in no 'seconds', as kdjax's are without compilation.
    """
    step.prepare(*step.move(*next(iter(images))))
    rates = drops(step.case.recipe, epochs * len(images))
    begin, count, done, accuracy = time.perf_counter(), 0, 0, {}
    for epoch in range(1, epochs + 1):
        for batch, labels in images:
            if done in rates:
                begin += _drop(step, rates[done])
            total = step.update(*step.move(batch, labels))
            count += len(labels)
            done += 1
        total.item()  # waits
        if epoch % evaluate_every == 0 or epoch == epochs:
            accuracy = {
                role: evaluate(network, step, test)
                for role, network in step.trained.items()
            }
    seconds = time.perf_counter() - begin
    name = "cpu"
    if device().type == "cuda":
        name = torch.cuda.get_device_name()
    figures = {"seconds": seconds, "images": count, "accuracy": accuracy}
    return {**figures, "device": name}


def _drop(step: TorchStep, rate: float) -> float:
    """Changes the learning rate and returns the seconds that a new capture took."""
    if device().type == "cuda":
        torch.cuda.synchronize()  # earlier steps are not part of it
    begin = time.perf_counter()
    step.set_learning_rate(rate)
    return time.perf_counter() - begin


def _paper(options: argparse.Namespace) -> tuple[Images, Images, dict[str, Any]]:
    """Returns the CTKD paper's images, and what all its cases have."""
    setting = common.SETTINGS["cifar10"]
    data = _load("cifar10", options)
    images = Images(
        data.train,
        data.mean,
        data.std,
        setting.recipe.batch_size,
        crop=setting.augment.crop,
        shuffle=True,
    )
    tests = Images(data.test, data.mean, data.std, _EVAL_BATCH)
    return images, tests, {"recipe": setting.recipe, "image": data.image_shape}


def labels_alone(options: argparse.Namespace) -> dict[str, Any]:
    """Trains the CTKD paper's student from labels alone; evaluates it at the end."""
    images, tests, sizes = _paper(options)
    case = Case("supervised", common.SETTINGS["cifar10"].student, **sizes)
    step = TorchStep(case, form_of(options))
    return {"student": train(step, options.epochs, images, tests, options.epochs)}


def ctkd(options: argparse.Namespace) -> dict[str, Any]:
    """Trains the CTKD paper's expert, and its student with the scratch teacher."""
    setting, form = common.SETTINGS["cifar10"], form_of(options)
    images, tests, sizes = _paper(options)
    expert = TorchStep(Case("supervised", setting.teacher, **sizes), form)
    stages = {"expert": train(expert, options.epochs, images, tests)}
    # As in the config's graph: the student learns from the expert that is trained.
    student = TorchStep(
        Case("ctkd", setting.student, {"expert": setting.teacher}, **sizes),
        form,
        frozen=[expert.trained["student"]],
    )
    stages["student"] = train(student, options.epochs, images, tests)
    return stages


def form_of(options: argparse.Namespace) -> Form:
    """Returns the form that the command's options name."""
    return Form(options.layout, options.bf16, options.compile, options.graph)


def chain(options: argparse.Namespace) -> dict[str, Any]:
    """Trains DGKD's chain: every network is taught by all before it."""
    recipe = dgkd.SETTINGS["cifar100-plain"][1].recipe
    data = _load("cifar100", options, normalise=False)
    images = Images(data.train, data.mean, data.std, recipe.batch_size, shuffle=True)
    tests = Images(data.test, data.mean, data.std, _EVAL_BATCH)
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
            form_of(options),
            frozen=list(done.values()),
            no_grad=not options.with_grad,
        )
        stages[model] = train(step, options.epochs, images, tests, options.epochs)
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


_EXPERIMENTS = {"labels": labels_alone, "ctkd": ctkd, "chain": chain}


def parser() -> argparse.ArgumentParser:
    """Returns the command's parser."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.torch_training")
    made.add_argument("experiment", choices=tuple(_EXPERIMENTS))
    made.add_argument("--data-dir")
    made.add_argument("--train-size", type=int)
    made.add_argument("--test-size", type=int)
    made.add_argument("--epochs", type=int, required=True)
    made.add_argument("--seed", type=int, help="of start, order and crops")
    made.add_argument("--layout", choices=tuple(LAYOUTS), default="NCHW")
    made.add_argument("--bf16", action="store_true", help="under autocast")
    made.add_argument("--compile", action="store_true", help="by torch.compile")
    made.add_argument("--graph", action="store_true", help="a CUDA graph of the step")
    made.add_argument("--path", help="of the chain, such as plain10/plain6/plain2")
    made.add_argument(
        "--with-grad",
        action="store_true",
        help="guides without no_grad, as in the released code",
    )
    made.add_argument("--out", type=Path, required=True)
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Runs an experiment and writes its stages' figures; returns the exit status."""
    options = parser().parse_args(argv)
    return command.run(lambda: _run(options), prefix="torch_training: ")


def _run(options: argparse.Namespace) -> None:
    if options.seed is not None:
        torch.manual_seed(options.seed)
    if device().type == "cuda":
        torch_steps.use_fast_products()
    stages = _EXPERIMENTS[options.experiment](options)
    write_json(options.out, stages)


if __name__ == "__main__":
    sys.exit(main())
