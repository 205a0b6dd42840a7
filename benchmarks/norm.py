"""BatchNorm's own gradient against autodiff's, in whole train steps of WRN-16-1.

    python -m benchmarks.norm

Makes a supervised step and CTKD's step (batch 128, 32x32x3) with both gradients, runs
the two in turn, and gives the ratio of their times round by round. Rounds in which
other processes took more than a tenth of a core are left out (Linux; elsewhere none).
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

from kdjax import methods, models
from kdjax.data.stream import Batch
from kdjax.runtime import backend
from kdjax.runtime.console import console
from kdjax.runtime.files import write_json
from kdjax.train.recipe import Recipe
from kdjax.train.state import StepInputs
from kdjax.train.step import Step

STUDENT, TEACHER = "wrn-16-1", "wrn-40-1"
BATCH, SHAPE, CLASSES = 128, (32, 32, 3), 10


def prepare(method: str, own: bool) -> Callable[[], float]:
    """Returns a function that makes one compiled step and returns its seconds.

    Args:
        method: its name; one with a teacher gets a WRN-40-1.
        own: whether BatchNorm has its own gradient.
    """
    made = methods.create(method, {})
    teachers = {"expert": TEACHER} if made.num_teachers else {}
    tx = Recipe().optimiser(10_000)
    step = Step(made, STUDENT, teachers, CLASSES, SHAPE, optimisers=(tx,))
    key = jax.random.key(0)
    frozen = {
        name: models.init(jax.random.key(1), model, CLASSES, SHAPE)
        for name, model in teachers.items()
    }
    rng = np.random.default_rng(0)
    batch = Batch(
        jnp.asarray(rng.normal(size=(BATCH, *SHAPE)), jnp.float32),
        jnp.asarray(rng.integers(0, CLASSES, BATCH)),
        jnp.arange(BATCH),
    )

    def train(state: Any, frozen: Any, batch: Batch, key: jax.Array) -> Any:
        targets = step.targets(frozen, batch.images)
        inputs = StepInputs(batch, targets)
        gradients, state, _ = step.gradients(state, inputs, key)
        return step.apply_gradients(state, gradients.params), gradients.metrics

    jitted = jax.jit(
        train, donate_argnums=0, compiler_options=backend.compiler_options()
    )
    state = step.init(step.start(key), frozen, key, batch.labels)
    with mock.patch.object(backend, "own_batch_norm_gradient", return_value=own):
        compiled = jitted.lower(state, frozen, batch, key).compile()

    def run() -> float:
        nonlocal state
        start = time.perf_counter()
        state, metrics = compiled(state, frozen, batch, key)
        jax.block_until_ready((state, metrics))
        return time.perf_counter() - start

    run()
    return run


def busy() -> float:
    """Returns the seconds that the machine's other processes have computed."""
    try:
        line = Path("/proc/stat").read_text().split("\n")[0]
    except OSError:
        return 0.0
    user, nice, system, _, _, *rest = map(int, line.split()[1:9])
    ticks = user + nice + system + sum(rest)
    return ticks / os.sysconf("SC_CLK_TCK") - time.process_time()


def measure(method: str, rounds: int, steps: int) -> dict[str, Any]:
    """Returns the quiet rounds' milliseconds a step and the ratio of the two forms.

    Args:
        method: its name.
        rounds: how many are run.
        steps: of each form in a round, in turn.
    """
    own, autodiff = prepare(method, own=True), prepare(method, own=False)
    quiet, loads = [], []
    for _ in range(rounds):
        others, start = busy(), time.perf_counter()
        pairs = [(own(), autodiff()) for _ in range(steps)]
        loads.append((busy() - others) / (time.perf_counter() - start))
        if loads[-1] < 0.1:
            quiet.append(1000 * np.median(pairs, axis=0))
    found = np.array(quiet).reshape(-1, 2)
    result = {"method": method, "rounds": rounds, "quiet": len(quiet)}
    result["others"] = float(np.median(loads))
    if quiet:
        for name, times in zip(("own", "autodiff"), found.T, strict=True):
            result[f"{name}_ms"] = float(np.median(times))
        ratios = found[:, 1] / found[:, 0]
        result["ratio"] = np.quantile(ratios, (0, 0.25, 0.5, 0.75, 1)).tolist()
    return result


def show(results: Sequence[dict[str, Any]]) -> None:
    """Prints a row for every method."""
    table = Table(title=f"{STUDENT}, batch {BATCH}: BatchNorm's gradient, ms a step")
    for name in ("method", "quiet rounds", "others' cores", "own", "autodiff", "ratio"):
        table.add_column(name, justify="right")
    for found in results:
        row = [found["method"], f"{found['quiet']}/{found['rounds']}"]
        row.append(f"{found['others']:.2f}")
        if found["quiet"]:
            low, _, middle, _, high = found["ratio"]
            row += [f"{found['own_ms']:.0f}", f"{found['autodiff_ms']:.0f}"]
            row.append(f"{middle:.3f} ({low:.3f} to {high:.3f})")
        table.add_row(*row)
    console.print(table)


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.norm", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--methods", nargs="+", default=("supervised", "ctkd"))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=5, help="of each form in a round")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    options = parser.parse_args(argv)
    results = [
        measure(method, options.rounds, options.steps) for method in options.methods
    ]
    if options.out:
        write_json(options.out, {"results": results})
    show(results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
