"""Atomic writing of files, hashes of arrays, and the cache's folder."""

import contextlib
import errno
import hashlib
import json
import os
import platform
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kdjax.runtime.errors import UserError, shorten

# Processes of several machines may write to one folder.
_HOST = platform.node() or "localhost"
_CHECKSUM = "checksum"
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")  # as in gs://; one letter is a drive


def cache_folder() -> Path:
    """Returns the user's folder for files to reuse: $KDJAX_CACHE, or XDG's cache."""
    if own := os.environ.get("KDJAX_CACHE"):
        return expand(own)
    shared = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return expand(shared) / "kdjax"


def expand(path: str | os.PathLike[str]) -> Path:
    """Returns a path with the home folder in place of '~' or '~USER'.

    Raises:
        UserError: there is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        user = Path(path).parts[0]
        raise UserError(
            f"{shorten(repr(str(path)), 100)}: no home folder is known for {user}"
        ) from error


def _is_there(path: Path) -> bool:
    """Returns whether a path exists.

    Raises:
        OSError: it cannot exist: a parent is a file, or a name is too long.
    """
    try:
        os.stat(path)
    except FileNotFoundError:
        return False
    return True


def check_folder(path: Path, what: str) -> None:
    """Raises UserError unless a folder exists or can be made, and can be written to.

    Args:
        path: the folder's; it is not made.
        what: its name in the message.
    """
    shown = shorten(str(path), 150)
    if path.parts and _SCHEME.fullmatch(path.parts[0]):
        raise UserError(
            f"{what} {shown} is a remote address; choices: a folder of this machine, "
            "where remote storage can be mounted"
        )
    try:
        place = path.absolute()
        while not _is_there(place):
            place = place.parent
        os.listdir(place)
        if not os.access(place, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise UserError(
            f"{what} {shown} cannot be written: {error.strerror}"
        ) from error


@contextlib.contextmanager
def replace_whole(path: Path) -> Iterator[Path]:
    """Yields a temporary path; its file replaces `path` at the end of the block."""
    temporary = path.with_name(f"{path.name}.{_HOST}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        error.filename = error.filename or str(
            path
        )  # the error of a failed write names no file
        raise
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Removes the temporary files of killed processes of this machine.

    Args:
        folder: searched with all folders in it; it need not exist.
    """
    for path in folder.rglob(f"*.{_HOST}.*.tmp"):
        process = path.name.removesuffix(".tmp").rpartition(".")[2]
        if process.isdecimal() and not _is_alive(int(process)):
            path.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # a process of another user
        return True
    return True


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file atomically."""
    with replace_whole(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n")


def write_checked_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes a JSON file with a hash of its content, 'checksum', atomically."""
    write_json(path, {**value, _CHECKSUM: _checksum(value)})


def read_checked_json(path: Path) -> dict[str, Any]:
    """Returns the content of a JSON file without the hash, which it need not have.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged.
    """
    value = json.loads(path.read_bytes())
    if not isinstance(value, dict):
        raise ValueError("it holds no object")
    # Earlier versions wrote no hash.
    saved = value.pop(_CHECKSUM, None)
    if saved is not None and saved != _checksum(value):
        raise ValueError(f"its content does not match its {_CHECKSUM!r}")
    return value


def _checksum(value: Mapping[str, Any]) -> str:
    text = json.dumps(value, sort_keys=True)
    # In the form in which it will be read: keys become strings.
    text = json.dumps(json.loads(text), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def digest(tree: Any) -> str:
    """Returns a hash of a tree's paths, shapes, dtypes and bits."""
    import jax  # here: data sets are read before JAX is imported
    import numpy as np

    content = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(leaf)
        name = f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n"
        content.update(name.encode())
        content.update(array.tobytes())
    return content.hexdigest()[:16]
