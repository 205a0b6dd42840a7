"""The host's work between steps, as a share of an epoch.

    python -m benchmarks.host --data-dir DIR

trains a stage on CIFAR-10 by the library's own loop. Between two steps the loop asks
whether a signal has come; there the clock and this thread's CPU time are read. What the
thread did, waiting left out, over what passed is the host's share.
"""

import itertools
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import measure
from kdjax.data import sources
from kdjax.experiment.config import parse_config
from kdjax.experiment.flags import parse_flags
from kdjax.experiment.run import Run
from kdjax.runtime import backend
from kdjax.runtime.console import console
from kdjax.runtime.errors import UserError
from kdjax.runtime.signals import Interrupt
from kdjax.train.dispatch import evenly

LIMIT = 0.02
CONFIG = "configs/ctkd.py:cifar10"


class Clock(Interrupt):
    """Writes down the time whenever the loop asks for a signal."""

    def __init__(self) -> None:
        self.times: list[tuple[float, float]] = []
        super().__init__()

    @property
    def number(self) -> int | None:
        """None: no signal ever comes."""
        self.times.append((time.perf_counter(), time.thread_time()))
        return None

    @number.setter
    def number(self, value: int | None) -> None:
        del value


def run(options: Any) -> dict[str, Any]:
    """Returns the host's seconds per dispatch and its share, by stage."""
    arg = f"epochs=1,seeds=1,test_size={options.test_size}"
    if options.train_size:
        arg += f",train_size={options.train_size}"
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        argv = ["kdjax", f"--config={CONFIG},{arg}", f"--workdir={folder}"]
        if options.data_dir:
            argv.append(f"--config.data.dir={options.data_dir}")
        # Nothing but the loop asks: no checkpoints, no passes for the bank.
        argv += ["--config.saving.every_s=1e9", "--config.bank.use=False"]
        command = parse_flags(argv)
        assert command
        parsed, clock = parse_config(command.config), Clock()
        train_size = sources.expected(**parsed.data).train_size
        marks = [0]
        Run(
            parsed,
            Path(folder, "run"),
            clock,
            observe=lambda stage, seed, record: marks.append(len(clock.times)),
        ).run()
    for stage, (first, last) in zip(
        parsed.stages, itertools.pairwise(marks), strict=True
    ):
        steps = train_size // parsed.stages[stage].recipe.batch_size
        # The first dispatches find an empty queue and warm code up.
        times = clock.times[first:last][3:]
        wall, host = (times[-1][i] - times[0][i] for i in (0, 1))
        found[stage] = {
            "steps_per_dispatch": evenly(steps, backend.steps_per_dispatch()),
            "dispatches": len(times) - 1,
            "host_seconds": host / (len(times) - 1),
            "seconds": wall / (len(times) - 1),
            "share": host / wall,
        }
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and returns 1 if the host's share is above `LIMIT`."""
    parser = measure.parser("host", __doc__)
    parser.add_argument("--data-dir", help="of the TFDS data sets")
    parser.add_argument("--train-size", type=int, help="all by default")
    parser.add_argument("--test-size", type=int, default=1000)
    options = parser.parse_args(argv)
    backend.use_compilation_cache()
    try:
        found = run(options)
    except UserError as error:
        console.print(f"host: {error}", markup=False)
        return 2
    measure.show(
        "The host's work in the loop",
        (
            "stage",
            "steps a dispatch",
            "dispatches",
            "host (ms)",
            "all (ms)",
            "share (%)",
        ),
        [
            (
                stage,
                str(figures["steps_per_dispatch"]),
                str(figures["dispatches"]),
                f"{1e3 * figures['host_seconds']:.2f}",
                f"{1e3 * figures['seconds']:.1f}",
                f"{100 * figures['share']:.2f}",
            )
            for stage, figures in found.items()
        ],
    )
    measure.save(options.out, {"stages": found})
    return int(any(figures["share"] > LIMIT for figures in found.values()))


if __name__ == "__main__":
    sys.exit(main())
