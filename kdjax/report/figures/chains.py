"""Chains of assistants, as in DGKD's Figures 4, 6 and 7."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from kdjax.analysis.overlap import Overlap
from kdjax.report import lineage
from kdjax.report.figures.style import MARKERS, Theme, legend_below
from kdjax.report.runs import Run, Stage


def overlaps(run: Run, pairs: Sequence[Overlap], theme: Theme) -> Figure:
    """Draws the error overlap of neighbours, by how the later one was taught."""
    groups: dict[str, list[Overlap]] = {}
    for pair in pairs:
        models = (run.stages[name].student.model for name in (pair.guide, pair.taught))
        groups.setdefault(" ∩ ".join(map(lineage.plain, models)), []).append(pair)
    kinds = dict.fromkeys(run.stages[pair.taught].label for pair in pairs)
    looks = {kind: theme.line(run.labels.index(kind)) for kind in kinds}
    hatches = dict(zip(kinds, ("", "//", "..", "xx", "\\\\", "++") * 9, strict=False))
    height, places = 0.0, {}
    for name, members in groups.items():
        height += 0.7
        places[name] = height + (len(members) - 1) / 2
        height += len(members)
    figure = Figure(figsize=(6.4, 1.8 + 0.3 * height), layout="constrained")
    axes = figure.subplots()
    y = 0.0
    for members in groups.values():
        y += 0.7
        for pair in members:
            kind = run.stages[pair.taught].label
            if pair.median is not None:
                axes.barh(
                    y,
                    100 * pair.median,
                    color=looks[kind]["color"],
                    hatch=hatches[kind],
                    edgecolor=theme.paper,
                    label=kind,
                )
                axes.text(101, y, f"{100 * pair.median:.1f}", va="center", fontsize=9)
            else:
                axes.text(1, y, "no errors", va="center", fontsize=9)
            each = [100 * value for value in pair.each if value is not None]
            if len(each) > 1:
                axes.plot(each, [y] * len(each), ".", color=theme.ink, ms=5)
            chance = 100 * float(np.median(pair.by_chance))
            axes.plot(
                [chance] * 2,
                [y - 0.4, y + 0.4],
                color=theme.ink,
                lw=2,
                label="expected by chance",
            )
            y += 1
    axes.set_yticks(list(places.values()), list(places))
    axes.set(xlim=(0, 100), ylim=(height, 0))
    axes.set_xlabel("share of the smaller network's errors (%)")
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    handles, labels = axes.get_legend_handles_labels()
    entries = dict(zip(labels, handles, strict=True))
    legend_below(figure, entries.values(), entries.keys())
    return figure


def paths(run: Run, stages: Sequence[Stage], theme: Theme) -> Figure:
    """Draws the student's accuracy at the end of every path, by way of teaching."""
    names = sorted(
        {stage.path for stage in stages}, key=lambda path: (path.count("/"), path)
    )
    kinds = dict.fromkeys(stage.kind for stage in stages)
    figure = Figure(figsize=(6.4, 1.9 + 0.5 * len(names)), layout="constrained")
    axes = figure.subplots()
    for i, kind in enumerate(kinds):
        place = run.labels.index(lineage.label(kind))
        look = theme.line(place)
        shift = 0.14 * (i - (len(kinds) - 1) / 2)
        for number, stage in enumerate(s for s in stages if s.kind == kind):
            y = names.index(stage.path) + shift
            values = [100 * value for value in stage.student.accuracy]
            axes.plot(values, [y] * len(values), ".", color=look["color"], ms=5)
            axes.plot(
                float(np.median(values)),
                y,
                linestyle="",
                marker=MARKERS[place % len(MARKERS)],
                color=look["color"],
                markeredgecolor=theme.paper,
                ms=9,
                label=None if number else lineage.label(kind),
            )
    axes.set_yticks(range(len(names)), [short(name) for name in names])
    axes.set(
        xlabel="test accuracy of the last network (%)", ylim=(len(names) - 0.5, -0.5)
    )
    axes.grid()
    legend_below(figure, *axes.get_legend_handles_labels())
    return figure


def short(path: str) -> str:
    """Returns a path with its family once: 'plain 10 → 8 → 2'."""
    models = path.split("/")
    families = {model.partition("-")[0] for model in models}
    if len(families) > 1 or "+" in path:
        return " → ".join(models)
    sizes = (model.partition("-")[2] for model in models)
    return f"{families.pop()} {' → '.join(sizes)}"


def survivals(stages: Sequence[Stage], theme: Theme) -> Figure:
    """Draws the student's accuracy over the guides' survival probability."""
    points = sorted(
        (probability, [100 * value for value in stage.student.accuracy])
        for stage in stages
        if (probability := lineage.survival(stage.kind)) is not None
    )
    figure = Figure(figsize=(6.2, 3.8), layout="constrained")
    axes = figure.subplots()
    look = next(theme.lines())
    for probability, values in points:
        axes.plot([probability] * len(values), values, ".", color=theme.ink, ms=6)
    axes.plot(
        [probability for probability, _ in points],
        [float(np.median(values)) for _, values in points],
        marker="o",
        label="median",
        **look,
    )
    axes.plot([], [], ".", color=theme.ink, label="each seed")
    axes.set(xlabel="survival probability p of each guide", ylabel="test accuracy (%)")
    axes.set_xticks([probability for probability, _ in points])
    axes.grid()
    legend_below(figure, *axes.get_legend_handles_labels())
    return figure
