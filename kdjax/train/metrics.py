"""What is measured while a stage trains: sums on the device, means of an epoch."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from kdjax.runtime.errors import NotFiniteError

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
