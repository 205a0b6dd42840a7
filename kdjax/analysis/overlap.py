"""Error overlap: the share of a network's errors that its teachers make as well."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


def error_overlap(
    small: np.ndarray, large: np.ndarray, labels: np.ndarray
) -> float | None:
    """Returns the share of one network's errors that another one makes as well.

    |E_small ∩ E_large| / |E_small|, where E holds the examples that a network gets
    wrong; the two wrong answers need not be the same.

    Args:
        small: [N] classes that the smaller network predicts.
        large: [N] classes that the larger network predicts.
        labels: [N] true classes.

    Returns:
        A share from 0 to 1, or None if the smaller network makes no error.

    Raises:
        ValueError: shapes differ.

    Reference:
        Son et al., *Densely Guided Knowledge Distillation using Multiple Teacher
        Assistants*, 2021, Figure 4. The paper does not state the denominator.
    """
    shapes = [np.shape(array) for array in (small, large, labels)]
    if len(set(shapes)) > 1 or len(shapes[0]) != 1:
        raise ValueError(f"small, large and labels must all be [N], not {shapes}")
    wrong = small != labels
    if not wrong.any():
        return None
    return float(np.mean(large[wrong] != labels[wrong]))


@dataclasses.dataclass(frozen=True)
class Overlap:
    """The error overlap of one pair of networks.

    Attributes:
        taught: the stage that is trained later on the chain.
        guide: the stage that teaches it, itself or through others.
        smaller: the smaller network of the two, whose errors are counted.
        neighbours: whether there is no stage between the two.
        each: the overlap by seed; None where the smaller network makes no error.
        by_chance: by seed, the larger network's error rate, which is the overlap to
            expect of independent errors.
    """

    taught: str
    guide: str
    smaller: str
    neighbours: bool
    each: Sequence[float | None]
    by_chance: Sequence[float]

    @property
    def median(self) -> float | None:
        """The median over the seeds that have an overlap."""
        known = [value for value in self.each if value is not None]
        return float(np.median(known)) if known else None

    def summary(self) -> dict[str, Any]:
        """Returns the pair's entry in `results.json`."""
        return {
            "each": list(self.each),
            "median": self.median,
            "smaller": self.smaller,
            "by_chance": list(self.by_chance),
        }


def by_seed(
    pairs: Sequence[tuple[np.ndarray, np.ndarray]], labels: np.ndarray
) -> tuple[list[float | None], list[float]]:
    """Returns the overlap of every seed, and what chance gives.

    Args:
        pairs: by seed, the [N] classes that the smaller and the larger network predict.
        labels: [N] true classes.

    Returns:
        `each` and `by_chance` of an `Overlap`.
    """
    each = [error_overlap(small, large, labels) for small, large in pairs]
    return each, [float(np.mean(large != labels)) for _, large in pairs]


def plot_overlap(overlaps: Sequence[Overlap], path: Path) -> None:
    """Draws a bar for every pair, in a group for every taught network.

    Bars are medians over the seeds, dots are seeds.

    Args:
        overlaps: the pairs, those of one taught network in sequence; at least one.
        path: of the PNG file.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    # A larger gap where the next taught network's group begins.
    heights, height = [], 0.0
    for before, pair in zip((overlaps[0], *overlaps), overlaps, strict=False):
        height += 1.0 if pair.taught == before.taught else 1.6
        heights.append(height)
    figure = Figure(figsize=(8, 1.7 + 0.3 * height), layout="constrained")
    axes = figure.subplots()
    dots: dict[str, Any] = {
        "color": "black",
        "marker": "o",
        "ms": 5,
        "mec": "white",
        "ls": "",
    }
    near, far = "tab:blue", "lightsteelblue"
    for pair, y in zip(overlaps, heights, strict=True):
        if pair.median is not None:
            axes.barh(y, 100 * pair.median, color=near if pair.neighbours else far)
            axes.text(101, y, f"{100 * pair.median:.1f}", va="center", fontsize=9)
        else:
            axes.text(1, y, "no errors", va="center", fontsize=9)
        known = [100 * value for value in pair.each if value is not None]
        if len(known) > 1:
            axes.plot(known, [y] * len(known), **dots)
        chance = 100 * float(np.median(pair.by_chance))
        axes.plot([chance] * 2, [y - 0.4, y + 0.4], color="tab:orange", lw=2)
    axes.set_yticks(heights, [f"{pair.guide} ∩ {pair.taught}" for pair in overlaps])
    axes.tick_params(axis="y", length=0)
    # From large to small: the first pair is at the top.
    axes.set(xlim=(0, 100), ylim=(height + 0.7, heights[0] - 0.7))
    axes.set_xlabel("share of the smaller network's errors (%)")
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    legend: list[Any] = [Patch(color=near, label="neighbours")]
    if not all(pair.neighbours for pair in overlaps):
        legend.append(Patch(color=far, label="further apart"))
    legend.append(Line2D([], [], color="tab:orange", lw=2, label="expected by chance"))
    if any(len(pair.each) > 1 for pair in overlaps):
        legend.append(Line2D([], [], label="each seed", **dots))
    figure.legend(handles=legend, loc="outside lower center", ncols=4, frameon=False)
    axes.set_title("Errors that two networks share")
    figure.savefig(path, dpi=120)
