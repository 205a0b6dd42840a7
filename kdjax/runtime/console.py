"""Output while a stage trains: a progress bar on a terminal, lines elsewhere."""

import importlib.util

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
        """Takes the bar away."""
        self._bar.stop()

    def step(self, done: int, images_per_second: float) -> None:
        """Moves the bar."""
        if has_bars:
            speed = f"{images_per_second:,.0f} images/s"
            self._bar.update(self._task, completed=done, speed=speed)

    def line(self, text: str) -> None:
        """Prints a line that stays."""
        console.print(text, markup=False)
