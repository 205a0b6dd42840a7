"""What `kdjax.compare` prints."""

from collections.abc import Sequence

import numpy as np
from rich.table import Table

from kdjax.compare.stages import Pair
from kdjax.report import statistics
from kdjax.report.runs import Run, Stage
from kdjax.runtime.console import console


def show(one: Run, other: Run, pairs: Sequence[Pair]) -> None:
    """Prints the accuracies of two runs, and in what their stages differ.

    Args:
        one: the first run.
        other: the second run.
        pairs: their stages.
    """
    names = (str(one.path), str(other.path))
    console.print(f"A  {names[0]}\nB  {names[1]}", markup=False)
    table = Table(title="Test accuracy after the last epoch (%)")
    table.add_column("stage", overflow="fold")
    for side in "AB":
        table.add_column(f"{side}: median", justify="right")
        table.add_column("each seed")
    table.add_column("B minus A (95 %)", no_wrap=True)
    for pair in pairs:
        table.add_row(
            pair.name, *_figures(pair.one), *_figures(pair.other), _difference(pair)
        )
    console.print(table)
    counts = sorted({found[3] for pair in pairs if (found := pair.paired())})
    for count in counts:
        console.print(statistics.what_seeds_tell(count), markup=False)
    compared = [pair for pair in pairs if pair.one and pair.other]
    where: dict[tuple[str, str, str], list[str]] = {}
    for pair in compared:
        for name, (first, second) in pair.differences().items():
            where.setdefault((name, f"{first}", f"{second}"), []).append(pair.name)
    if compared and not where:
        console.print("no settings differ")
    for (name, first, second), stages in where.items():
        all_of_them = len(stages) == len(compared)
        which = "every stage" if all_of_them else ", ".join(stages)
        console.print(f"{name}: A {first}, B {second}  ({which})", markup=False)


def _figures(stage: Stage | None) -> tuple[str, str]:
    if stage is None:
        return "-", ""
    values = [100 * value for value in stage.student.accuracy]
    return f"{np.median(values):.2f}", " ".join(f"{value:.2f}" for value in values)


def _difference(pair: Pair) -> str:
    """Returns the difference, with what the seeds tell of it where they are enough."""
    found = pair.paired()
    if found is None:
        return "" if pair.one is None or pair.other is None else "too few seeds"
    mean, margin, p, _ = found
    return f"{mean:+.2f} ± {margin:.2f}, p {p:.3f}"
