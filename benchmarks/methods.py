"""All methods of one run: accuracy, time of an epoch over KD's, extra parameters.

    python -m kdjax.main --config configs/kd.py:all,... --workdir runs/methods
    python -m benchmarks.methods runs/methods

reads `results.json` of a finished run whose stages bear their methods' names, `kd` and
`supervised` among them. Times are medians over the epochs of a stage, evaluation and
saving included, as they come out of a run in which one stage follows the other: they
say little beside other work on the machine, so that they may come from another run of
the same methods: `--times WORKDIR`. Epochs of earlier phases count as well.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import measure
from kdjax.runtime.console import console
from kdjax.runtime.errors import UserError

_COLUMNS = ("method", "test (%)", "top-5 (%)", "epoch / KD's", "extra parameters")


def rows(
    results: Mapping[str, Any], timed: Mapping[str, Any] | None = None
) -> list[dict[str, Any]]:
    """Returns the figures of every stage that was taught, and of `supervised`.

    Args:
        results: of a run.
        timed: of the run that the times come from, if it is another.

    Raises:
        UserError: a stage is missing that the others are compared with.
    """
    stages = results["stages"]
    times = stages if timed is None else timed["stages"]
    found = [name for name, stage in stages.items() if stage["method"] == name]
    for run, wanted in ((stages, ("supervised", "kd")), (times, ("kd", *found))):
        for name in wanted:
            if name not in run:
                raise UserError(f"the run has no stage {name!r} to compare with")
    alone = stages["supervised"]["parameters"]

    def speed(name: str) -> float:
        return float(np.median(times[name]["images_per_second"]))

    return [
        {
            "method": name,
            "test_accuracy": stages[name]["test_accuracy"]["final"],
            "median": stages[name]["test_accuracy"]["median"],
            "top5": stages[name]["test_top5"]["median"],
            "epoch": speed("kd") / speed(name),
            "extra_parameters": stages[name]["trained_parameters"] - alone,
        }
        for name in found
    ]


def cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns a row of the table as text."""
    return (
        row["method"],
        f"{100 * row['median']:.2f}",
        f"{100 * row['top5']:.2f}",
        f"{row['epoch']:.2f}",
        f"{row['extra_parameters']:,}",
    )


def markdown(found: Sequence[Mapping[str, Any]]) -> str:
    """Returns the table for a page."""
    lines = [_COLUMNS, ("---",) * len(_COLUMNS), *map(cells, found)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table and returns the exit status."""
    parser: argparse.ArgumentParser = measure.parser("methods", __doc__)
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--markdown", action="store_true", help="print it as Markdown")
    parser.add_argument("--times", type=Path, help="the run that the times come from")
    options = parser.parse_args(argv)
    try:
        results, timed = (
            json.loads((folder / "results.json").read_text())
            for folder in (options.workdir, options.times or options.workdir)
        )
        found = rows(results, timed)
    except (OSError, UserError) as error:
        console.print(f"methods: {error}", markup=False)
        return 2
    if options.markdown:
        print(markdown(found))
    else:
        measure.show("All methods from one teacher", _COLUMNS, map(cells, found))
    configs = {"config": results["config"], "timed_config": timed["config"]}
    for config in configs.values():
        config.get("data", {}).pop("dir", None)  # where it lay tells nobody anything
    measure.save(options.out, {"methods": found, **configs})
    return 0


if __name__ == "__main__":
    sys.exit(main())
