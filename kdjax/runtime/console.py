"""Output while a stage trains: a progress bar on a terminal, lines elsewhere."""

import contextlib
import importlib.util
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from kdjax.runtime.closing import Closing

console = Console(highlight=False, soft_wrap=True)
if not console.is_terminal:
    console.width = 110  # tables in log files are not cut
# In a notebook rich draws bars with the help of a package that need not be there.
has_bars = console.is_terminal or (
    console.is_jupyter and importlib.util.find_spec("ipywidgets") is not None
)


class StageProgress(Closing):
    """The progress of a stage's replicas, in steps."""

    def __init__(self, label: str, total: int, done: int):
        """Shows a bar at `done` of `total` steps."""
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not has_bars,
            transient=True,
        )
        self._task = self._bar.add_task(label, total=total, completed=done, speed="")
        self._bar.start()

    def close(self) -> None:
        """Removes the bar."""
        self._bar.stop()

    def step(self, done: int, images_per_second: float) -> None:
        """Moves the bar."""
        if has_bars:
            speed = f"{images_per_second:,.0f} images/s"
            self._bar.update(self._task, completed=done, speed=speed)

    def line(self, text: str) -> None:
        """Prints a line above the bar."""
        console.print(text, markup=False)


@contextlib.contextmanager
def progress(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows progress: a bar on a terminal, one line elsewhere.

    Args:
        label: names the work.
        total: the number of items.

    Yields:
        A function to call with the number of items just done.
    """
    if not console.is_terminal:
        console.print(f"{label} ({total:,})", markup=False)
        yield lambda count: None
        return
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    ) as bar:
        task = bar.add_task(label, total=total)
        yield lambda count: bar.advance(task, count)
