"""Signals: answered at once, also while the main thread is in a library."""

import contextlib
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdjax.runtime.signals import SIGNALS, Interrupt

ROOT = Path(__file__).parents[1]

# The main thread computes a hash for a minute in C, as XLA compiles: no handler in
# Python is called meanwhile.
BUSY = """
import hashlib, sys
from kdjax.runtime import command
from kdjax.runtime.signals import Interrupt, Interrupted


def work():
    interrupt = Interrupt()
    with interrupt.installed():
        print("ready", flush=True)
        hashlib.pbkdf2_hmac("sha512", b"", b"", int(sys.argv[1]))
        if interrupt.number:
            raise Interrupted(interrupt.number)


sys.exit(command.run(work))
"""
FOREVER = 10**8


@contextlib.contextmanager
def started(*args: str, **streams: int) -> Iterator[subprocess.Popen]:
    """A process that is killed at the end if it still runs."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
    with subprocess.Popen(
        # Where the tests run by nohup or in the background, these are ignored.
        ["env", "--default-signal=INT,TERM,HUP", sys.executable, *args],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        text=True,
        **streams,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@contextlib.contextmanager
def busy(count: int, **streams: int) -> Iterator[subprocess.Popen]:
    with started("-c", BUSY, str(count), **streams) as process:
        assert process.stdout.readline() == "ready\n"
        yield process


@pytest.mark.parametrize("number", SIGNALS)
def test_a_busy_process_answers_at_once_and_twice_ends_it(number):
    with busy(FOREVER) as process:
        process.send_signal(number)
        begin = time.monotonic()
        line = process.stderr.readline()
        assert time.monotonic() - begin < 3
        assert line.startswith(f"kdjax: {signal.Signals(number).name} received: ")
        process.send_signal(number)  # at once: it counts as the same
        time.sleep(0.7)
        assert process.poll() is None
        process.send_signal(number)
        assert process.wait(timeout=5) == 128 + number
        assert process.stderr.read() == ""


def test_one_signal_waits_for_what_is_being_done():
    with busy(500_000) as process:
        process.send_signal(signal.SIGHUP)
        told, last = process.stderr.read().splitlines()
        assert process.wait(timeout=60) == 129
    assert told.startswith("kdjax: SIGHUP received")
    assert last == "kdjax: stopped by SIGHUP; the same command continues from here"


def test_a_closed_terminal_is_no_error():
    """Its user has gone: SIGHUP comes, and nobody can be told anything."""
    ours, theirs = pty.openpty()
    with busy(500_000, stderr=theirs) as process:
        os.close(theirs)
        os.close(ours)
        process.send_signal(signal.SIGHUP)
        assert process.wait(timeout=60) == 129


@pytest.mark.parametrize("number", SIGNALS)
def test_before_anything_is_begun_the_command_ends_at_once(number, tmp_path):
    flags = "--config=configs/ctkd.py:digits", f"--workdir={tmp_path}", "--dry-run"
    with started("-m", "kdjax.main", *flags) as process:
        maps = Path(f"/proc/{process.pid}/maps")
        end = time.monotonic() + 60
        # Among the first of what takes seconds to be imported.
        while "numpy" not in maps.read_text():
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.01)
        process.send_signal(number)
        assert process.wait(timeout=5) == 128 + number
        told = f"kdjax: stopped by {signal.Signals(number).name}\n"
        assert process.stderr.read() == told


def test_handlers_come_back_and_nohup_is_kept():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        handlers = [signal.getsignal(number) for number in SIGNALS]
        with Interrupt().installed():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) is not handlers[0]
        assert [signal.getsignal(number) for number in SIGNALS] == handlers
        assert signal.set_wakeup_fd(-1) == -1
    finally:
        signal.signal(signal.SIGHUP, before)
