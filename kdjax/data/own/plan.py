"""What is known of one's own data before its images are decoded."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from kdjax.data import pixels
from kdjax.data.limits import memory
from kdjax.data.own.division import Division, divide
from kdjax.data.own.given import ArrayData, EncodedData
from kdjax.data.own.kinds import parse, read
from kdjax.data.own.spec import OwnData
from kdjax.data.own.survey import Survey, survey
from kdjax.data.sources import Source
from kdjax.data.streaming.encoded import Records
from kdjax.runtime.errors import UserError

VERSION = "1"
"""Of how data is read; part of every fingerprint."""

_MOST_SIDE = 224  # of networks' inputs, unless image_size asks for more


@dataclasses.dataclass(frozen=True)
class Description:
    """What is known of a data set without decoding its images.

    Attributes:
        kind: 'folder', 'npz', ..., or an entry point's name.
        num_classes: labels are below this number.
        classes: their names by label.
        train_size: the number of training images that a run uses.
        test_size: the number of test images that a run uses.
        height: the median of the training images'.
        width: the median of the training images'.
        channels: 1 if every image is stored without colours, otherwise 3.
        image_shape: height, width and channels of what networks see.
        in_memory: whether decoded images live on the devices, or are streamed.
    """

    kind: str
    num_classes: int
    classes: tuple[str, ...]
    train_size: int
    test_size: int
    height: int
    width: int
    channels: int
    image_shape: tuple[int, int, int]
    in_memory: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """Encoded images that are looked at, and what will be made of them."""

    data: EncodedData
    surveys: tuple[Survey, Survey | None]
    division: Division
    shape: tuple[int, int, int]
    size: tuple[int, int]

    @property
    def parts(self) -> tuple[tuple[Records, Survey, np.ndarray], ...]:
        """Records, what is known of them, and the numbers used: training, test."""
        train, test = self.surveys
        division = self.division
        first = self.data.train, train, division.train
        if division.held:
            return first, (self.data.train, train, division.test)
        assert self.data.test is not None
        assert test is not None
        return first, (self.data.test, test, division.test)

    @property
    def bytes(self) -> int:
        """Of all images that are used, decoded."""
        return math.prod(self.shape) * sum(len(part[2]) for part in self.parts)


def describe(settings: Mapping[str, Any] | OwnData) -> Description:
    """Returns what is known of a data set without decoding its images.

    The first time, every file is looked at; what was found is kept in the cache.

    Args:
        settings: a config's data section.

    Raises:
        UserError: as for `open_own`.
    """
    own = parse(settings)
    data = read(own)
    if isinstance(data, ArrayData):
        division, shape = divide_arrays(own, data), array_shape(own, data)
        height, width, _ = data.train.images.shape[1:]
        in_memory = True
    else:
        plan = look(own, data)
        division, shape = plan.division, plan.shape
        height, width = plan.size
        in_memory = fits(own, plan)
    return Description(
        kind=own.name,
        num_classes=len(data.classes),
        classes=data.classes,
        train_size=len(division.train),
        test_size=len(division.test),
        height=height,
        width=width,
        channels=shape[2],
        image_shape=shape,
        in_memory=in_memory,
    )


def expected(settings: Mapping[str, Any] | OwnData) -> Source:
    """Returns what is known of a data set beforehand, as of kdjax's own data sets.

    Mean and deviation are 0 and 1 here: nothing is decoded.
    """
    found = describe(settings)
    channels = found.channels
    return Source(
        tfds_name=None,
        num_classes=found.num_classes,
        image_shape=found.image_shape,
        train_size=found.train_size,
        test_size=found.test_size,
        mean=(0.0,) * channels,
        std=(1.0,) * channels,
        in_memory=found.in_memory,
        classes=found.classes,
    )


def look(own: OwnData, data: EncodedData) -> Plan:
    """Returns what will be made of encoded images; each file is looked at once.

    Raises:
        UserError: no image can be read, or labels and sizes do not fit.
    """
    train = survey(data.train, data.stamp, own.label)
    test = survey(data.test, data.stamp, own.label) if data.test is not None else None
    for known in (train, test):
        if known is not None and len(known.broken) == len(known.labels):
            raise UserError(
                f"{own.label}: no image can be read; the first is {known.broken[0]}"
            )
    labels = None if test is None else test.labels
    division = divide(own, data.classes, train.labels, labels)
    sizes = train.sizes[train.labels >= 0]
    known_grey = [s.grey[s.labels >= 0] for s in (train, test) if s is not None]
    channels = 1 if all(grey.all() for grey in known_grey) else 3
    height, width = (round(float(side)) for side in np.median(sizes, axis=0))
    side = own.image_size
    if side is None:
        side = min(round(float(np.median(sizes.min(axis=1)))), _MOST_SIDE)
    return Plan(data, (train, test), division, (side, side, channels), (height, width))


def divide_arrays(own: OwnData, data: ArrayData) -> Division:
    """Returns which arrays are used for what; see `division.divide`."""
    test = None if data.test is None else data.test.labels
    return divide(own, data.classes, data.train.labels, test)


def array_shape(own: OwnData, data: ArrayData) -> tuple[int, int, int]:
    """Returns height, width and channels of what networks see of arrays."""
    height, width, channels = data.train.images.shape[1:]
    if own.image_size is not None:
        height = width = own.image_size
    return height, width, channels


def content_of(plan: Plan, way: str) -> str:
    """Returns a hash of all that decides pixels and labels, wherever the files are."""
    decided = [VERSION, pixels.VERSION, way, plan.shape]
    content = hashlib.sha256(json.dumps(decided).encode())
    for _, known, numbers in plan.parts:
        content.update(f"{len(numbers)}\n".encode())
        content.update(known.labels[numbers].tobytes())
        content.update(known.digests[numbers].tobytes())
    return content.hexdigest()[:16]


def fits(own: OwnData, plan: Plan) -> bool:
    """Returns whether decoded images are within the share of the memory."""
    # Of all memory, not of the free memory: the result is part of fingerprints.
    return plan.bytes <= own.memory_share * memory()
