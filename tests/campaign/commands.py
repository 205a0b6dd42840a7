"""The command as often as one likes, in children of one interpreter."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.campaign import shim

ROOT = Path(__file__).parents[2]
_QUICK = "--xla_backend_optimization_level=0"
_LIMIT = 300.0  # seconds for one command


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        code: its exit code; of a signal the number, negative.
        out: what it printed.
        err: what it printed on stderr.
        changes: how often it changed its folder, where that was counted.
        reads: how many files below it opened for reading, likewise.
    """

    code: int
    out: str
    err: str
    changes: int = 0
    reads: int = 0

    @property
    def told(self) -> bool:
        """Whether it refused as it should: with one line on stderr."""
        line = self.err
        one = line.startswith("kdjax: ") and line.count("\n") == 1
        return self.code == 2 and one and len(line) <= 308  # with the prefix


class Commands:
    """Starts commands in children of one interpreter, one at a time."""

    def __init__(self, cache: Path, devices: int = 1):
        """Starts the interpreter.

        Args:
            cache: the folder for decoded data and compiled programs.
            devices: how many CPU devices a command has.
        """
        self._folder = Path(tempfile.mkdtemp(prefix="campaign-"))
        library = shim.library()
        env = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "JAX_PLATFORMS": "cpu",
            "KDJAX_CACHE": str(cache),
            "JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES": "none",
            "XLA_FLAGS": f"{_QUICK} --xla_force_host_platform_device_count={devices}",
        }
        if library:
            env["LD_PRELOAD"] = str(library)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.campaign.interpreter"],
            cwd=ROOT,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._child: int | None = None

    def start(
        self,
        args: Sequence[str],
        fault: tuple[Path, shim.Fault, int] | None = None,
        **env: str,
    ) -> None:
        """Starts the command.

        Args:
            args: its arguments.
            fault: below which folder which fault comes at which change.
            **env: variables.
        """
        request: dict[str, Any] = {
            "args": list(args),
            "env": env,
            "stdout": str(self._folder / "out"),
            "stderr": str(self._folder / "err"),
        }
        (self._folder / "counted").unlink(missing_ok=True)
        if fault:
            folder, kind, number = fault
            request["fault"] = str(folder), int(kind), number
            request["counted"] = str(self._folder / "counted")
        assert self._process.stdin
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        self._child = self._answer()["process"]

    def kill(self) -> None:
        """Ends the command as `kill -9` does, if it still runs."""
        with contextlib.suppress(ProcessLookupError):
            if self._child is not None:
                os.kill(self._child, signal.SIGKILL)

    def wait(self, seconds: float = _LIMIT) -> Ended:
        """Waits for the command's end; one that takes too long is killed."""
        timer = threading.Timer(seconds, self.kill)
        timer.start()
        code = self._answer()["code"]
        timer.cancel()
        self._child = None
        counted = self._folder / "counted"
        changes, reads = json.loads(counted.read_text()) if counted.exists() else (0, 0)
        out, err = (
            (self._folder / name).read_text(errors="replace") for name in ("out", "err")
        )
        return Ended(code, out, err, changes, reads)

    def run(
        self,
        args: Sequence[str],
        fault: tuple[Path, shim.Fault, int] | None = None,
        **env: str,
    ) -> Ended:
        """Starts the command and waits for its end."""
        self.start(args, fault, **env)
        return self.wait()

    def _answer(self) -> dict[str, int]:
        assert self._process.stdout
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        """Ends the interpreter."""
        self.kill()
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()
