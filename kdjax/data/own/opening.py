"""Opens one's own data: in memory, or streamed where it is beyond a share of it."""

import dataclasses
import functools
import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kdjax.data.own import arrays, folder, parquet, pixels, tfds
from kdjax.data.own.classes import check_counts
from kdjax.data.own.division import Division, divide
from kdjax.data.own.given import ArrayData, EncodedData
from kdjax.data.own.host_vary import HostVary
from kdjax.data.own.resident import decode, statistics
from kdjax.data.own.sample import streamed_statistics
from kdjax.data.own.spec import KINDS, OwnData
from kdjax.data.own.survey import Survey, survey
from kdjax.data.sources import Dataset, Source, Split
from kdjax.data.streaming.dataset import Streamed
from kdjax.data.streaming.encoded import Records
from kdjax.runtime.console import console
from kdjax.runtime.errors import UserError
from kdjax.runtime.settings import build

VERSION = "1"
"""Of the files' reading; part of every fingerprint."""

_MOST_SIDE = 224  # of networks' inputs, unless image_size asks for more
_LINES = 20  # of broken files that are named


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
class _Plan:
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


def parse(settings: Mapping[str, Any] | OwnData) -> OwnData:
    """Returns the settings of a config's data section; its augmentation is left out.

    Raises:
        UserError: an unknown key, or a value of another type or out of range.
    """
    if isinstance(settings, OwnData):
        return settings
    known = {key: value for key, value in settings.items() if key != "augment"}
    return build(OwnData, "data", known)


def read(settings: OwnData) -> EncodedData | ArrayData:
    """Returns what lies at the settings' path.

    Raises:
        UserError: nothing, or something else than the kind.
    """
    if settings.name not in KINDS:
        return arrays.from_entry(settings)
    if settings.name == "folder":
        return folder.read(settings.path)
    if settings.name == "npz":
        return arrays.read_npz(settings.path)
    if settings.name == "arrays":
        return arrays.registered(settings.path)
    if settings.name == "parquet":
        return parquet.read(settings)
    return tfds.read(settings)


def find_kind(path: str) -> str:
    """Returns the kind of data at a path: 'folder', 'npz' or 'parquet'.

    Raises:
        UserError: there is nothing, or something else.
    """
    place = Path(path).expanduser()
    if not place.exists():
        raise UserError(f"no such folder or file: {path}")
    choices = "choices: a folder of class folders, an .npz file, parquet files"
    if place.is_file():
        suffix = place.suffix.casefold()
        if suffix in (".npz", ".parquet"):
            return suffix[1:]
        raise UserError(f"{path} is a file of {suffix or 'no suffix'}; {choices}")
    if parquet.files_of(place):
        return "parquet"
    if folder.subfolders(place):
        return "folder"
    raise UserError(f"{path} holds {folder.contents(place)}; {choices}")


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
        division, shape = _divide(own, data), _array_shape(own, data)
        height, width, _ = data.train.images.shape[1:]
        in_memory = True
    else:
        plan = _look(own, data)
        division, shape = plan.division, plan.shape
        height, width = plan.size
        in_memory = _fits(own, plan)
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


def open_own(
    settings: Mapping[str, Any] | OwnData, vary: HostVary | None = None
) -> Dataset | Streamed:
    """Opens one's own data.

    Args:
        settings: a config's data section.
        vary: how training images are varied if they are streamed; None: not at all.

    Returns:
        The data set in memory, or one that is read while it is used.

    Raises:
        UserError: what was found is not what the settings say: see the messages.
    """
    own = parse(settings)
    data = read(own)
    if isinstance(data, ArrayData):
        return _from_arrays(own, data)
    plan = _look(own, data)
    for known in filter(None, plan.surveys):
        _tell(own, [known.broken[number] for number in sorted(known.broken)])
    resident = _fits(own, plan)
    _say(own, data.classes, plan.division)
    _say_size(own, plan, resident)
    if resident:
        return _resident(own, plan)
    return _streamed(own, plan, vary or HostVary())


def _resident(own: OwnData, plan: _Plan) -> Dataset:
    stamp = plan.data.stamp
    decoded = [
        decode(records, numbers, plan.shape, stamp, own.label)
        for records, _, numbers in plan.parts
    ]
    _tell(own, [line for part in decoded for line in part.broken])
    train, test = (Split(part.images, part.labels) for part in decoded)
    if own.train_size is None:
        check_counts(train.labels, test.labels, plan.data.classes, own.label)
    return _dataset(own, plan.data.classes, train, test, _content(plan, "resident"))


