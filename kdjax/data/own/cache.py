"""Arrays kept in the user's cache folder, found again by what they were made from."""

import contextlib
import hashlib
import json
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from kdjax.data.tfds_files import write_arrays
from kdjax.runtime.files import cache_folder

Arrays = dict[str, np.ndarray]


def path_of(kind: str, *made_from: Any) -> Path:
    """Returns the file for arrays.

    Args:
        kind: what they are.
        *made_from: plain data that decides them.
    """
    text = json.dumps(made_from, sort_keys=True, default=_plain)
    return (
        cache_folder()
        / f"own-{kind}-{hashlib.sha256(text.encode()).hexdigest()[:24]}.npz"
    )


def load(path: Path) -> Arrays | None:
    """Returns the arrays of a file, or None if there is no whole one."""
    with (
        contextlib.suppress(
            OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error
        ),
        open(path, "rb") as file,
        np.load(file) as arrays,
    ):
        return {key: arrays[key] for key in arrays.files}
    return None


def keep(path: Path, arrays: Arrays) -> None:
    """Writes a file whole, or not at all where there is no place for it."""
    with contextlib.suppress(OSError):  # the cache only saves time
        write_arrays(path, arrays)


def _plain(value: Any) -> Any:
    """Returns an array's hash: positions count, but need not be written out."""
    if isinstance(value, np.ndarray):
        return [str(value.dtype), hashlib.sha256(value.tobytes()).hexdigest()]
    raise TypeError(f"{type(value).__name__} decides no arrays")
