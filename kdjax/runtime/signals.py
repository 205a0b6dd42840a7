"""SIGTERM and Ctrl-C: finish the step, save a checkpoint, then leave."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class Interrupted(Exception):  # noqa: N818 (not an error)
    """Raised after a signal, when all is saved; the exit code is 128 + its number."""

    def __init__(self, number: int):
        name = signal.Signals(number).name
        super().__init__(f"stopped by {name}; the same command goes on from here")
        self.exit_code = 128 + number


class Interrupt:
    """Remembers the first signal; a second one of the same kind ends at once."""

    def __init__(self) -> None:
        self.number: int | None = None

    def install(self) -> None:
        """Handles SIGTERM and SIGINT from now on."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Handles the signals within a block, if this thread may: the main one.

        For use from Python and notebooks, whose own handlers come back at the end.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = signal.SIGTERM, signal.SIGINT
        before = [signal.getsignal(number) for number in numbers]
        self.install()
        try:
            yield
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        signal.signal(number, signal.SIG_DFL)

    def raise_if_set(self) -> None:
        """Raises Interrupted if a signal has come, to this process or another.

        Of several processes, all must call this together.
        """
        from kdjax.runtime import (
            parallel,  # here: signals are handled before JAX is imported
        )

        if number := parallel.agree(self.number or 0):
            raise Interrupted(number)
