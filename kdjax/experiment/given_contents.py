"""What the stages of an experiment are given, each read once; a student's start.

The forms, and how each is read, are in `given`.
"""

import dataclasses
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from kdjax.data.streaming.dataset import Images
from kdjax.experiment import predictions
from kdjax.experiment.config import Experiment
from kdjax.experiment.given import load_start, load_variables
from kdjax.models import Variables
from kdjax.runtime.console import console
from kdjax.runtime.files import digest


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
            self._starts[name] = self._cast(
                load_start(
                    stage.start,
                    stage.model,
                    self.images.num_classes,
                    self.images.image_shape,
                )
            )
        return self._starts[name]

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
