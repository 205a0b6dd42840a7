"""The error for everything that the user of a command can correct."""

import errno
from collections.abc import Iterable

DEPENDENCIES = (
    *("absl", "array_record", "chex", "flax", "grain", "importlib_resources"),
    *("matplotlib", "ml_collections", "numpy", "orbax", "PIL", "requests", "rich"),
    *("scipy", "sklearn", "tensorboardX", "tensorflow_datasets", "threadpoolctl"),
)
"""Modules that kdjax needs besides jax and optax, which are enough for its losses."""


class UserError(ValueError):
    """A mistake outside the program; its one-line message names value and choices.

    The command line prints the message without a traceback and exits with 2.
    """


class NotFiniteError(UserError):
    """A loss or metric is infinite or not a number: training has diverged."""


def unknown(kind: str, value: object, choices: Iterable[object]) -> UserError:
    """Returns the error for a name that is none of `choices`.

    Args:
        kind: the kind of thing that is named, such as 'model'.
        value: the name that was given.
        choices: the names that exist.
    """
    listed = ", ".join(map(str, choices)) or "none"
    return UserError(f"unknown {kind} {value!r}; choices: {listed}")


def one_line(error: Exception) -> str | None:
    """Returns the line for what the user can correct, or None for anything else."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{error.strerror}: {error.filename}"
    if isinstance(error, ModuleNotFoundError) and error.name in DEPENDENCIES:
        return f"{error.name} is missing: pip install kdjax, without --no-deps"
    return None
