"""Curves over the epochs, as in CTKD's Figures 5, 6 and 7."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from kdjax.report import history
from kdjax.report.figures.style import Theme, legend_below, plain_log
from kdjax.report.runs import STUDENT, Stage


@dataclasses.dataclass(frozen=True, eq=False)
class Curve:
    """One figure over the epochs.

    Attributes:
        epochs: [E], those that all replicas have.
        values: [replicas, E].
    """

    epochs: np.ndarray
    values: np.ndarray


Curves = Mapping[str, Curve]
"""By the name in the records, such as 'test/accuracy/student'."""


def read(stage: Stage) -> Curves:
    """Returns all that was recorded of a stage; nothing where no folder is at hand."""
    histories = [history.read(folder) for folder in stage.folders]
    if not all(histories):
        return {}
    curves = {}
    for name in {name for records in histories for r in records for name in r}:
        runs = [
            {r["epoch"]: r[name] for r in records if r.get(name) is not None}
            for records in histories
        ]
        epochs = sorted(set.intersection(*map(set, runs)))
        if epochs:
            values = np.array([[run[epoch] for epoch in epochs] for run in runs])
            curves[name] = Curve(np.array(epochs), values)
    return curves


@dataclasses.dataclass(frozen=True)
class Line:
    """A network whose curves are drawn.

    Attributes:
        label: in the legend.
        curves: of its stage.
        role: which of the stage's networks.
        look: the number of its colour and dashes, see `Theme.line`.
    """

    label: str
    curves: Curves
    role: str = STUDENT
    look: int = 0


def side_by_side(lines: Sequence[Line], theme: Theme) -> Figure:
    """Draws training loss and test accuracy of several networks."""
    figure = Figure(figsize=(7.4, 3.9), layout="constrained")
    axes = figure.subplots(1, 2)
    for line in lines:
        look = theme.line(line.look)
        _draw(axes[0], line, "train/ce", 1, look)
        _draw(axes[1], line, "test/accuracy", 100, look)
    axes[0].set(xlabel="epoch", ylabel="training loss (cross-entropy)", yscale="log")
    plain_log(axes[0].yaxis)
    axes[1].set(xlabel="epoch", ylabel="test accuracy (%)")
    _finish(figure, list(axes))
    return figure


def accuracies(lines: Sequence[Line], theme: Theme) -> Figure:
    """Draws the test accuracy of several networks."""
    figure = Figure(figsize=(6.2, 4.0), layout="constrained")
    axes = figure.subplots()
    for line, look in zip(lines, theme.lines(), strict=False):
        _draw(axes, line, "test/accuracy", 100, look)
    axes.set(xlabel="epoch", ylabel="test accuracy (%)")
    _finish(figure, [axes])
    return figure


def with_teacher(panels: Mapping[str, Sequence[Line]], theme: Theme) -> Figure:
    """Draws accuracy and loss on test images of students and those beside them.

    Args:
        panels: by title, the networks of one column.
        theme: the colours.
    """
    figure = Figure(figsize=(3.7 * max(2, len(panels)), 5.4), layout="constrained")
    axes = figure.subplots(2, len(panels), squeeze=False)
    for column, (title, lines) in enumerate(panels.items()):
        for line, look in zip(lines, theme.lines(), strict=False):
            _draw(axes[0, column], line, "test/accuracy", 100, look)
            _draw(axes[1, column], line, "test/loss", 1, look)
        axes[0, column].set(title=title, ylabel="test accuracy (%)")
        axes[1, column].set(xlabel="epoch", ylabel="test loss")
    _finish(figure, list(axes.flat))
    return figure


def _draw(axes: Axes, line: Line, name: str, scale: float, look: dict) -> None:
    """Draws the median over the seeds, and the span of all seeds as a band."""
    curve = line.curves.get(f"{name}/{line.role}")
    if curve is None:
        return
    values = scale * curve.values
    median = np.median(values, axis=0)
    marker = "o" if len(curve.epochs) == 1 else None
    axes.plot(curve.epochs, median, label=line.label, marker=marker, **look)
    if len(values) > 1:
        axes.fill_between(
            curve.epochs,
            values.min(0),
            values.max(0),
            color=look["color"],
            alpha=0.18,
            linewidth=0,
        )


def _finish(figure: Figure, axes: Sequence[Axes]) -> None:
    entries: dict = {}
    for axis in axes:
        axis.grid()
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    legend_below(figure, entries.values(), entries.keys())
