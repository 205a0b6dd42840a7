"""Parameters against accuracy: what each network costs and gives."""

import numpy as np
from matplotlib.figure import Figure

from kdjax.report.figures.style import MARKERS, Theme, plain_log
from kdjax.report.figures.style import legend_below as _legend
from kdjax.report.runs import Run


def sizes(run: Run, theme: Theme) -> Figure:
    """Draws every stage's student: parameters against test accuracy.

    Dots are seeds, symbols medians; one colour and symbol for each way of teaching.
    """
    figure = Figure(figsize=(6.2, 4.4), layout="constrained")
    axes = figure.subplots()
    for number, label in enumerate(run.labels):
        look = theme.line(number)
        students = [s.student for s in run.stages.values() if s.label == label]
        sizes = [student.parameters or np.nan for student in students]
        for size, student in zip(sizes, students, strict=True):
            values = [100 * value for value in student.accuracy]
            axes.plot(
                [size] * len(values), values, ".", color=look["color"], alpha=0.6, ms=5
            )
        axes.plot(
            sizes,
            [100 * float(np.median(student.accuracy)) for student in students],
            linestyle="",
            marker=MARKERS[number % len(MARKERS)],
            color=look["color"],
            markeredgecolor=theme.paper,
            ms=9,
            label=label,
        )
    axes.set(xscale="log", xlabel="parameters", ylabel="test accuracy (%)")
    plain_log(axes.xaxis)
    axes.grid()
    _legend(figure, *axes.get_legend_handles_labels())
    return figure
