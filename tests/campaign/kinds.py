"""The kinds of run, and what must be equal however often one was stopped."""

import dataclasses
import json
import math
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from own_images import splits, write

from tests.campaign.commands import Commands
from tests.campaign.shim import Fault

CONFIG = "tests/campaign/config.py"
KINDS = ("supervised", "ctkd", "chain", "replicas", "own")
READ_ONLY = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1000000"}
"""For runs that are killed, maybe while they write a compiled program."""
_TIMES = ("seconds", "images_per_second")


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of run, and what it is when nothing stops it.

    Attributes:
        name: one of `KINDS`.
        args: of the command, without the folder.
        commands: starts it.
        whole: the working folder of a run that nothing stopped.
        changes: how often that run changed its folder.
        reads: how often it opened a file there for reading.
    """

    name: str
    args: tuple[str, ...]
    commands: Commands
    whole: Path
    changes: int
    reads: int

    def to(self, workdir: Path) -> list[str]:
        """Returns the arguments for a working folder."""
        return [*self.args, f"--workdir={workdir}"]


def make(name: str, folder: Path) -> Kind:
    """Runs a kind once, so that others can be compared with it.

    Args:
        name: one of `KINDS`.
        folder: of the campaign.
    """
    args = [f"--config={CONFIG}:{name}"]
    if name == "own":
        images = folder / "images"
        if not images.exists():
            write(images, splits(12, 4), size=(16, 16))
        arg = f"data={images},teacher=plain-4,student=plain-2,image_size=16"
        args = [
            f"--config=configs/own.py:{arg},epochs=2,batch_size=12",
            "--config.saving.every_s=0",
        ]
    commands = Commands(folder / "cache", devices=2 if name == "replicas" else 1)
    whole = folder / "whole" / name
    shutil.rmtree(whole, ignore_errors=True)
    command = [*args, f"--workdir={whole}"]
    ended = commands.run(command, (whole, Fault.COUNT, 0))
    assert ended.code == 0, ended.err
    return Kind(
        name,
        tuple(args),
        commands,
        whole,
        ended.changes,
        ended.reads,
    )


def make_all(names: Iterable[str], folder: Path) -> list[Kind]:
    """Returns the kinds of some names."""
    return [make(name, folder) for name in names]


def result_of(workdir: Path, lines: bool = True) -> Any:
    """Returns digests, figures and histories of a finished run, without times.

    Args:
        workdir: of the run.
        lines: whether with `metrics.jsonl`, which a finished stage does not read.
    """
    results = json.loads((workdir / "results.json").read_text())
    stages = {}
    for name, stage in results["stages"].items():
        replicas = []
        for fingerprint in stage["fingerprint"]:
            (folder,) = (workdir / "stages").glob(f"*-{fingerprint}")
            result = json.loads((folder / "result.json").read_text())
            found = [[_timeless(record) for record in result["history"]]]
            if lines:
                text = (folder / "metrics.jsonl").read_text().splitlines()
                found.append([_timeless(json.loads(line)) for line in text])
            replicas.append(found)
        stages[name] = {
            "digest": stage["digest"],
            "test_accuracy": stage["test_accuracy"],
            "replicas": replicas,
        }
    return stages


def same(kind: Kind, workdir: Path, lines: bool = True) -> bool:
    """Returns whether a run has ended as the one that nothing stopped, to the bit.

    Args:
        kind: of the run.
        workdir: its folder.
        lines: see `result_of`.
    """
    return bool(result_of(workdir, lines) == result_of(kind.whole, lines))


def same_but_rounding(kind: Kind, workdir: Path, lines: bool = True) -> bool:
    """Returns whether two seeds side by side have ended alike but for rounding.

    A seed that is trained again alone, where two were trained side by side, is another
    compiled program, whose float32 sums round otherwise.
    """
    found, whole = result_of(workdir, lines), result_of(kind.whole, lines)
    return kind.name == "replicas" and _close(found, whole)


def _close(one: Any, other: Any, key: str = "") -> bool:
    """Returns whether two results differ by the rounding of float32 alone."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(
            _close(one[key], other[key], key) for key in one
        )
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(
            _close(left, right, key) for left, right in zip(one, other, strict=True)
        )
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-4)
    return key == "digest" or one == other


def _timeless(record: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in record.items() if name not in _TIMES}
