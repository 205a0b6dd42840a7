"""Checks class names and labels, and converts labels to integers."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from kdjax.runtime.errors import UserError


def check_names(names: Sequence[str], what: str) -> None:
    """Raises UserError unless there are two or more classes with distinct names.

    Args:
        names: of all classes.
        what: the data set's name in messages.
    """
    if len(names) < 2:
        found = f"only one class ({names[0]!r})" if names else "no class"
        raise UserError(f"{what} has {found}; a classifier needs two or more")
    by_case: dict[str, str] = {}
    for name in names:
        other = by_case.setdefault(name.casefold(), name)
        if other != name:
            raise UserError(
                f"{what}: the classes {other!r} and {name!r} differ in case only; "
                "rename or merge them"
            )
        if list(names).count(name) > 1:
            raise UserError(f"{what}: the class name {name!r} occurs twice")


def check_counts(
    train: np.ndarray, test: np.ndarray | None, names: Sequence[str], what: str
) -> None:
    """Raises UserError for labels out of range or classes without training images.

    Args:
        train: integers `[N]`.
        test: integers `[N]`.
        names: of all classes.
        what: the data set's name in messages.
    """
    for part, labels in (("training", train), ("test", test)):
        if labels is None:
            continue
        if not len(labels):
            raise UserError(f"{what} has no {part} images")
        least, most = int(labels.min()), int(labels.max())
        wrong = least if least < 0 else most
        if not 0 <= wrong < len(names):
            raise UserError(
                f"{what}: {part} label {wrong} is out of range: labels are 0 to "
                f"{len(names) - 1}"
            )
    counts = np.bincount(train, minlength=len(names))
    for label in map(int, np.flatnonzero(counts == 0)):
        if test is not None and (test == label).any():
            raise UserError(
                f"{what}: the class {names[label]!r} is in test but not in training"
            )
        raise UserError(f"{what}: the class {names[label]!r} has no images")


def encode(
    train: Any,
    test: Any,
    names: Sequence[str] | None,
    what: str,
) -> tuple[np.ndarray, np.ndarray | None, tuple[str, ...]]:
    """Checks labels; returns them as int32, and the names of the classes.

    Args:
        train: integers from 0, or names, `[N]`.
        test: the same kind.
        names: of the classes by label; None: the sorted names that occur as labels, or
            numbers up to the largest label.
        what: the data set's name in messages.

    Raises:
        UserError: the labels are of another kind or fail the checks of this module.
    """
    parts = [plain(train, f"{what}: labels")]
    if test is not None:
        parts.append(plain(test, f"{what}: test_labels"))
    texts = [part.dtype.kind == "U" for part in parts]
    if len(set(texts)) > 1:
        raise UserError(f"{what}: labels and test_labels are not both names")
    if texts[0]:
        known = tuple(names) if names is not None else _union(parts)
        check_names(known, what)
        number = {name: label for label, name in enumerate(known)}
        for part in parts:
            for name in np.unique(part):
                if str(name) not in number:
                    raise UserError(
                        f"{what}: label {str(name)!r} is not one of the classes "
                        f"{', '.join(known)}"
                    )
        parts = [np.array([number[str(n)] for n in p], np.int32) for p in parts]
    else:
        for part in parts:
            if part.size and part.min() < 0:
                raise UserError(
                    f"{what}: label {part.min()} is negative; labels count from 0"
                )
        largest = max((int(part.max()) for part in parts if part.size), default=-1)
        if names is None and largest > max(10 * sum(map(len, parts)), 1000):
            raise UserError(
                f"{what}: label {largest} is out of range for {len(parts[0])} images; "
                "labels count from 0"
            )
        known = tuple(names) if names is not None else _numbers(largest + 1)
        check_names(known, what)
    held = parts[1] if test is not None else None
    check_counts(parts[0], held, known, what)
    encoded = [part.astype(np.int32) for part in parts]
    return encoded[0], encoded[1] if test is not None else None, known


def _numbers(count: int) -> tuple[str, ...]:
    return tuple(map(str, range(count)))


def _union(parts: Sequence[np.ndarray]) -> tuple[str, ...]:
    return tuple(sorted({str(name) for part in parts for name in np.unique(part)}))


def plain(labels: Any, what: str) -> np.ndarray:
    """Returns labels as an array of integers or of strings, `[N]`.

    Raises:
        UserError: the labels are of another kind or shape.
    """
    try:
        labels = np.asarray(labels)
    except ValueError as error:
        raise UserError(f"{what} must be one integer or name per image") from error
    if labels.ndim != 1:
        raise UserError(
            f"{what} have the shape {labels.shape}; give one integer or name per image"
        )
    if labels.dtype.kind == "S" or (
        labels.dtype.kind == "O" and all(isinstance(one, str | bytes) for one in labels)
    ):
        labels = np.array(
            [one.decode() if isinstance(one, bytes) else str(one) for one in labels],
            dtype=np.str_,
        )
    if labels.dtype.kind not in "iuU" and labels.dtype.kind != "T":
        hint = ""
        if labels.dtype.kind == "f" and np.isnan(labels).any():
            hint = f", NaN at {int(np.flatnonzero(np.isnan(labels))[0])}"
        raise UserError(
            f"{what} are of dtype {labels.dtype}{hint}; give integers from 0, or names"
        )
    return labels.astype(np.str_) if labels.dtype.kind == "T" else labels
