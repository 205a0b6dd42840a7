"""What comes from elsewhere: the `given` network of a stage, and a student's `start`.

A stage with `given` is not trained: its network is imported, checked once on the test
images, and then teaches as any other stage's does. What may be given:

    teacher.pth                 a PyTorch state dict (also .pt, .th, .bin, .safetensors)
    runs/other:expert           a finished stage of another working folder; with `:1`
                                behind it, its replica of seed 1
    imported/                   a folder that `python -m kdjax.import_torch` has written
    logits.npy                  predictions alone: `[N, classes]` of the N training
                                images in their order; several are an ensemble
    pretrained                  what the library of a `timm:` or `torchvision:` network
                                downloads for it
    variables-DIGEST            what `register` was given in Python
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from kdjax import models
from kdjax.experiment import finished, predictions
from kdjax.experiment.finished import Finished
from kdjax.models import Variables
from kdjax.runtime.errors import UserError, unknown
from kdjax.runtime.files import digest, expand
from kdjax.train import saved_network

TORCH = (".pth", ".pt", ".th", ".bin", ".safetensors")
_FORMS = (
    *(f"FILE{suffix}" for suffix in TORCH),
    f"FILE{predictions.SUFFIX}",
    "WORKDIR:STAGE",
    "a folder of kdjax.import_torch",
    "pretrained",
)

PRETRAINED = "pretrained"

_registered: dict[str, Variables] = {}


def register(variables: Any) -> str:
    """Returns the name by which a stage of this process is given some variables.

    Args:
        variables: 'params' and, where the network has any, 'batch_stats'; or any other
            tree of arrays, of a function: all of it becomes its 'params'.
    """
    names = {"params", "batch_stats"}
    if not isinstance(variables, Mapping) or not {"params"} <= set(variables) <= names:
        variables = {"params": variables}
    variables = {"batch_stats": {}, **jax.device_get(dict(variables))}
    name = f"variables-{digest(variables)}"
    _registered[name] = variables
    return name


def other_stage(given: str) -> Finished | None:
    """Returns the finished network that a path names, or None for other forms.

    Raises:
        UserError: a folder that holds none.
    """
    path = expand(given)
    if path.is_dir() and (path / saved_network.FILE).exists():
        return finished.imported(path)
    if given.endswith(TORCH) or given in _registered:
        return None
    match = re.fullmatch(r"(.+?):([^:/\\]+)(?::(\d+))?", given)
    if match and expand(match[1]).is_dir():
        workdir = expand(match[1])
        return finished.find(workdir, match[2], int(match[3] or 0))
    return None


def check(given: Sequence[str]) -> None:
    """Raises UserError unless something of a known form is there."""
    for path in given:
        if path in _registered or path == PRETRAINED:
            continue
        if path.startswith("variables-"):
            raise UserError(
                f"{path} was given in Python, in another process: give it again there"
            )
        if path.endswith((*TORCH, predictions.SUFFIX)):
            if not predictions.is_there(path):
                raise UserError(f"{path} not found")
        elif other_stage(path) is None:
            folder, colon, _ = path.partition(":")
            if colon and "/" in folder:
                raise UserError(f"no such folder: {folder}, of {path}")
            raise unknown("form of a given network", path, _FORMS)
    if len(given) > 1 and not predictions.is_table(given):
        raise UserError(
            f"one network or several files of predictions, not {', '.join(given)}"
        )


def load_variables(
    given: str, model: str, num_classes: int, image_shape: tuple[int, int, int]
) -> Variables:
    """Returns the variables that are given for a network.

    Args:
        given: one of the forms above, but no predictions.
        model: the network's name.
        num_classes: the length of its logits.
        image_shape: height, width and channels.

    Raises:
        UserError: there is nothing, or it is of another network.
    """
    if given in _registered:
        variables = _registered[given]
    elif (network := _torch_network(given, model, num_classes)) is not None:
        from kdjax.models.foreign import weights

        variables = weights.load(given, network)
    elif given.endswith(TORCH):
        from kdjax.models import import_torch  # here: seldom needed

        path = expand(given)
        inner = models.inner(model)
        variables = import_torch.load(path, inner, num_classes, image_shape)
    else:
        other = other_stage(given)
        if other is None:
            check([given])
            raise unknown("form of a given network", given, _FORMS)
        variables = other.variables()
    _check_shapes(given, model, variables, num_classes, image_shape)
    return variables


def load_start(
    start: str, model: str, num_classes: int, image_shape: tuple[int, int, int]
) -> Variables:
    """Returns the variables that a student starts from.

    Args:
        start: one of the forms above, but no predictions.
        model: the student's network.
        num_classes: of the data set; the variables may be of another number.
        image_shape: height, width and channels.

    Raises:
        UserError: as for `load_variables`.
    """
    network = _torch_network(start, model, num_classes)
    if network is not None:
        from kdjax.models.foreign import weights

        return weights.load(start, network, head=True)
    classes = _classes_of(start, num_classes)
    return load_variables(start, model, classes, image_shape)


def _classes_of(start: str, num_classes: int) -> int:
    """Returns how many classes the network has that a student starts from."""
    if start.endswith(TORCH):
        from kdjax.models import import_torch  # here: seldom needed

        path = expand(start)
        return import_torch.num_classes_of(path)
    other = other_stage(start)
    return other.num_classes if other else num_classes


def network_in(source: str) -> str:
    """Returns the name of kdjax's network that a file of weights holds.

    Args:
        source: the file of PyTorch's tensors.

    Raises:
        UserError: it cannot be read, or its tensors are those of no network of kdjax.
    """
    found = None
    if source.lower().endswith(TORCH):
        from kdjax.models import import_torch  # here: seldom needed

        found = import_torch.inspect(expand(source))
        for guess in found.guesses.values():
            return guess.model
    why = f"; {found.seems}" if found else ""
    raise UserError(f"teacher_model= must name the network in {source}{why}")


def _torch_network(given: str, model: str, num_classes: int) -> Any:
    """Returns a network of PyTorch, if what is given are tensors by its own names.

    Raises:
        UserError: a download for any other network.
    """
    if not given.endswith((*TORCH, PRETRAINED)):
        return None
    network = models.torch_network(model, num_classes)
    if network is None and given == PRETRAINED:
        raise UserError(
            f"{PRETRAINED} weights are timm's and torchvision's, not those of {model}"
        )
    return network


def _check_shapes(
    given: str,
    model: str,
    variables: Variables,
    num_classes: int,
    image_shape: tuple[int, int, int],
) -> None:
    """Raises UserError that lists what does not fit a network."""
    wanted = _shapes(models.shapes(model, num_classes, image_shape))
    there = _shapes(variables)
    wrong = [
        f"{path} is {there[path]}, not {shape}"
        if path in there
        else f"{path} is missing"
        for path, shape in wanted.items()
        if there.get(path) != shape
    ]
    wrong += [f"{path} is extra" for path in there if path not in wanted]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise UserError(
            f"{given} does not fit {model} with {num_classes} classes and images of "
            f"{image_shape}: {'; '.join(wrong[:5])}{more}"
        )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a tree's arrays by path."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.shape(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
