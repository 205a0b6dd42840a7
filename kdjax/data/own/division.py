"""Splits one's own images into training, validation and test images."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from kdjax.data.own.classes import check_counts
from kdjax.data.own.spec import OwnData
from kdjax.data.subsets import check_held, check_size, stratified
from kdjax.runtime.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class Division:
    """Positions of the images that are used.

    Attributes:
        train: int32 `[N]`, ascending.
        test: int32 `[M]`, ascending: of the test images, or of the training images
            where `held`.
        held: whether test images are taken from the training images.
        note: a line for the user on how they are taken.
    """

    train: np.ndarray
    test: np.ndarray
    held: bool
    note: str


def divide(
    settings: OwnData,
    classes: Sequence[str],
    train: np.ndarray,
    test: np.ndarray | None,
) -> Division:
    """Returns the training and the test images; subsets are fixed and stratified.

    Args:
        settings: sizes, validation and the share of the test images.
        classes: their names by label.
        train: labels `[N]`; -1 where an image cannot be read.
        test: labels `[M]` of the test images; None: there are none.

    Raises:
        UserError: a size is not between 1 and that of the split, or a class has no
            training images.
    """
    what = settings.label
    used = np.flatnonzero(train >= 0)
    held, note = test is None, ""
    tested = np.flatnonzero(test >= 0) if test is not None else used[:0]
    own = train[used], test[tested] if test is not None else None
    check_counts(*own, classes, what)
    if test is None:
        size = min(max(1, round(settings.test_share * len(used))), len(used) - 1)
        used, tested = _hold_out(train, used, size, "data.test_share")
        note = (
            f"a fixed {settings.test_share:.0%} of each class is kept for tests "
            "(data.test_share)"
        )
        counts = np.bincount(train[used], minlength=len(classes))
        for label in map(int, np.flatnonzero(counts == 0)):
            raise UserError(
                f"{what}: the class {classes[label]!r} has too few images to keep "
                f"{settings.test_share:.0%} of them for tests: "
                f"{int((train == label).sum())}"
            )
    if settings.validation:
        check_held(settings.validation, len(used), f"validation of {what}")
        used, tested = _hold_out(train, used, settings.validation, "data.validation")
        held, note = True, "validation images are taken from the training images"
    labels = train if held or test is None else test
    return Division(
        _subset(train, used, settings.train_size, f"train_size of {what}"),
        _subset(labels, tested, settings.test_size, f"test_size of {what}"),
        held,
        note,
    )


def _hold_out(
    labels: np.ndarray, used: np.ndarray, size: int, what: str
) -> tuple[np.ndarray, np.ndarray]:
    check_held(size, len(used), what)
    held = np.zeros(len(used), bool)
    held[stratified(labels[used], size)] = True
    return used[~held], used[held]


def _subset(
    labels: np.ndarray, used: np.ndarray, size: int | None, what: str
) -> np.ndarray:
    if size is not None:
        check_size(size, len(used), what)
        used = used[np.sort(stratified(labels[used], size))]
    return used.astype(np.int32)
