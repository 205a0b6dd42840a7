"""SIGTERM, SIGHUP and Ctrl-C: finish the step, save a checkpoint, then leave."""

import contextlib
import errno
import os
import signal
import socket
import sys
import termios
import threading
import time
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

_SAME = (
    0.5  # seconds in which signals count as one: shell and terminal may both send it
)


class Interrupted(Exception):  # noqa: N818 (not an error)
    """Raised after a signal, once all is saved; the exit code is 128 + its number."""

    def __init__(self, number: int):
        name = signal.Signals(number).name
        super().__init__(f"stopped by {name}; the same command continues from here")
        self.exit_code = 128 + number


class Interrupt:
    """Remembers the first signal and prints a line; a second one ends the process.

    A Python signal handler runs in the main thread, which may be compiling for half a
    minute. So the system also reports signals to another thread, which prints at once.
    """

    def __init__(self, at_once: bool = False) -> None:
        """Makes the object; `install` sets the handlers.

        Args:
            at_once: whether, until `remember` is called, the first signal ends the
                process, because nothing can be lost yet.
        """
        self.number: int | None = None
        self._at_once = at_once
        self._heard = 0.0  # when the first one came; 0: none has

    def remember(self) -> None:
        """Only remembers the first signal from now on: something could be lost."""
        self._at_once = False

    def install(self) -> None:
        """Handles the signals from now on, except for those that nohup ignores."""
        for number in SIGNALS:
            ignored = signal.getsignal(number) is signal.SIG_IGN
            if number != signal.SIGHUP or not ignored:
                signal.signal(number, self._handle)

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Handles the signals within a block, if this is the main thread.

        The previous handlers, such as those of notebooks, are restored at the end.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = [signal.getsignal(number) for number in SIGNALS]
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        watcher = threading.Thread(target=self._watch, args=(reader,), daemon=True)
        watcher.start()
        wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        self.install()
        try:
            yield
        finally:
            for number, handler in zip(SIGNALS, before, strict=True):
                signal.signal(number, handler)
            signal.set_wakeup_fd(wakeup)
            writer.close()
            watcher.join()
            reader.close()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.number = self.number or number

    def _watch(self, reader: socket.socket) -> None:
        """Reads signals' numbers from the system and prints a line for each.

        It runs in a thread of its own, also while the main thread is in a library.
        """
        while numbers := reader.recv(64):
            for number in numbers:
                if number in SIGNALS:
                    self._answer(number)

    def _answer(self, number: int) -> None:
        name = signal.Signals(number).name
        if number == signal.SIGHUP:
            _leave_dead_terminal()
        if self._at_once:
            _say(f"stopped by {name}")
            os._exit(128 + number)
        now = time.monotonic()
        if not self._heard:
            self._heard, self.number = now, self.number or number
            _say(
                f"{name} received: the run saves and stops after this step, or when "
                "what is being compiled is ready; a second signal stops at once, and "
                "the next start continues from the last checkpoint"
            )
        elif now - self._heard > _SAME:
            os._exit(128 + number)

    def raise_if_set(self) -> None:
        """Raises Interrupted if this process or another has received a signal.

        If there are several processes, all must call this together.
        """
        from kdjax.runtime import (
            parallel,  # here: signals are handled before JAX is imported
        )

        if number := parallel.agree(self.number or 0):
            raise Interrupted(number)


def _say(line: str) -> None:
    """Writes a line without buffers, as another thread may be printing."""
    with contextlib.suppress(OSError):
        os.write(2, f"kdjax: {line}\n".encode())


def _leave_dead_terminal() -> None:
    """Discards output if its terminal was closed, where writing would fail."""
    for stream in (sys.__stdout__, sys.__stderr__):
        if stream is None:
            continue
        try:
            termios.tcgetattr(stream.fileno())
        except (termios.error, OSError, ValueError) as error:
            if error.args[:1] == (errno.EIO,):
                with open(os.devnull, "w") as nowhere:
                    os.dup2(nowhere.fileno(), stream.fileno())
