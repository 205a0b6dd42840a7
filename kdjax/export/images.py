"""The images of a finished run, on which exports are verified and measured.

They are opened as in the run, by the config in its `results.json`.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kdjax.data import own, sources
from kdjax.data.sources import Dataset, Split
from kdjax.data.streaming.dataset import Images
from kdjax.experiment import finished
from kdjax.experiment.build import open_images
from kdjax.experiment.config import parse_data
from kdjax.experiment.finished import Finished
from kdjax.runtime.errors import UserError

MOST = 10_000
"""The largest number of test images that are used, evenly spread over all."""


def open_of(
    found: Finished, data: Mapping[str, Any], moved: Path | None = None
) -> Images:
    """Returns the data set of a finished stage.

    Args:
        found: the stage's network.
        data: the data section of its run's config.
        moved: where the images are now; None: where they were.

    Raises:
        UserError: the images are missing, or are not those of the run.
    """
    section = dict(data)
    if moved is not None:
        section.update(_place(section["name"], moved))
    augment = parse_data(section)
    try:
        images = open_images(section, augment)
    except UserError as error:
        raise UserError(
            f"the images of the run are needed, but {error} (if they "
            "have moved, give --data)"
        ) from error
    recorded = finished.settings_of(found.folder)["data"]
    if recorded.get("content", images.content) != images.content:
        place = section.get("path") or section.get("dir") or section["name"]
        raise UserError(
            f"the images in {place} are not those of the run: their digest is "
            f"{images.content}, not {recorded['content']}"
        )
    return images


def _place(name: str, moved: Path) -> dict[str, str]:
    """Returns the entries of a data section on where the images are."""
    if name in sources.SOURCES or name == "tfds":
        return {"dir": str(moved)}
    if name == "arrays":  # given in Python, and saved later
        return {"name": own.find_kind(str(moved)), "path": str(moved)}
    return {"path": str(moved)}


def spread(total: int, most: int) -> np.ndarray:
    """Returns evenly spread positions of a set; all, if the set is no larger."""
    count = min(total, most)
    return np.arange(count) * total // max(count, 1)


@dataclasses.dataclass(frozen=True)
class Part:
    """Some images of a data set, decoded for evaluation.

    Attributes:
        images: uint8 `[N, height, width, channels]`.
        labels: int32 `[N]`.
        total: the number of images of the whole set.
    """

    images: np.ndarray
    labels: np.ndarray
    total: int

    def some(self, most: int) -> "Part":
        """Returns a number of them, evenly spread."""
        chosen = spread(len(self.labels), most)
        return Part(self.images[chosen], self.labels[chosen], self.total)


def take(images: Images, split: str, most: int) -> Part:
    """Returns images of a split, evenly spread over it.

    Args:
        images: the data set.
        split: 'train' or 'test'.
        most: the largest number of images.

    Raises:
        UserError: no image can be read.
    """
    if isinstance(images, Dataset):
        whole: Split = images.train if split == "train" else images.test
        chosen = spread(len(whole.labels), most)
        return Part(whole.images[chosen], whole.labels[chosen], len(whole.labels))
    total = images.train_size if split == "train" else images.test_size
    pixels, labels, valid = images.evaluated(split, spread(total, most))
    if not valid.any():
        raise UserError(f"{images.name}: none of the {split} images can be read")
    return Part(pixels[valid], labels[valid], total)
