"""What the benchmarks share: interleaved rounds, medians with spread, tables."""

import argparse
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from kdjax.runtime.console import console
from kdjax.runtime.errors import UserError
from kdjax.runtime.files import write_json

_PATIENCE = 3  # so many rounds are begun for each that is wanted
_PACKAGES = ("kdjax", "jax", "jaxlib", "flax", "torch")


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Returns median, quartiles and the values themselves."""
    low, median, high = np.percentile(values, (25, 50, 75))
    return {
        "median": float(median),
        "quartiles": [float(low), float(high)],
        "values": [float(value) for value in values],
    }


def quotient(above: Sequence[float], below: Sequence[float]) -> dict[str, Any]:
    """Returns the spread of the ratios round by round: what a round shares cancels."""
    return spread([a / b for a, b in zip(above, below, strict=True)])


def busy_seconds() -> float | None:
    """Returns the CPU time of all processes so far, or None where it is not told."""
    try:
        words = Path("/proc/stat").read_text().splitlines()[0].split()
    except OSError:
        return None
    # user, nice, system, idle, iowait, irq, softirq, steal
    ticks = [int(word) for word in words[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def own_seconds() -> float:
    """Returns the CPU time of this process and of those it has waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


class Others:
    """How much of the machine other processes take from now on."""

    def __init__(self) -> None:
        self._start = self._now()

    def _now(self) -> tuple[float | None, float, float]:
        return busy_seconds(), own_seconds(), time.perf_counter()

    def share(self) -> float:
        """Returns their share of all cores' time, 0 where it is not told."""
        busy, own, clock = self._now()
        if busy is None or self._start[0] is None:
            return 0.0
        seconds = (clock - self._start[2]) * (os.cpu_count() or 1)
        taken = busy - self._start[0] - (own - self._start[1])
        return min(1.0, max(0.0, taken / seconds))


def interleave(
    turns: Mapping[str, Callable[[], float]],
    rounds: int,
    limit: float,
    others: Callable[[], Any] = Others,
) -> dict[str, Any]:
    """Returns what each turn measured, in rounds of one turn each.

    A round while others took more of the machine than the limit is measured again:
    above all, PyTorch's threads wait for each other.

    Args:
        turns: by name, in the order of a round; each returns what it measured.
        rounds: how many are kept.
        limit: share of all cores' time, 0 to 1, that other processes may take.
        others: begins to watch them; for tests.

    Returns:
        'values' by turn, the numbers of the rounds 'kept', how many were 'discarded',
        and 'others': the share of other processes in those kept.

    Raises:
        UserError: the machine is too busy.
    """
    values: dict[str, list[float]] = {name: [] for name in turns}
    kept: list[int] = []
    shares: list[float] = []
    discarded: list[float] = []
    while len(kept) < rounds:
        watch = others()
        found = {name: turn() for name, turn in turns.items()}
        share = watch.share()
        if share > limit:
            discarded.append(share)
            if len(kept) + len(discarded) >= _PATIENCE * rounds:
                raise UserError(
                    f"{len(discarded)} of {len(kept) + len(discarded)} rounds were "
                    f"disturbed: other processes took up to {max(discarded):.0%} of "
                    f"the machine; wait, or allow more with --busy (now {limit:g})"
                )
            continue
        kept.append(len(kept) + len(discarded))
        shares.append(share)
        for name, value in found.items():
            values[name].append(value)
    return {
        "values": values,
        "kept": kept,
        "discarded": len(discarded),
        "others": shares,
    }


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that are compared."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """Returns what the figures depend on: processor, devices, versions, load."""
    import jax

    return {
        "cores": os.cpu_count(),
        "devices": [device.device_kind for device in jax.devices()],
        "load": os.getloadavg(),
        "versions": versions(),
    }


def parser(
    module: str, description: str | None, rounds: int | None = None
) -> argparse.ArgumentParser:
    """Returns a benchmark's parser with the options that they share.

    Args:
        module: its name, such as 'steps'.
        description: its docstring; the first paragraph is shown.
        rounds: how many it makes by default; None where it measures no times.
    """
    made = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{module}",
        description=(description or "").split("\n\n")[0],
    )
    made.add_argument("--out", type=Path, help="a JSON file for the figures")
    if rounds:
        made.add_argument("--rounds", type=int, default=rounds, help="that count")
        made.add_argument(
            "--busy",
            type=float,
            default=0.1,
            help="share of the machine that other processes may take in a round",
        )
    return made


def figure(found: Mapping[str, Any], form: str = ".2f", scale: float = 1.0) -> str:
    """Returns a spread as text: the median, and the quartiles in brackets."""
    low, high = (format(scale * value, form) for value in found["quartiles"])
    return f"{scale * found['median']:{form}} [{low}, {high}]"


def show(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints a table; the first column is left-aligned."""
    table = Table(title=escape(title))  # brackets are no markup here
    for i, name in enumerate(columns):
        side: Any = "right" if i else "left"
        table.add_column(escape(name), justify=side, overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)


def save(path: Path | None, figures: Mapping[str, Any]) -> None:
    """Writes the figures and the machine's description, if there is a path."""
    if path:
        write_json(path, {**machine(), **figures})
