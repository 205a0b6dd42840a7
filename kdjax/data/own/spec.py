"""The settings of one's own data with their defaults, and the kinds of data."""

import dataclasses
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from kdjax.data.pixels import SMALLEST
from kdjax.runtime.errors import UserError, unknown

KINDS = ("folder", "npz", "parquet", "tfds", "arrays")
"""The kinds that kdjax reads; installed packages add theirs by entry points."""

GROUP = "kdjax.data"
"""The group of entry points: a name, and a function that returns arrays."""

BROKEN = ("skip", "stop")


@dataclasses.dataclass(frozen=True)
class OwnData:
    """The settings of a data set of one's own.

    Attributes:
        name: its kind: one of `KINDS`, or an entry point's name.
        path: the folder or file; for 'tfds' the data set's name in TFDS ('name',
            'name/config', 'name:version'); for 'arrays' the result of
            `register_arrays`; passed unchanged to an entry point's function.
        dir: for 'tfds' the folder of all data sets; None: TFDS's default folder.
        image_size: height and width of the networks' inputs; None: the median of the
            images' shorter sides, at most 224, and for arrays their own size.
        test_share: the share of the images that is used as test images if there are
            none.
        image_column: column or feature of the images ('parquet', 'tfds').
        label_column: column or feature of the labels ('parquet', 'tfds').
        memory_share: the share of the machine's memory that decoded images may take; a
            larger data set is streamed during training.
        broken: what happens to a file that cannot be read: 'skip' prints a line and
            continues without it, 'stop' ends the run.
        workers: the processes that read a streamed data set; 0: threads.
        train_size: the number of training images; None: all.
        test_size: the number of test images; None: all.
        validation: if positive, this many images are removed from the training set and
            replace the test images.
        normalise: whether images are normalised by the mean and deviation of the
            training images, or not at all.
        options: further arguments of an entry point's function.
    """

    name: str = ""
    path: str = ""
    dir: str | None = None
    image_size: int | None = None
    test_share: float = 0.2
    image_column: str = "image"
    label_column: str = "label"
    memory_share: float = 0.25
    broken: str = "skip"
    workers: int = 2
    train_size: int | None = None
    test_size: int | None = None
    validation: int = 0
    normalise: bool = True
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not is_own(self.name):
            raise unknown("kind of data", self.name, names())
        if not self.path and self.name in KINDS:
            raise UserError(f"data.path is missing: the path of the {self.name!r} data")
        for key, value, kind in (
            ("dir", self.dir, str),
            ("image_size", self.image_size, int),
            ("train_size", self.train_size, int),
            ("test_size", self.test_size, int),
        ):
            if value is not None and type(value) is not kind:
                raise UserError(f"data.{key}={value!r} is not of type {kind.__name__}")
        if self.broken not in BROKEN:
            raise unknown("treatment of broken images", self.broken, BROKEN)
        for key, least in (("image_size", SMALLEST), ("workers", 0), ("validation", 0)):
            value = getattr(self, key)
            if value is not None and value < least:
                raise UserError(f"data.{key}={value} must be at least {least}")
        if not 0 < self.test_share < 1:
            raise UserError(
                f"data.test_share={self.test_share} must lie between 0 and 1"
            )
        if not 0 <= self.memory_share <= 1:
            raise UserError(
                f"data.memory_share={self.memory_share} must be from 0 to 1"
            )

    @property
    def label(self) -> str:
        """The data set's name in messages: its kind and path."""
        return f"{self.name} {self.path}".strip()


def entries() -> dict[str, metadata.EntryPoint]:
    """Returns the data sources of installed packages by name, not yet imported."""
    return {entry.name: entry for entry in metadata.entry_points(group=GROUP)}


def names() -> tuple[str, ...]:
    """Returns all kinds of one's own data: kdjax's and those of installed packages."""
    return (*KINDS, *(name for name in sorted(entries()) if name not in KINDS))


def is_own(name: str) -> bool:
    """Returns whether `name` is a kind of one's own data."""
    return name in KINDS or name in entries()
