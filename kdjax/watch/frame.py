"""One frame of the view: a table of stages with bars and curves in characters."""

import datetime
import statistics
from collections.abc import Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from kdjax.report import lineage
from kdjax.watch.state import Replica, Stage

_BLOCKS = "▁▂▃▄▅▆▇█"
_ACCURACY = "test/accuracy/student"
_STYLES = {
    "finished": "green",
    "training": "bold cyan",
    "stopped": "yellow",
    "waiting": "dim",
}


def frame(workdir: Path, stages: Sequence[Stage], columns: int = 110) -> RenderableType:
    """Returns what is shown of an experiment at one moment.

    A stage whose seeds are all finished takes one line, others one for every seed.

    Args:
        workdir: where it runs.
        stages: from `state.read`.
        columns: of the terminal; on narrow ones bars and curves are shorter.
    """
    width = 16 if columns >= 100 else 6
    table = Table(title=f"{workdir}", expand=False)
    table.add_column("stage", overflow="fold")
    table.add_column("learns from", overflow="fold")
    table.add_column("seed", justify="right")
    table.add_column("state")
    table.add_column("epochs", no_wrap=True)
    table.add_column("test accuracy", no_wrap=True)
    for stage in stages:
        teachers = ", ".join(stage.teachers) or "labels"
        names = (
            f"{stage.name}\n{lineage.plain(stage.model)}",
            f"{teachers}\n({stage.method})",
        )
        rows = {str(seed): replica for seed, replica in enumerate(stage.replicas)}
        if all(replica.state == "finished" for replica in stage.replicas):
            last = len(stage.replicas) - 1
            rows = {f"0-{last}" if last else "0": stage.replicas[0]}
        for seed, replica in rows.items():
            table.add_row(
                *names,
                seed,
                Text(_state(replica), style=_STYLES[replica.state]),
                _bar(replica, width),
                _curve([replica] if len(rows) > 1 else stage.replicas, width),
            )
            names = "", ""
    return Group(table, Text(_left(stages)))


def _state(replica: Replica) -> str:
    if replica.state == "stopped" and replica.silent is not None:
        return f"silent for {duration(replica.silent)}"
    return replica.state


def _bar(replica: Replica, width: int) -> str:
    done, total = replica.done, replica.epochs
    filled = round(width * done / total) if total else width
    return f"{'█' * filled}{'░' * (width - filled)} {done}/{total}"


def _curve(replicas: Sequence[Replica], width: int) -> str:
    """Returns the first replica's curve, and the median of the last accuracies."""
    curves = [replica.curve(_ACCURACY) for replica in replicas]
    last = [curve[-1] for curve in curves if curve]
    if not last:
        return ""
    return f"{sparkline(curves[0], width)} {100 * statistics.median(last):.2f} %"


def sparkline(values: Sequence[float], width: int) -> str:
    """Returns a curve as blocks, from its lowest to its highest value.

    Args:
        values: in order; of more than `width`, every so many are shown, and the last.
        width: the most characters.
    """
    if len(values) > width:
        last = len(values) - 1
        values = [values[round(i * last / (width - 1))] for i in range(width)]
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    top = len(_BLOCKS) - 1
    return "".join(_BLOCKS[round(top * (value - low) / span)] for value in values)


def _left(stages: Sequence[Stage]) -> str:
    """Returns how long the experiment still takes, as far as its epochs tell."""
    replicas = [replica for stage in stages for replica in stage.replicas]
    finished = sum(replica.state == "finished" for replica in replicas)
    words = f"{finished} of {len(replicas)} replicas finished"
    if finished == len(replicas):
        return words
    known = [stage.seconds_left() for stage in stages]
    left = sum(value for value in known if value is not None)
    unknown = [s.name for s, v in zip(stages, known, strict=True) if v is None]
    if not left:
        return f"{words}; time left: not known before the first epoch ends"
    least = "at least " if unknown else ""
    words += f"; time left: {least}{duration(left)} if seeds train one after another"
    return f"{words}; not begun: {', '.join(unknown)}" if unknown else words


def duration(seconds: float) -> str:
    """Returns a time as hours, minutes and seconds."""
    return str(datetime.timedelta(seconds=round(seconds)))
