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

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from kdjax import models
from kdjax.data.streaming.dataset import Images
from kdjax.experiment import finished, predictions
from kdjax.experiment.config import Experiment
from kdjax.experiment.finished import Finished
from kdjax.experiment.stage import Stage
from kdjax.models import Variables
from kdjax.runtime.console import console
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


@dataclasses.dataclass
class Givens:
    """What an experiment's stages are given, each read once.

    Attributes:
        experiment: the graph of stages, with the teachers' own normalisation.
        images: the data set.
    """

    experiment: Experiment
    images: Images

    def __post_init__(self) -> None:
        self._variables: dict[str, Variables] = {}
        self._tables: dict[str, np.ndarray] = {}
        self._starts: dict[str, Variables] = {}
        self._digests: dict[str, str] = {}

    @property
    def tables(self) -> dict[str, np.ndarray]:
        """The given predictions, by stage."""
        for name, stage in self.experiment.stages.items():
            if predictions.is_table(stage.given) and name not in self._tables:
                self._tables[name] = predictions.load_table(
                    stage.given, self.images.num_classes, self.images.train_size
                )
        return self._tables

    def variables(self, name: str) -> Variables:
        """Returns the variables of a given network; nothing for predictions."""
        stage = self.experiment.stages[name]
        if predictions.is_table(stage.given):
            return {"params": {}, "batch_stats": {}}
        if name not in self._variables:
            self._variables[name] = self._cast(
                load_variables(
                    stage.given[0],
                    stage.model,
                    self.images.num_classes,
                    self.images.image_shape,
                )
            )
        return self._variables[name]

    def start(self, name: str) -> Variables | None:
        """Returns what a stage's student starts from, if that is given.

        It may be of another number of classes: see `with_start`.
        """
        stage = self.experiment.stages[name]
        if not stage.start:
            return None
        if name not in self._starts:
            self._starts[name] = self._cast(self._load_start(stage))
        return self._starts[name]

    def _load_start(self, stage: Stage) -> Variables:
        network = _torch_network(stage.start, stage.model, self.images.num_classes)
        if network is not None:
            from kdjax.models.foreign import weights

            return weights.load(stage.start, network, head=True)
        classes = self._classes_of(stage)
        return load_variables(
            stage.start, stage.model, classes, self.images.image_shape
        )

    def digest(self, name: str) -> dict[str, str]:
        """Returns hashes of what a stage is given, for its fingerprint."""
        stage, hashed = self.experiment.stages[name], {}
        if stage.given:
            table = predictions.is_table(stage.given)
            content = self.tables[name] if table else self.variables(name)
            hashed["given"] = self._digest(("given", name), content)
        if stage.start:
            hashed["start"] = self._digest(("start", name), self.start(name))
        return hashed

    def _digest(self, key: Any, content: Any) -> str:
        return self._digests.setdefault(key, digest(content))

    def _cast(self, variables: Variables) -> Variables:
        dtype = self.experiment.dtype
        return jax.tree.map(lambda leaf: np.asarray(leaf, dtype), variables)

    def _classes_of(self, stage: Stage) -> int:
        """Returns how many classes the network has that a student starts from."""
        if stage.start.endswith(TORCH):
            from kdjax.models import import_torch  # here: seldom needed

            path = expand(stage.start)
            return import_torch.num_classes_of(path)
        other = other_stage(stage.start)
        return other.num_classes if other else self.images.num_classes


def with_start(
    name: str, own: Variables, start: Variables, told: bool = True
) -> Variables:
    """Returns a student's first variables: the given ones, where they fit.

    What has another shape is the classifier for another number of classes: it keeps
    its own start, and a line says so.

    Args:
        name: of the stage.
        own: what the student would start from.
        start: what is given.
        told: whether to print the line.
    """
    given, flat = flatten_dict(start), flatten_dict(own, keep_empty_nodes=True)
    replaced = []
    for path, leaf in flat.items():
        if path not in given:
            continue
        if np.shape(given[path]) == np.shape(leaf):
            flat[path] = given[path]
        else:
            replaced.append("/".join(path[1:]))
    if replaced and told:
        console.print(
            f"{name} starts from given weights, but for {', '.join(replaced)}: of "
            "another number of classes, these start anew",
            markup=False,
        )
    return unflatten_dict(flat)
