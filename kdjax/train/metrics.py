"""What is measured while a stage trains: sums on the device, records on disk."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from kdjax.runtime.closing import Closing
from kdjax.runtime.errors import NotFiniteError
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


class Writer(Closing):
    """Writes a stage's records as JSON lines and TensorBoard events.

    Both are made anew from `history` at the start, so that a resumed stage has every
    epoch once.
    """

    def __init__(self, folder: Path, history: list[Record]):
        """Opens `metrics.jsonl` and `tensorboard/` in a folder."""
        events = folder / "tensorboard"
        shutil.rmtree(events, ignore_errors=True)
        self._events = Events(events)
        self._lines = open(folder / "metrics.jsonl", "w")  # noqa: SIM115
        for record in history:
            self.write(record)

    def write(self, record: Record) -> None:
        """Writes one epoch's record."""
        finite = {key: v if math.isfinite(v) else None for key, v in record.items()}
        self._lines.write(json.dumps(finite) + "\n")
        self._lines.flush()
        for key, value in record.items():
            self._events.add_scalar(key, value, int(record["epoch"]))
        self._events.flush()

    def close(self) -> None:
        """Closes both files."""
        self._lines.close()
        self._events.close()
