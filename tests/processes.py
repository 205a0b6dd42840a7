"""Programs for the tests of several processes, and how they are started."""

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import compiled

from kdjax.experiment.flags import Command, parse_flags

ROOT = Path(__file__).parents[1]
FLAGS = ("--config=configs/ctkd.py:digits", "--workdir=w")

# kdjax.main with a sum in the place of the experiment; TASK says what comes after it.
# With WHOLE the config is parsed, which must not touch a device: the sum comes later.
MAIN = """
import os, sys, time, types

import jax


class Run:
    def __init__(self, *args):
        pass

    def run(self, stages):
        from jax.experimental import multihost_utils
        from kdjax.runtime import parallel
        from kdjax.runtime.errors import UserError

        mine = jax.numpy.float32(1 + jax.process_index())
        total = multihost_utils.process_allgather(mine).sum()
        line = f"sum {total} {parallel.is_first()} {jax.device_count()}\\n"
        print(line, end="", flush=True)  # one write: the processes share the output
        task = os.environ.get("TASK", "")
        if task == f"die {jax.process_index()}":
            os.kill(os.getpid(), 9)
        if task == "fail" and jax.process_index():
            raise UserError("only here")
        if task == "die 0":
            time.sleep(100)
        while task:
            multihost_utils.process_allgather(mine)


stubs = {"run": {"Run": Run}, "dry_run": {}}
if "WHOLE" not in os.environ:
    stubs["config"] = {"parse_config": lambda config: None}
from kdjax import experiment

for name, part in stubs.items():
    module = types.ModuleType(f"kdjax.experiment.{name}")
    vars(module).update(part)
    sys.modules[module.__name__] = module
    setattr(experiment, name, module)
from kdjax import main
sys.exit(main.main())
"""


def free_port() -> int:
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


_caches: list[TemporaryDirectory] = []  # as long as this process


def cache() -> str:
    """Returns a new cache folder with what other processes have compiled."""
    for other in _caches:
        compiled.give(Path(other.name, "xla"), "processes")
    _caches.append(TemporaryDirectory(prefix="kdjax"))
    compiled.take(Path(_caches[-1].name, "xla"), "processes")
    return _caches[-1].name


def environment(**more: str) -> dict[str, str]:
    """This one's, on one CPU device and without what a launcher would say."""
    more |= {"KDJAX_CACHE": cache(), **compiled.ANYWHERE}
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("SLURM_", "OMPI_", "XLA_FLAGS"))
    }
    path = os.pathsep.join([str(ROOT), *sys.path])
    return kept | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": path} | more


def start(*args: str, **variables: str) -> subprocess.Popen:
    """Starts MAIN with these further arguments and variables."""
    return subprocess.Popen(
        [sys.executable, "-c", MAIN, *FLAGS, *args],
        cwd=ROOT,
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def together(port: int, process: int) -> list[str]:
    """The flags of one of two processes."""
    return [
        f"--coordinator=127.0.0.1:{port}",
        "--processes=2",
        f"--process={process}",
        "--wait=60",
    ]


def parse(args: list[str]) -> Command | None:
    """What kdjax.main would take from these arguments."""
    with contextlib.chdir(ROOT):
        return parse_flags(["kdjax", *args])
