"""The names that public repositories give the modules of kdjax's networks."""

import dataclasses
import re
from collections.abc import Callable, Mapping

import flax.linen as nn

from kdjax.models.import_torch.mapping import Prefix

Shapes = Mapping[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Guess:
    """A network that a state dict may hold.

    Attributes:
        model: its name.
        num_classes: the number of classes.
        image_shape: height, width and channels. Only plain CNNs depend on height and
            width; for all others 32x32 or 224x224 means any size.
    """

    model: str
    num_classes: int
    image_shape: tuple[int, int, int]

    def __str__(self) -> str:
        height, width, channels = self.image_shape
        size = f" of {height}x{width}" if self.model.startswith("plain-") else ""
        return (
            f"{self.model} with {self.num_classes} classes for {channels}-channel "
            f"images{size}"
        )


@dataclasses.dataclass(frozen=True)
class Layout:
    """One repository's names for one family.

    Attributes:
        name: the repository's.
        family: a key of `models.MODELS`.
        prefix: see `mapping.table`.
        guess: returns the only network of the family that may have a state dict's
            shapes, or None. It looks at few shapes; `fit` compares all.
    """

    name: str
    family: str
    prefix: Prefix
    guess: Callable[[Shapes], Guess | None]


def guess(
    shapes: Shapes, model: str, stem: str, head: str, side: int = 32
) -> Guess | None:
    """Returns a guess, with channels and classes taken from the shapes.

    Args:
        shapes: of the tensors, by key.
        model: the network's name.
        stem: the first convolution, whose inputs are the images' channels.
        head: the classifier, whose outputs are the classes.
        side: of the images.
    """
    first, last = shapes.get(f"{stem}.weight", ()), shapes.get(f"{head}.weight", ())
    if len(first) != 4 or len(last) != 2:
        return None
    return Guess(model, last[0], (side, side, first[1]))


def by_rules(rules: Mapping[str, str | Callable[..., str]]) -> Prefix:
    """Returns the function from the path of a module to PyTorch's name.

    Args:
        rules: by regular expression of the whole path, the name, or a function from
            the groups, numbers as integers, to the name. The first match counts.
    """

    def prefix(module: nn.Module, path: str) -> str:
        for pattern, name in rules.items():
            if match := re.fullmatch(pattern, path):
                if isinstance(name, str):
                    return name
                groups = match.groups()
                return name(*(int(g) if g.isdecimal() else g for g in groups))
        raise AssertionError(f"no rule for {path}")

    return prefix


def in_sequence(number: int, kind: str) -> int:
    """Returns the place of a layer in a sequence of convolution, BatchNorm and ReLU.

    Args:
        number: of the convolution, from 1.
        kind: 'conv' or 'bn'.
    """
    return 3 * (number - 1) + (kind == "bn")


def count(shapes: Shapes, form: str, start: int = 0) -> int:
    """Counts the keys of a form that are numbered without a gap.

    Args:
        shapes: of the tensors, by key.
        form: a key with '{}' for the number.
        start: the first number.
    """
    number = start
    while form.format(number) in shapes:
        number += 1
    return number - start
