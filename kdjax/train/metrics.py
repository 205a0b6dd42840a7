"""What is measured while a stage trains: sums on the device, records on disk."""

import dataclasses
import hashlib
import itertools
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from kdjax.runtime.closing import Closing
from kdjax.runtime.errors import NotFiniteError, UserError
from kdjax.runtime.files import replace_whole
from kdjax.train.events import Events

Record = dict[str, float]
"""One epoch's figures by name, such as 'test/accuracy/student'."""

Metrics = dict[str, jax.Array]
"""One step's figures by name: scalars on the device."""


def zeros(metrics: Metrics) -> dict[str, Any]:
    """Returns empty sums for metrics of the given names and shapes."""
    return {
        "sums": {name: jnp.zeros((), leaf.dtype) for name, leaf in metrics.items()},
        "bad": {name: jnp.full((), -1, jnp.int32) for name in metrics},
    }


def add(totals: dict[str, Any], metrics: Metrics, step: jax.Array) -> dict[str, Any]:
    """Returns the sums with one step's metrics added.

    'bad' keeps, for every metric, the first step at which it was not finite, or -1: so
    the step is known however rarely the host looks.
    """
    bad = {}
    for name, first in totals["bad"].items():
        new = (first < 0) & ~jnp.isfinite(metrics[name])
        bad[name] = jnp.where(new, step, first)
    sums = {name: total + metrics[name] for name, total in totals["sums"].items()}
    return {"sums": sums, "bad": bad}


def means(totals: dict[str, Any], steps: int) -> Record:
    """Returns the means of an epoch of `steps` steps.

    Raises:
        NotFiniteError: a metric was not finite.
    """
    totals = jax.device_get(totals)
    check_finite(totals, steps)
    return {name: float(total) / steps for name, total in totals["sums"].items()}


def check_finite(totals: dict[str, Any], steps_per_epoch: int) -> None:
    """Raises NotFiniteError that names step and terms if a metric was not finite."""
    first_bad = jax.device_get(totals["bad"])
    bad = {name: int(step) for name, step in first_bad.items() if step >= 0}
    if bad:
        first = min(bad.values())
        terms = [name for name, step in bad.items() if step == first]
        # The total adds nothing to the names of its terms.
        terms = [name for name in terms if name != "loss"] or terms
        raise NotFiniteError(
            f"{', '.join(terms)} not finite at step {first} (epoch "
            f"{first // steps_per_epoch + 1}); a smaller learning rate or weight may "
            "help"
        )


def finite(name: str, value: float) -> float:
    """Returns a number, or raises NotFiniteError naming it if it is not finite."""
    if not math.isfinite(value):
        raise NotFiniteError(f"{name} is not finite; a smaller learning rate may help")
    return value


@dataclasses.dataclass(frozen=True)
class Mark:
    """How far a stage's records went when a checkpoint was made.

    Attributes:
        epochs: how many there were.
        checksum: of their lines.
    """

    epochs: int
    checksum: str


class Writer(Closing):
    """Writes a stage's records as JSON lines and TensorBoard events.

    A line is appended for every epoch and stays as it is, so that an epoch late in a
    long training costs what the first did. A resumed stage has every epoch once: what
    is on disk beyond `history` is cut off. Events are made anew from `history`.
    """

    def __init__(self, folder: Path, history: list[Record]):
        """Opens `metrics.jsonl` and `tensorboard/` in a folder."""
        events = folder / "tensorboard"
        shutil.rmtree(events, ignore_errors=True)
        self._events = Events(events)
        lines = [_line(record) for record in history]
        self._epochs, self._checksum = len(lines), hashlib.sha256(b"".join(lines))
        path = _lines_path(folder)
        try:
            _keep(path, b"".join(lines))
            self._lines = open(path, "ab")  # noqa: SIM115
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}") from error
        for record in history:
            self._add_events(record)
        self._events.flush()

    def write(self, record: Record) -> None:
        """Writes one epoch's record."""
        line = _line(record)
        self._lines.write(line)
        self._lines.flush()
        self._epochs += 1
        self._checksum.update(line)
        self._add_events(record)
        self._events.flush()

    def mark(self) -> Mark:
        """Returns what finds the records so far again: see `read_records`."""
        os.fsync(self._lines.fileno())  # a checkpoint must not outlive its records
        return Mark(self._epochs, _short(self._checksum))

    def _add_events(self, record: Record) -> None:
        for key, value in record.items():
            self._events.add_scalar(key, value, int(record["epoch"]))

    def close(self) -> None:
        """Closes both files."""
        self._lines.close()
        self._events.close()


def read_records(folder: Path, mark: Mark) -> list[Record]:
    """Returns a stage's records up to a checkpoint's.

    Args:
        folder: of the replica.
        mark: as it was when the checkpoint was made.

    Raises:
        UserError: they are not on disk as they were written.
    """
    path = _lines_path(folder)
    try:
        with open(path, "rb") as file:
            lines = list(itertools.islice(file, mark.epochs))
    except OSError as error:
        reason = error.strerror
    else:
        if _short(hashlib.sha256(b"".join(lines))) == mark.checksum:
            return [
                {
                    name: math.nan if value is None else value
                    for name, value in json.loads(line).items()
                }
                for line in lines
            ]
        reason = f"its first {mark.epochs} lines are not what was written"
    raise UserError(
        f"{path} cannot be read: {reason}; delete its folder to train it again"
    )


def _lines_path(folder: Path) -> Path:
    return folder / "metrics.jsonl"


def _line(record: Record) -> bytes:
    # JSON has no numbers that are not finite.
    finite = {key: v if math.isfinite(v) else None for key, v in record.items()}
    return json.dumps(finite).encode() + b"\n"


def _short(content: "hashlib._Hash") -> str:
    return content.hexdigest()[:16]


def _keep(path: Path, lines: bytes) -> None:
    """Cuts a file back to lines that it begins with, or writes them alone.

    Cut in place: other processes of the run may be reading the lines that stay.
    """
    try:
        with open(path, "r+b") as file:
            if file.read(len(lines)) == lines:
                file.truncate(len(lines))
                return
    except FileNotFoundError:
        pass
    # Earlier versions kept the records in the checkpoint alone.
    with replace_whole(path) as temporary:
        temporary.write_bytes(lines)
