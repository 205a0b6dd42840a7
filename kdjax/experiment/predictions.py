"""Predictions without a network: logits of the training images, from any framework."""

from collections.abc import Sequence

import numpy as np

from kdjax.runtime.errors import UserError
from kdjax.runtime.files import digest, expand

SUFFIX = ".npy"
_LARGEST = float(np.finfo(np.float16).max)


_registered: dict[str, np.ndarray] = {}


def register(table: np.ndarray) -> str:
    """Returns the name by which this process finds predictions given in Python.

    Args:
        table: logits of the training images, `[N, classes]`.
    """
    name = f"predictions-{digest(table)}{SUFFIX}"
    _registered[name] = table
    return name


def is_there(path: str) -> bool:
    """Returns whether a file of predictions is there, or was given in Python."""
    return path in _registered or expand(path).is_file()


def is_table(given: Sequence[str]) -> bool:
    """Returns whether predictions are given, and no network."""
    return bool(given) and all(path.endswith(SUFFIX) for path in given)


def load_table(given: Sequence[str], num_classes: int, train_size: int) -> np.ndarray:
    """Returns predictions of the training images, float32 `[N, classes]`.

    Of several files, the logits whose probabilities are the files' mean.

    Args:
        given: NumPy files of logits.
        num_classes: the data set's.
        train_size: the number of training images.

    Raises:
        UserError: a file that is no such array.
    """
    tables = [_table(path, num_classes, train_size) for path in given]
    if len(tables) == 1:
        return tables[0]
    with np.errstate(divide="ignore"):
        mean = np.mean([_softmax(table) for table in tables], axis=0)
        return np.log(np.maximum(mean, np.finfo(np.float32).tiny)).astype(np.float32)


def _softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def _table(path: str, num_classes: int, train_size: int) -> np.ndarray:
    if path in _registered:
        return _checked(path, _registered[path], num_classes, train_size)
    try:
        # Pickled objects would run code: arrays of numbers only.
        table = np.load(expand(path), allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} cannot be read: {reason}") from error
    return _checked(path, table, num_classes, train_size)


def _checked(
    path: str, table: np.ndarray, num_classes: int, train_size: int
) -> np.ndarray:
    if not isinstance(table, np.ndarray) or table.dtype.kind not in "fiu":
        raise UserError(f"{path} holds no array of numbers")
    if table.shape != (train_size, num_classes):
        raise UserError(
            f"{path} has shape {table.shape}, not ({train_size}, {num_classes}): one "
            "row of logits for every training image, in their order"
        )
    if not np.isfinite(table).all():
        row = int(np.argwhere(~np.isfinite(table).all(axis=1))[0, 0])
        raise UserError(f"{path}: row {row} is not finite")
    if np.abs(table).max() > _LARGEST:
        raise UserError(f"{path}: logits beyond {_LARGEST:g} are too large for float16")
    return table.astype(np.float32)
