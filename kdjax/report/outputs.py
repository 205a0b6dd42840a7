"""What trained networks say of the test images: logits, features, attention."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdjax import models
from kdjax.data.stream import normalise
from kdjax.experiment.config import PRECISIONS
from kdjax.models import Variables
from kdjax.report import test_set
from kdjax.report.runs import STUDENT, Run, Stage
from kdjax.runtime import backend
from kdjax.runtime.errors import UserError
from kdjax.train.loop import load_network
from kdjax.train.model_outputs import apply_model

_BATCH = 256


@dataclasses.dataclass(frozen=True, eq=False)
class Outputs:
    """What a network says of all test images.

    Attributes:
        logits: [N, classes].
        pooled: [N, channels] features; None where the network has none of that name.
        attention: [N, h, w] mean squared activations of its last level; likewise.
    """

    logits: np.ndarray
    pooled: np.ndarray | None
    attention: np.ndarray | None


class Looker:
    """Looks into the networks of one run, at each of them once.

    Attributes:
        test: the images that the networks are looked at with.
        stages: those that were trained on their data set.
    """

    def __init__(self, run: Run, data_dir: Path | None = None):
        """Loads the data.

        Args:
            run: a working folder's.
            data_dir: the folder of data sets; None means the experiment's.

        Raises:
            UserError: data that is not there, or networks of other data.
        """
        self.test = test_set.load(run, data_dir)
        self.stages = {
            name: stage
            for name, stage in run.stages.items()
            if stage.settings["data"]["content"] == self.test.content
        }
        if not self.stages:
            raise UserError(
                f"the test images of {self.test.name} are not those of the run"
            )
        self._known: dict[tuple[str, int, str], Outputs] = {}

    def outputs(self, name: str, replica: int = 0, role: str = STUDENT) -> Outputs:
        """Returns what one network says of the test images.

        Args:
            name: the stage's.
            replica: which of its replicas.
            role: which of its networks.

        Raises:
            UserError: its files are damaged.
        """
        key = name, replica, role
        if key not in self._known:
            stage = self.stages[name]
            outputs = self._apply(stage, role, self._variables(stage, replica, role))
            # Figures of features and attention are of first replicas.
            small = dataclasses.replace(outputs, pooled=None, attention=None)
            self._known[key] = outputs if replica == 0 else small
        return self._known[key]

    def at_start(self, name: str) -> Outputs:
        """Returns the outputs of the first replica's student before it was trained."""
        stage = self.stages[name]
        start = models.init(
            jax.random.key(stage.seeds[0]),
            stage.student.model,
            self.test.num_classes,
            self.test.image_shape,
            stage.settings.get("copy", 0),
            _dtype(stage),
        )
        return self._apply(stage, STUDENT, start)

    def _variables(self, stage: Stage, replica: int, role: str) -> Variables:
        if stage.settings["precision"] == "float64":
            jax.config.update("jax_enable_x64", True)
        return load_network(
            stage.folders[replica],
            stage.networks[role].model,
            self.test.num_classes,
            self.test.image_shape,
            _dtype(stage),
            role,
        )

    def _apply(self, stage: Stage, role: str, variables: Variables) -> Outputs:
        forward = _forward(
            stage.networks[role].model,
            self.test.num_classes,
            tuple(stage.settings["data"]["mean"]),
            tuple(stage.settings["data"]["std"]),
            stage.settings["precision"],
        )
        images, parts = self.test.images, []
        for start in range(0, len(images), _BATCH):
            some = images[start : start + _BATCH]
            # The last batch is filled up, so that one compiled program serves all.
            filled = np.resize(some, (min(_BATCH, len(images)), *some.shape[1:]))
            outputs = jax.device_get(forward(variables, filled))
            parts.append({key: value[: len(some)] for key, value in outputs.items()})
        joined = {key: np.concatenate([p[key] for p in parts]) for key in parts[0]}
        return Outputs(joined["logits"], joined.get("pooled"), joined.get("attention"))


def _dtype(stage: Stage) -> jnp.dtype:
    return PRECISIONS[stage.settings["precision"]].dtype


@functools.cache
def _forward(
    model: str,
    num_classes: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    precision: str,
) -> Callable[[Variables, np.ndarray], Mapping[str, jax.Array]]:
    """Returns the compiled function to what `Outputs` holds of a network."""
    dtype, compute = PRECISIONS[precision]

    def forward(variables: Variables, images: jax.Array) -> dict[str, jax.Array]:
        pixels = normalise(images, mean, std, dtype)
        outputs, _ = apply_model(model, num_classes, compute, False, variables, pixels)
        found: dict[str, Any] = {"logits": outputs.logits.astype(dtype)}
        features = outputs.features
        if "pooled" in features:
            found["pooled"] = features["pooled"].astype(dtype)
        levels = [name for name in features if name.startswith("stage")]
        levels = [name for name in levels if not name.endswith("_pre")]
        if levels and features[max(levels)].ndim == 4:
            last = features[max(levels)].astype(dtype)
            found["attention"] = jnp.mean(jnp.square(last), axis=-1)
        return found

    return jax.jit(forward, compiler_options=backend.compiler_options())
