"""The test images of a run's data set, as many as a report looks at."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from kdjax.data import sources
from kdjax.data.sources import Dataset
from kdjax.data.streaming.dataset import Streamed
from kdjax.experiment.build import open_data
from kdjax.experiment.config import parse_config
from kdjax.report.runs import Run
from kdjax.runtime.errors import UserError

MOST_STREAMED = 1000
"""The most test images that are taken of a data set that does not fit into memory."""


@dataclasses.dataclass(frozen=True, eq=False)
class TestSet:
    """Test images in memory, and what is known of their data set.

    Attributes:
        name: of the data set.
        images: [N, H, W, C], uint8.
        labels: [N] classes.
        total: how many test images the data set has; N, unless it is streamed.
        num_classes: labels are below this number.
        classes: their names by label.
        content: the data set's hash, by which stages know it.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray
    total: int
    num_classes: int
    classes: tuple[str, ...]
    content: str

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels."""
        return self.images.shape[1:]

    @property
    def whole(self) -> bool:
        """Whether these are all test images."""
        return len(self.labels) == self.total


def load(run: Run, data_dir: Path | None = None) -> TestSet:
    """Returns the test images that a run's networks are looked at with.

    Args:
        run: a working folder's.
        data_dir: the folder of data sets, or of one's own images; None means where
            the experiment found them.

    Raises:
        UserError: data that is not there, or of which no test image can be read.
    """
    where: dict[str, Any] = {"dir": str(data_dir)} if data_dir else {}
    if "config" in run.results:
        config = run.results["config"]
        if data_dir and config["data"].get("path"):
            where = {"path": str(data_dir)}
        data = open_data(parse_config({**config, "data": {**config["data"], **where}}))
    else:
        first = next(iter(run.stages.values())).settings["data"]
        sizes = {key: first[key] for key in ("train_size", "test_size")}
        data = sources.load(first["name"], **where, **sizes)
    if isinstance(data, Dataset):
        images, labels = data.test.images, data.test.labels
    else:
        with data:
            images, labels = _some(data)
    names = data.classes or tuple(map(str, range(data.num_classes)))
    return TestSet(
        data.name,
        images,
        labels,
        data.test_size,
        data.num_classes,
        names,
        data.content,
    )


def _some(data: Streamed) -> tuple[np.ndarray, np.ndarray]:
    """Returns images and labels of test images at even distances."""
    # Folders have one class after the other: even distances take of each class.
    count = min(MOST_STREAMED, data.test_size)
    chosen = np.linspace(0, data.test_size - 1, count).round().astype(np.int32)
    images, labels, valid = data.evaluated("test", chosen)
    if not valid.any():
        raise UserError(f"no test image of {data.name} can be read")
    return images[valid], labels[valid]
