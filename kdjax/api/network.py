"""A trained network: its predictions, its evaluation and its variables."""

import functools
import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdjax import losses, models
from kdjax.data import own
from kdjax.experiment import finished
from kdjax.experiment.config import PRECISIONS
from kdjax.experiment.finished import Finished
from kdjax.export import tensors
from kdjax.export.description import deploy
from kdjax.export.exporting import export
from kdjax.export.options import Options
from kdjax.models import Variables
from kdjax.runtime.errors import UserError, unknown
from kdjax.runtime.files import expand
from kdjax.train.prediction import Predictor


class Network:
    """A trained network of a finished stage.

    Attributes:
        name: its name, such as 'resnet-8'.
        classes: names by label; empty if the data set has no names.
        num_classes: the number of its logits.
        image_shape: height, width and channels of its input.
        mean: of each channel, on the scale 0 to 1.
        std: standard deviation of each channel.
        source: the stage that it comes from, in the form for `teacher=`.
    """

    def __init__(self, about: Finished, source: str):
        """Makes the object; files are read when they are needed.

        Args:
            about: the network's location and properties.
            source: 'WORKDIR:STAGE:SEED'.
        """
        self._about, self.source = about, source
        self.name, self.num_classes = about.model, about.num_classes
        self.classes, self.image_shape = about.classes, about.image_shape
        channels = about.image_shape[-1]
        self.mean = about.mean or (0.0,) * channels
        self.std = about.std or (1.0,) * channels

    def __repr__(self) -> str:
        """Returns name, source and accuracy."""
        known = "" if self.accuracy is None else f", accuracy {self.accuracy:.4f}"
        return f"Network({models.inner(self.name)}, {self.source}{known})"

    @property
    def accuracy(self) -> float | None:
        """The accuracy on the experiment's test images, from 0 to 1."""
        networks = self._about.result.get("networks", {"student": {}})
        return networks["student"].get("test_accuracy")

    @functools.cached_property
    def variables(self) -> Variables:
        """'params' and 'batch_stats', NumPy arrays.

        Raises:
            UserError: the files are damaged.
        """
        return self._about.variables()

    def torch(self, layout: str = "") -> dict[str, Any]:
        """Returns the network as a state dict of PyTorch: tensors by name.

        Args:
            layout: the repository whose tensor names are used; '': the first one known
                for the network's family. A PyTorch network keeps its own names.

        Raises:
            UserError: torch is not installed, or there is no such network in PyTorch.
        """
        Options(format="torch", layout=layout).check_installed()
        return tensors.state_dict(deploy(self._about), models.inner(self.name), layout)

    def logits(self, images: Any) -> np.ndarray:
        """Returns logits, `[N, classes]`.

        Args:
            images: uint8 `[N, height, width]` or `[N, height, width, channels]` of any
                size; or PIL images, or paths of files.

        Raises:
            UserError: `images` are not images.
        """
        pixels = own.fit(images, self.image_shape)
        return self._predictor.logits(self.variables, pixels)

    def predict(self, images: Any) -> np.ndarray:
        """Returns the classes' probabilities, `[N, classes]`, in the order `classes`.

        Args:
            images: as for `logits`.
        """
        return np.asarray(jax.nn.softmax(self.logits(images), axis=-1))

    def evaluate(
        self, images: Any, labels: Sequence[int] | Sequence[str] | np.ndarray
    ) -> dict[str, float]:
        """Returns 'accuracy', 'top5' and 'loss' on some images.

        Args:
            images: as for `logits`.
            labels: numbers, or names of classes.

        Raises:
            UserError: a label is not one of the classes, or there are more or fewer
                labels than images.
        """
        numbers = self._numbers(labels)
        logits = self.logits(images)
        if len(numbers) != len(logits):
            raise UserError(f"{len(numbers)} labels of {len(logits)} images")
        if not len(logits):
            raise UserError("no images to evaluate on")
        best = np.argsort(-logits, axis=1, kind="stable")
        hits = best[:, : min(5, self.num_classes)] == numbers[:, None]
        loss = losses.cross_entropy(jnp.asarray(logits), jnp.asarray(numbers))
        return {
            "accuracy": float(np.mean(hits[:, 0])),
            "top5": float(np.mean(hits.any(axis=1))),
            "loss": float(np.mean(loss)),
        }

    def export(
        self,
        out: str | os.PathLike[str],
        *,
        format: str = "onnx",
        int8: bool = False,
        uint8: bool = False,
        opset: int = 0,
        layout: str = "",
        calibration: int = 256,
        activations: str = "int8",
        data: str | os.PathLike[str] | None = None,
        threads: int = 0,
    ) -> dict[str, Any]:
        """Writes the network to a folder, as `python -m kdjax.export` does.

        Args:
            out: the folder; it must be new or empty.
            format: 'onnx', 'stablehlo', 'safetensors', or 'torch': a state dict.
            int8: whether to write a quantised file as well; 'onnx' only.
            uint8: whether the exported network takes uint8 images and normalises them
                itself.
            opset: the version of ONNX's operators; 0: the default.
            layout: for 'torch': the repository whose tensor names are used.
            calibration: the number of training images that calibrate the quantisation.
            activations: the type of quantised activations, 'int8' or 'uint8'.
            data: where the run's images are now, if they have moved.
            threads: for the measurements in the table; 0: all cores.

        Returns:
            The content of `model.json`.

        Raises:
            UserError: see `kdjax.export.exporting.export`.
        """
        options = Options(
            format=format,
            int8=int8,
            uint8=uint8,
            opset=opset,
            layout=layout,
            calibration=calibration,
            activations=activations,
            data=None if data is None else expand(data),
            threads=threads,
        )
        workdir, stage, seed = self.source.rsplit(":", 2)
        folders = expand(workdir), expand(out)
        return export(folders[0], stage, folders[1], options, int(seed))

    def _numbers(self, labels: Any) -> np.ndarray:
        labels = np.asarray(labels)
        if labels.dtype.kind in "US":
            index = {name: number for number, name in enumerate(self.classes)}
            for name in labels:
                if str(name) not in index:
                    raise unknown("class", str(name), self.classes)
            return np.array([index[str(name)] for name in labels], np.int32)
        wrong = labels[(labels < 0) | (labels >= self.num_classes)]
        if wrong.size:
            raise UserError(f"label {wrong[0]} is not from 0 to {self.num_classes - 1}")
        return labels.astype(np.int32)

    @functools.cached_property
    def _predictor(self) -> Predictor:
        precision = PRECISIONS[self._about.precision]
        return Predictor(self.name, self.num_classes, self.mean, self.std, *precision)


def load(workdir: str | os.PathLike[str], stage: str, seed: int = 0) -> Network:
    """Returns the network of a finished stage.

    Args:
        workdir: the experiment's.
        stage: the stage's name, such as 'student'.
        seed: the replica's number.

    Raises:
        UserError: there is no such folder, stage or seed.
    """
    about = finished.find(expand(workdir), stage, seed)
    return Network(about, f"{workdir}:{stage}:{seed}")