def _streamed(own: OwnData, plan: _Plan, vary: HostVary) -> Streamed:
    (train, known, numbers), (test, _, test_numbers) = plan.parts
    evaluation = functools.partial(square_view, channels=plan.shape[2])
    mean, std = (0.0,) * plan.shape[2], (1.0,) * plan.shape[2]
    if own.normalise:
        mean, std = streamed_statistics(
            train, numbers, known.labels, plan.shape, plan.data.stamp, own.label
        )
    source = Source(
        tfds_name=None,
        num_classes=len(plan.data.classes),
        image_shape=plan.shape,
        train_size=len(numbers),
        test_size=len(test_numbers),
        mean=mean,
        std=std,
        in_memory=False,
        classes=plan.data.classes,
    )
    return Streamed(
        source,
        (train, numbers),
        (test, test_numbers),
        dataclasses.replace(vary, channels=plan.shape[2]),
        own.workers,
        own.broken,
        name=own.name,
        version=VERSION,
        content=_content(plan, "streamed"),
        evaluation=evaluation,
    )


def square_view(content: bytes, size: int, channels: int) -> np.ndarray:
    """Returns an encoded image as evaluation sees it, `[size, size, channels]`."""
    return pixels.view(content, (size, size, channels))


def _from_arrays(own: OwnData, data: ArrayData) -> Dataset:
    division, shape = _divide(own, data), _array_shape(own, data)
    _say(own, data.classes, division)
    held = data.train if division.held else data.test
    assert held is not None
    train, test = (
        Split(pixels.fit(split.images[numbers], shape), split.labels[numbers])
        for split, numbers in ((data.train, division.train), (held, division.test))
    )
    return _dataset(own, data.classes, train, test)


def _dataset(
    own: OwnData,
    classes: tuple[str, ...],
    train: Split,
    test: Split,
    content: str = "",
) -> Dataset:
    channels = train.images.shape[-1]
    mean, std = (0.0,) * channels, (1.0,) * channels
    if own.normalise:
        mean, std = statistics(train.images)
    return Dataset(
        name=own.name,
        version=VERSION,
        train=train,
        test=test,
        num_classes=len(classes),
        mean=mean,
        std=std,
        classes=classes,
        source_content=content,
    )


def _divide(own: OwnData, data: ArrayData) -> Division:
    test = None if data.test is None else data.test.labels
    return divide(own, data.classes, data.train.labels, test)


def _array_shape(own: OwnData, data: ArrayData) -> tuple[int, int, int]:
    height, width, channels = data.train.images.shape[1:]
    if own.image_size is not None:
        height = width = own.image_size
    return height, width, channels


def _look(own: OwnData, data: EncodedData) -> _Plan:
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
    return _Plan(data, (train, test), division, (side, side, channels), (height, width))


def _content(plan: _Plan, way: str) -> str:
    """Returns a hash of all that decides pixels and labels, wherever files lie."""
    decided = [VERSION, pixels.VERSION, way, plan.shape]
    content = hashlib.sha256(json.dumps(decided).encode())
    for _, known, numbers in plan.parts:
        content.update(f"{len(numbers)}\n".encode())
        content.update(known.labels[numbers].tobytes())
        content.update(known.digests[numbers].tobytes())
    return content.hexdigest()[:16]


def _fits(own: OwnData, plan: _Plan) -> bool:
    # Of all memory, not of what is free just now: it decides a fingerprint.
    return plan.bytes <= own.memory_share * _memory()


@functools.cache
def _memory() -> int:
    """Returns the bytes of memory of this machine, or of this container."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(memory, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # no container, or 'max'
        return memory


def _say(own: OwnData, classes: Sequence[str], division: Division) -> None:
    note = f"; {division.note}" if division.note else ""
    console.print(
        f"{own.label}: {len(classes)} classes, {len(division.train):,} training and "
        f"{len(division.test):,} test images{note}",
        markup=False,
    )


def _say_size(own: OwnData, plan: _Plan, resident: bool) -> None:
    height, width, channels = plan.shape
    kind = "grey" if channels == 1 else "RGB"
    console.print(
        f"{own.label}: images of {plan.size[1]}x{plan.size[0]} (median) become "
        f"{width}x{height}, {kind}; {plan.bytes / 1e6:,.0f} MB decoded "
        f"{'fit into' if resident else 'are more than'} {own.memory_share:.0%} of "
        f"{_memory() / 1e9:,.0f} GB of memory (data.memory_share): "
        f"{'kept on the devices' if resident else 'streamed'}",
        markup=False,
    )


def _tell(own: OwnData, lines: Sequence[str]) -> None:
    """Names what cannot be read, or stops."""
    if lines and own.broken == "stop":
        raise UserError(
            f"{own.label}: {lines[0]} (cannot be read); data.broken=skip goes on "
            "without it"
        )
    for line in lines[:_LINES]:
        console.print(f"{own.label}: skipped {line}", markup=False)
    if len(lines) > _LINES:
        console.print(f"{own.label}: and {len(lines) - _LINES:,} more", markup=False)
