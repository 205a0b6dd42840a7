"""The results of readers of one's own data: encoded records, or arrays."""

import dataclasses

from kdjax.data.sources import Split
from kdjax.data.streaming.encoded import Records


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedData:
    """Encoded images on disk, not yet read.

    Attributes:
        train: the training images, or all images if there are no test images.
        test: the test images, or None.
        classes: their names by label.
        stamp: a hash of path, names, sizes and times of all files, for caches.
        note: a line for the user, or ''.
    """

    train: Records
    test: Records | None
    classes: tuple[str, ...]
    stamp: str
    note: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class ArrayData:
    """Decoded images in memory.

    Attributes:
        train: the training images, or all images if there are no test images.
        test: the test images, or None.
        classes: their names by label.
    """

    train: Split
    test: Split | None
    classes: tuple[str, ...]
