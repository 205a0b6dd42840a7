"""Opens one's own data: in memory, or streamed if it needs more than a share of it."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kdjax.data import pixels
from kdjax.data.limits import memory
from kdjax.data.own import cache
from kdjax.data.own.classes import check_counts
from kdjax.data.own.division import Division
from kdjax.data.own.given import ArrayData
from kdjax.data.own.host_vary import HostVary
from kdjax.data.own.kinds import parse, read
from kdjax.data.own.plan import (
    VERSION,
    Plan,
    array_shape,
    content_of,
    divide_arrays,
    fits,
    look,
)
from kdjax.data.own.resident import Decoded, choose, count_values, decode, statistics
from kdjax.data.own.sample import streamed_statistics
from kdjax.data.own.spec import OwnData
from kdjax.data.sources import Dataset, Source, Split
from kdjax.data.streaming.dataset import Streamed
from kdjax.runtime.console import console
from kdjax.runtime.errors import UserError

_LINES = 20  # of broken files that are named


def open_own(
    settings: Mapping[str, Any] | OwnData, vary: HostVary | None = None
) -> Dataset | Streamed:
    """Opens one's own data.

    Args:
        settings: a config's data section.
        vary: the augmentation of streamed training images; None: none.

    Returns:
        The data set in memory, or one that is read during training.

    Raises:
        UserError: the data does not match the settings.
    """
    own = parse(settings)
    data = read(own)
    if isinstance(data, ArrayData):
        return _from_arrays(own, data)
    plan = look(own, data)
    for known in filter(None, plan.surveys):
        _tell(own, [known.broken[number] for number in sorted(known.broken)])
    if data.note:
        console.print(f"{own.label}: {data.note}", markup=False)
    resident = fits(own, plan)
    _say(own, data.classes, plan.division)
    _say_size(own, plan, resident)
    if resident:
        return _resident(own, plan)
    return _streamed(own, plan, vary or HostVary())


def _resident(own: OwnData, plan: Plan) -> Dataset:
    stamp = plan.data.stamp
    decoded: dict[int, Decoded] = {}
    splits, lines = [], []
    for records, known, numbers in plan.parts:
        if id(records) not in decoded:
            used = np.concatenate([n for r, _, n in plan.parts if r is records])
            # All of them if that is little more: other sizes find them in the cache.
            every = np.flatnonzero(known.labels >= 0)
            taken = every if 2 * len(used) >= len(every) else np.sort(used)
            found = decode(
                records, taken.astype(np.int32), plan.shape, stamp, own.label
            )
            decoded[id(records)] = found
        split, broken = choose(decoded[id(records)], numbers)
        splits.append(split)
        lines += broken
    _tell(own, lines)
    train, test = splits
    for part, split in (("training", train), ("test", test)):
        if not len(split.labels):
            raise UserError(f"{own.label}: none of the {part} images can be read")
    if own.train_size is None:
        check_counts(train.labels, test.labels, plan.data.classes, own.label)
    decided = plan.data.train.split, plan.shape, plan.division.train
    path = cache.path_of("counts", pixels.VERSION, stamp, *decided)
    counts = cache.load(path)
    if counts is None:
        counts = {"counts": count_values(train.images)}
        cache.keep(path, counts)
    content = content_of(plan, "resident")
    return _dataset(own, plan.data.classes, train, test, counts["counts"], content)


def _streamed(own: OwnData, plan: Plan, vary: HostVary) -> Streamed:
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
        content=content_of(plan, "streamed"),
        evaluation=evaluation,
    )


def square_view(content: bytes, size: int, channels: int) -> np.ndarray:
    """Returns an image decoded for evaluation, `[size, size, channels]`."""
    return pixels.view(content, (size, size, channels))


def _from_arrays(own: OwnData, data: ArrayData) -> Dataset:
    division, shape = divide_arrays(own, data), array_shape(own, data)
    _say(own, data.classes, division)
    held = data.train if division.held else data.test
    assert held is not None
    train, test = (
        Split(pixels.fit(split.images[numbers], shape), split.labels[numbers])
        for split, numbers in ((data.train, division.train), (held, division.test))
    )
    return _dataset(own, data.classes, train, test, count_values(train.images))


def _dataset(
    own: OwnData,
    classes: tuple[str, ...],
    train: Split,
    test: Split,
    counts: np.ndarray,
    content: str = "",
) -> Dataset:
    channels = train.images.shape[-1]
    mean, std = (0.0,) * channels, (1.0,) * channels
    if own.normalise:
        mean, std = statistics(counts)
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


def _say(own: OwnData, classes: Sequence[str], division: Division) -> None:
    note = f"; {division.note}" if division.note else ""
    console.print(
        f"{own.label}: {len(classes)} classes, {len(division.train):,} training and "
        f"{len(division.test):,} test images{note}",
        markup=False,
    )


def _say_size(own: OwnData, plan: Plan, resident: bool) -> None:
    height, width, channels = plan.shape
    kind = "grey" if channels == 1 else "RGB"
    console.print(
        f"{own.label}: images of {plan.size[1]}x{plan.size[0]} (median) become "
        f"{width}x{height}, {kind}; {plan.bytes / 1e6:,.0f} MB decoded "
        f"{'fit into' if resident else 'are more than'} {own.memory_share:.0%} of "
        f"{memory() / 1e9:,.0f} GB of memory (data.memory_share): "
        f"{'kept on the devices' if resident else 'streamed'}",
        markup=False,
    )


def _tell(own: OwnData, lines: Sequence[str]) -> None:
    """Prints a line for each image that cannot be read, or raises UserError."""
    if lines and own.broken == "stop":
        raise UserError(
            f"{own.label}: {lines[0]} (cannot be read); data.broken=skip leaves it out"
        )
    for line in lines[:_LINES]:
        console.print(f"{own.label}: skipped {line}", markup=False)
    if len(lines) > _LINES:
        console.print(f"{own.label}: and {len(lines) - _LINES:,} more", markup=False)
