"""How a command ends: its exit code, and one line for errors the user can correct."""

import argparse
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import NoReturn

from kdjax.runtime.errors import UserError, one_line

_PATIENCE = 5.0  # seconds that threads get to end, as some may wait forever


def finish(code: int) -> int:
    """Returns a command's exit code, and makes sure that the process ends with it.

    After an error a storage library may still have threads that wait for a failed
    write, or print further messages about it: the process does not wait for them, and
    their output is dropped.

    Args:
        code: as `run` returns it.
    """
    if code == 2:
        sys.stdout.flush()
        sys.stderr.flush()
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        timer = threading.Timer(_PATIENCE, os._exit, (code,))
        timer.daemon = True
        timer.start()
    return code


class Parser(argparse.ArgumentParser):
    """A parser that raises UserError for wrong arguments, instead of exiting."""

    def error(self, message: str) -> NoReturn:
        """Raises UserError with argparse's message."""
        raise UserError(f"{message}; see --help")


def run(command: Callable[[], object], prefix: str = "kdjax: ") -> int:
    """Runs a command and returns the exit code.

    The code is 0 after success, 2 after a mistake of the user, 128 plus the signal's
    number after a signal, and 1 when another process of the run ended. With any code
    but 0 one line is printed on stderr.

    Args:
        command: reads the arguments and does the work.
        prefix: what the line starts with.

    Raises:
        Exception: any error that is not a mistake of the user. If the run has several
            processes, this one prints the error instead and ends with 1.
    """
    try:
        command()
    except KeyboardInterrupt:
        print(f"{prefix}stopped by SIGINT", file=sys.stderr)
        return 128 + signal.SIGINT
    except Exception as error:
        code = _failed(error, prefix)
        if code is None:
            raise
        return code
    return 0


def _failed(error: Exception, prefix: str) -> int | None:
    """Prints a command's error; returns the exit code, or None for a traceback."""
    # Imported late: a command that ends well starts sooner without them.
    from kdjax.runtime import distributed
    from kdjax.runtime.signals import Interrupted

    if isinstance(error, Interrupted):
        print(f"{prefix}{error}", file=sys.stderr)
        return error.exit_code
    if distributed.lost_peer(error):
        print(f"{prefix}{distributed.LOST}", file=sys.stderr)
        return distributed.leave(1, patience=0)
    line = one_line(error)
    if line is not None:
        print(f"{prefix}{line}", file=sys.stderr)
        return distributed.leave(2)
    if not distributed.several():
        return None
    traceback.print_exc()
    return distributed.leave(1)
