"""Disks that are full, damaged or read-only: their errors as one line."""

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

FAULTS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG),  # no space or inodes; a limit
    *(errno.EIO, errno.EROFS, errno.ENXIO, errno.ESTALE, errno.ETIMEDOUT),
)
"""The system's error numbers that a program cannot do anything about."""

_FULL = FAULTS[:3]
_AGAIN = "run the same command again: it continues from what is saved"


def is_fault(error: OSError) -> bool:
    """Returns whether the disk caused an error, and not the program."""
    return error.errno in FAULTS


def describe(error: OSError, where: object = None) -> str:
    """Returns the message for a disk's error: what happened where, and what to do.

    Args:
        error: one for which `is_fault` is true.
        where: the file or folder, if the error does not name it.
    """
    return line(error.errno or 0, error.filename or where)


def line(number: int, where: object) -> str:
    """Returns the line of `describe` for a number of `FAULTS`."""
    place = "" if where is None else f": {where}"
    remedy = "free some space" if number in _FULL else "see to the disk"
    return f"{os.strerror(number)}{place}; {remedy} and {_AGAIN}"


@contextlib.contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Adds a folder to errors that name no file, such as those of a failed write."""
    try:
        yield
    except OSError as error:
        if is_fault(error) and error.filename is None:
            error.filename = str(folder)
        raise


def number_in(text: str) -> int | None:
    """Returns the number in `FAULTS` that a library's message is about, or None.

    C++ libraries raise errors of their own, which contain the system's text.
    """
    for number in FAULTS:
        if re.search(re.escape(os.strerror(number)), text, re.IGNORECASE):
            return number
    return None
