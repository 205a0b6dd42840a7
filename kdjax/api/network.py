"""A network that is finished: it predicts, is evaluated, and gives its variables."""

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
    """A finished network.

    Attributes:
        name: its name, such as 'resnet-8'.
        classes: names by label; empty where the data set has none.
        num_classes: the length of its logits.
        image_shape: height, width and channels of what it sees.
        mean: of each channel, on the scale 0 to 1.
        std: standard deviation of each channel.
        source: the stage that it comes from, as a teacher of another experiment.
    """

    def __init__(self, about: Finished, source: str):
        """Reads nothing yet.

        Args:
            about: where it is, and what it is.
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
            layout: whose names the tensors of a network of kdjax bear; '': those of the
                first layout of its family. A network of PyTorch has its own.

        Raises:
            UserError: torch is not installed, or the network has no form in PyTorch.
        """
        Options(format="torch", layout=layout).check_installed()
        return tensors.state_dict(deploy(self._about), models.inner(self.name), layout)

    def logits(self, images: Any) -> np.ndarray:
        """Returns logits, `[N, classes]`.

        Args:
            images: uint8 `[N, height, width]` or `[N, height, width, channels]` of any
                size; or PIL images, or paths of files.

        Raises:
            UserError: something else than images.
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
            UserError: a label that is none of the classes, or another number of them.
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
            out: the folder; must not exist, or be empty.
            format: 'onnx', 'stablehlo', 'safetensors', or 'torch': a state dict.
            int8: whether a file in 8 bits is written beside it, of 'onnx' alone.
            uint8: whether the file takes uint8 images and normalises them itself.
            opset: the version of ONNX's operators; 0: the usual one.
            layout: of 'torch': whose names the tensors bear.
            calibration: how many training images the ranges of 8 bits come from.
            activations: of `int8`: their type, 'int8' or 'uint8'.
            data: where the run's images are now, if not where they were.
            threads: of the measurements for the table; 0: as many as there are.

        Returns:
            What `model.json` holds.

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
        workdir: of the experiment.
        stage: its name there, such as 'student'.
        seed: which of its replicas.

    Raises:
        UserError: no such folder, stage or seed.
    """
    about = finished.find(expand(workdir), stage, seed)
    return Network(about, f"{workdir}:{stage}:{seed}")
