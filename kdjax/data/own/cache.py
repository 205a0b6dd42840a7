"""Arrays in the user's cache folder, under a hash of what they were made from."""

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
    """Returns the path of a cached file.

    Args:
        kind: a word for its content.
        *made_from: plain data that determines the content.
    """
    text = json.dumps(made_from, sort_keys=True, default=_plain)
    return (
        cache_folder()
        / f"own-{kind}-{hashlib.sha256(text.encode()).hexdigest()[:24]}.npz"
    )


def load(path: Path) -> Arrays | None:
    """Returns the arrays of a file, or None if it is missing or damaged."""
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
    """Writes a file atomically, or not at all if it cannot be written."""
    with contextlib.suppress(OSError):  # the cache only saves time
        write_arrays(path, arrays)


def _plain(value: Any) -> Any:
    """Returns a hash in place of an array, which would make a long text."""
    if isinstance(value, np.ndarray):
        return [str(value.dtype), hashlib.sha256(value.tobytes()).hexdigest()]
    raise TypeError(f"{type(value).__name__} decides no arrays")
