"""The error for mistakes that the user can correct, and its messages."""

import difflib
import errno
from collections.abc import Iterable

from kdjax.runtime import disk, private_names

DEPENDENCIES = (
    *("absl", "array_record", "chex", "flax", "grain", "importlib_resources"),
    *("matplotlib", "ml_collections", "numpy", "orbax", "PIL", "requests", "rich"),
    *("scipy", "sklearn", "tensorboardX", "tensorflow_datasets", "threadpoolctl"),
)
"""Modules that kdjax needs; its losses need only jax and optax."""

LONGEST = 290
"""The longest message of a command; with the prefix it stays within 300 characters."""

_PATHS = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR)
_CUT = " ... "
_LIST = 220  # characters of a list of choices


class UserError(ValueError):
    """A mistake of the user; its one-line message names the value and the choices.

    The command line prints the message without a traceback and exits with 2.
    """


class NotFiniteError(UserError):
    """A loss or metric is infinite or not a number: training has diverged."""


def unknown(kind: str, value: object, choices: Iterable[object]) -> UserError:
    """Returns the error for a name that is not among `choices`.

    Args:
        kind: what the name is for, such as 'model'.
        value: the name that was given.
        choices: the names that exist.
    """
    return UserError(
        f"unknown {kind} {shorten(repr(value), 100)}; choices: "
        f"{listed(choices, str(value))}"
    )


def listed(names: Iterable[object], near: str = "") -> str:
    """Returns names joined by commas; of a long list the first ones and a count.

    Args:
        names: all names.
        near: the unknown name; in a long list the names most similar to it come first.
    """
    words = list(map(str, names))
    whole = ", ".join(words)
    if len(whole) <= _LIST:
        return whole or "none"
    like = difflib.get_close_matches(near, words, n=3)
    words = [*like, *(word for word in words if word not in like)]
    count = len(words)
    while count > 1 and len(", ".join(words[:count])) > _LIST:
        count -= 1
    return f"{shorten(', '.join(words[:count]), _LIST)} and {len(words) - count} more"


def shorten(text: str, most: int = LONGEST) -> str:
    """Returns a text on one line of at most `most` characters.

    A longer text is cut in the middle: its beginning names the subject, its end the
    mistake or what to do.
    """
    text = " ".join(text.split("\n"))
    if len(text) <= most:
        return text
    head = (most - len(_CUT)) // 2
    return text[:head] + _CUT + text[len(text) - (most - len(_CUT) - head) :]


def one_line(error: BaseException) -> str | None:
    """Returns the message for an error that the user can correct, or None."""
    line = _line(error)
    return None if line is None else shorten(line)


def _line(error: BaseException) -> str | None:
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, MemoryError):
        return f"there is not enough memory: {str(error) or 'allocation failed'}"
    if isinstance(error, OSError) and disk.is_fault(error):
        return disk.describe(error)
    if isinstance(error, IsADirectoryError):
        # Of two names the second is the target; the first is a temporary file.
        path = error.filename2 or error.filename
        return (
            f"{path} is a folder, but must be a file; delete {path} and run the same "
            "command again"
        )
    if isinstance(error, OSError) and error.errno in _PATHS:
        return f"{error.strerror}: {error.filename}"
    if isinstance(error, RuntimeError | AssertionError):
        return private_names.missing_backend(error)
    if isinstance(error, ModuleNotFoundError) and error.name in DEPENDENCIES:
        return f"{error.name} is missing: pip install kdjax, without --no-deps"
    return None
