"""The result of an experiment."""

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdjax.api.network import Network, load
from kdjax.models import Variables


class Result:
    """A finished experiment; its own figures are those of its last stage.

    Attributes:
        summary: the content of `results.json`.
        workdir: the folder of the experiment.
        stage: the last stage's name, 'student' most often.
    """

    def __init__(self, summary: Mapping[str, Any], workdir: Path):
        """Reads nothing yet."""
        self.summary, self.workdir = summary, workdir
        self.stage = list(summary["stages"])[-1]

    def __repr__(self) -> str:
        """Returns the folder and every stage's median accuracy."""
        words = ", ".join(
            f"{name} {_accuracy(stage)}"
            for name, stage in self.summary["stages"].items()
        )
        return f"Result({self.workdir}: {words})"

    @property
    def accuracy(self) -> float:
        """The median over the seeds of the test accuracy, from 0 to 1."""
        return self.summary["stages"][self.stage]["test_accuracy"]["median"]

    @property
    def accuracies(self) -> list[float]:
        """The test accuracy of every seed, from 0 to 1."""
        return self.summary["stages"][self.stage]["test_accuracy"]["final"]

    def network(self, stage: str = "", seed: int = 0) -> Network:
        """Returns a stage's network; by default the last stage's.

        Args:
            stage: its name.
            seed: the replica's number.

        Raises:
            UserError: there is no such stage or seed.
        """
        return load(self.workdir, stage or self.stage, seed)

    @functools.cached_property
    def student(self) -> Network:
        """The last stage's network, of seed 0."""
        return self.network()

    @property
    def variables(self) -> Variables:
        """The student's 'params' and 'batch_stats'."""
        return self.student.variables

    def torch(self, stage: str = "", seed: int = 0) -> dict[str, Any]:
        """Returns a network as a state dict of PyTorch: see `Network.torch`.

        Args:
            stage: the network's; by default the last one.
            seed: the replica's number.
        """
        return self.network(stage, seed).torch()

    def predict(self, images: Any) -> Any:
        """Returns the student's probabilities: see `Network.predict`."""
        return self.student.predict(images)

    def evaluate(self, images: Any, labels: Any) -> dict[str, float]:
        """Returns the student's figures: see `Network.evaluate`."""
        return self.student.evaluate(images, labels)

    def export(
        self,
        out: str | os.PathLike[str],
        *,
        stage: str = "",
        seed: int = 0,
        **options: Any,
    ) -> dict[str, Any]:
        """Writes a network to a folder; by default the student of seed 0.

        Args:
            out: the folder; it must be new or empty.
            stage: the network's; by default the last one.
            seed: the replica's number.
            **options: `format`, `int8`, `uint8` and others: see `Network.export`.

        Returns:
            The content of `model.json`.

        Raises:
            UserError: see `Network.export`.
        """
        return self.network(stage, seed).export(out, **options)


def _accuracy(stage: Mapping[str, Any]) -> str:
    median = stage["test_accuracy"]["median"]
    return "-" if median is None else f"{100 * median:.2f} %"
