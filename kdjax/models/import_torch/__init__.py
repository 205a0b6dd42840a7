"""PyTorch's state dicts as variables of kdjax's networks, and back.

    variables = load("teacher.pth", "resnet-56", 100, (32, 32, 3))
    outputs = models.create("resnet-56", 100).apply(variables, images, train=False)

Networks whose architecture equals one of kdjax's are known by the names that public
repositories give their modules: see `LAYOUTS`. Logits and features are PyTorch's.
"""

import dataclasses
from pathlib import Path

import numpy as np

from kdjax.models import Variables
from kdjax.models.import_torch import describe, files, mapping
from kdjax.models.import_torch.fit import fitting, guesses, layouts_of, seems
from kdjax.models.import_torch.layout import Guess, Layout
from kdjax.models.import_torch.layouts import LAYOUTS
from kdjax.models.import_torch.mapping import Row
from kdjax.runtime.errors import UserError, unknown

__all__ = [
    "LAYOUTS",
    "Found",
    "Guess",
    "Layout",
    "inspect",
    "load",
    "num_classes_of",
    "rows_of",
    "to_state_dict",
]


@dataclasses.dataclass(frozen=True)
class Found:
    """The content of a file.

    Attributes:
        format: 'PyTorch' or 'safetensors'.
        wrapping: the nested keys under which the state dict is, from the outermost.
        prefix: the common prefix of its keys, such as 'module.'.
        keys: of its tensors, without BatchNorm's batch counters.
        num_values: in all tensors together.
        guesses: the networks that have exactly these tensors, by layout.
        num_classes: outputs of the last dense layer, or None if there is none.
        seems: a description of the file's content in words.
    """

    format: str
    wrapping: tuple[str, ...]
    prefix: str
    keys: tuple[str, ...]
    num_values: int
    guesses: dict[Layout, Guess]
    num_classes: int | None
    seems: str


def inspect(path: str | Path) -> Found:
    """Returns the content of a file of tensors and the networks that it may hold.

    Raises:
        UserError: the file cannot be read, or holds more than tensors.
    """
    state = files.read(path)
    fits = guesses(state.shapes)
    return Found(
        format=state.format,
        wrapping=state.wrapping,
        prefix=state.prefix,
        keys=tuple(state.tensors),
        num_values=sum(array.size for array in state.tensors.values()),
        guesses=fits,
        num_classes=describe.num_classes(state.shapes),
        seems=seems(state.shapes),
    )


def num_classes_of(path: str | Path) -> int:
    """Returns the number of classes of the network in a file.

    Raises:
        UserError: the file cannot be read, or holds no network that kdjax has.
    """
    found = inspect(path)
    if found.num_classes is None or not found.guesses:
        raise UserError(f"{path} holds no network that can be imported: {found.seems}")
    return found.num_classes


def load(
    path: str | Path, name: str, num_classes: int, image_shape: tuple[int, int, int]
) -> Variables:
    """Returns a network's variables from a file of PyTorch's tensors.

    The running variance stays PyTorch's, the unbiased one: evaluation computes the same
    on both sides.

    Args:
        path: a file of `torch.save` with a state dict, wrapped or not, or a
            .safetensors file.
        name: the network's, such as 'resnet-56'.
        num_classes: the number of classes.
        image_shape: height, width and channels. Only plain CNNs depend on height and
            width.

    Returns:
        'params' and 'batch_stats', NumPy arrays, float32.

    Raises:
        UserError: the file cannot be read, holds more than tensors, or is of another
            network; the message lists the first keys that differ.
    """
    state = files.read(path)
    _, rows = fitting(state.shapes, name, num_classes, image_shape, str(path))
    return mapping.to_variables(rows, state.tensors)


def rows_of(
    path: str | Path, name: str, num_classes: int, image_shape: tuple[int, int, int]
) -> tuple[Layout, tuple[Row, ...]]:
    """Returns the layout of a file that holds a network, and its mapping.

    Arguments and errors are those of `load`.
    """
    state = files.read(path)
    return fitting(state.shapes, name, num_classes, image_shape, str(path))


def to_state_dict(
    variables: Variables,
    name: str,
    layout: str,
    image_shape: tuple[int, int, int] = (32, 32, 3),
) -> dict[str, np.ndarray]:
    """Returns PyTorch's state dict of a network's variables.

    PyTorch modules load it with `strict=True`: BatchNorm's batch counters, which are
    not in it, start at 0.

    Args:
        variables: of the network.
        name: the network's.
        layout: the repository whose tensor names are used: the name of one of `LAYOUTS`
            for the network's family.
        image_shape: height, width and channels, on which plain CNNs depend.

    Raises:
        UserError: there is no such network, or no such layout for its family.
    """
    known = {each.name: each for each in layouts_of(name)}
    if layout not in known:
        raise unknown(f"layout of {name}", layout, known)
    num_classes = len(variables["params"]["head"]["bias"])
    rows = mapping.table(known[layout].prefix, name, num_classes, image_shape)
    return mapping.to_tensors(rows, variables)
