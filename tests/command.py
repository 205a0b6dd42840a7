"""The command in a process of its own, for tests of whole runs."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import compiled
from quick import QUICK


@dataclasses.dataclass(frozen=True)
class Command:
    """The command with a folder, on one device."""

    workdir: Path
    args: tuple[str, ...]
    cache: Path
    # Programs of tiny runs take longer to compile than to run.
    xla_flags: str = f"--xla_backend_optimization_level=1 {QUICK}"

    @property
    def programs(self) -> Path:
        """Where the command keeps compiled programs, if nobody tells it otherwise."""
        return self.cache / "xla"

    def start(self, **variables: str) -> subprocess.Popen:
        compiled.take(self.programs, "commands")
        env = {**os.environ, "JAX_PLATFORMS": "cpu", "KDJAX_CACHE": str(self.cache)}
        env["XLA_FLAGS"] = self.xla_flags
        env |= {"PYTHONUNBUFFERED": "1", **compiled.ANYWHERE, **variables}
        return subprocess.Popen(
            [
                sys.executable,
                "-m",
                "kdjax.main",
                *self.args,
                f"--workdir={self.workdir}",
            ],
            cwd=Path(__file__).parents[1],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, code: int = 0) -> tuple[str, str]:
        """Returns both outputs of a run that must end with an exit code."""
        out, err = self.finish(self.start(), code)
        if code == 0:
            assert err == ""
        return out, err

    def finish(self, process: subprocess.Popen, code: int) -> tuple[str, str]:
        try:
            out, err = process.communicate(timeout=900)
        finally:
            process.kill()
        assert process.returncode == code, (out, err)
        compiled.give(self.programs, "commands")
        return out, err

    def fails(self) -> str:
        """Returns the one line of a run that must refuse, and change no file."""
        before = snapshot(self.workdir / "stages")
        _, err = self.run(2)
        assert err.startswith("kdjax: "), err
        assert err.count("\n") == 1
        assert before.items() <= snapshot(self.workdir / "stages").items()
        return err

    def end_when(
        self, ready: Callable[[], Any], number: int, code: int
    ) -> tuple[str, str]:
        """Starts the command, and sends it a signal as soon as something is true."""
        process = self.start(**compiled.READ_ONLY)
        try:
            deadline = time.monotonic() + 120
            while not ready():
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < deadline
                time.sleep(0.005)
            process.send_signal(number)
        except BaseException:
            process.kill()
            raise
        return self.finish(process, code)

    def results(self) -> dict[str, Any]:
        return json.loads((self.workdir / "results.json").read_text())

    def digests(self) -> dict[str, list[str]]:
        return {name: part["digest"] for name, part in self.results()["stages"].items()}

    def folder(self, stage: str) -> Path:
        (found,) = (self.workdir / "stages").glob(f"{stage}-*")
        return found

    def saved_steps(self, stage: str) -> list[int]:
        """Returns the steps of the stage's whole checkpoints."""
        found = (self.workdir / "stages").glob(f"{stage}-*/checkpoints/*")
        return sorted(int(path.name) for path in found if path.name.isdigit())


def snapshot(folder: Path) -> dict[Path, bytes]:
    """Returns the files of checkpoints and networks, and their content."""
    return {
        path: path.read_bytes()
        for kind in ("checkpoints", "networks")
        for path in folder.glob(f"*/{kind}/**/*")
        if path.is_file()
    }


def records(folder: Path) -> list[dict[str, float]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]
