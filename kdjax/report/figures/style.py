"""How pictures look: on light and dark pages, and to readers who see fewer colours."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

_LIGHT = {
    "ink": "#1c1e21",
    "paper": "#ffffff",
    # Okabe and Ito's colours, without the yellow that white swallows.
    "cycle": ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"),
}
_DARK = {
    "ink": "#e4e6ea",
    "paper": "#1d2025",
    "cycle": ("#56b4e9", "#e69f00", "#2fc59a", "#e394c2", "#f0e442", "#ff7f3f"),
}
_DASHES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
_DPI = 144


@dataclasses.dataclass(frozen=True)
class Theme:
    """Colours of one of the two versions of a picture.

    Attributes:
        ink: of text and axes.
        paper: of the ground.
        cycle: of what is compared.
    """

    ink: str
    paper: str
    cycle: tuple[str, ...]

    def lines(self) -> Iterator[dict[str, Any]]:
        """Returns colour and dashes of one line after the other, all different.

        Neighbours differ in both, so that lines are told apart without colours.
        """
        return map(self.line, itertools.count())

    def line(self, number: int) -> dict[str, Any]:
        """Returns colour and dashes of one of the lines that `lines` yields."""
        count = len(self.cycle)
        dash = (number + number // count) % len(_DASHES)
        return {"color": self.cycle[number % count], "linestyle": _DASHES[dash]}


LIGHT, DARK = Theme(**_LIGHT), Theme(**_DARK)  # type: ignore[arg-type]

Plot = Callable[[Theme], Figure]
"""Draws a picture in a theme's colours."""


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture of the page.

    Attributes:
        title: above it.
        caption: below it: what it shows and of which data.
        alt: what it shows, in words, for those who do not see it.
        light: the file's name, relative to the page.
        dark: likewise, for dark pages.
        width: in pixels.
        height: in pixels.
    """

    title: str
    caption: str
    alt: str
    light: str
    dark: str
    width: int
    height: int


def save(
    plot: Plot, out: Path, name: str, *, title: str, caption: str, alt: str
) -> Picture:
    """Draws a picture in both themes.

    Args:
        plot: draws it.
        out: the page's folder.
        name: of the files, without their ending.
        title: see `Picture`.
        caption: likewise.
        alt: likewise.
    """
    folder = out / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    files: list[str] = []
    size = 0, 0
    for theme, ending in ((LIGHT, ""), (DARK, "-dark")):
        with rc_context(_settings(theme)):
            figure = plot(theme)
            path = folder / f"{name}{ending}.png"
            figure.savefig(path, dpi=_DPI)
        width, height = figure.get_size_inches()
        size = int(width * _DPI), int(height * _DPI)  # as matplotlib cuts it
        files.append(f"pictures/{path.name}")
    return Picture(title, caption, alt, files[0], files[1], *size)


def _settings(theme: Theme) -> Any:
    ink = dict.fromkeys(
        (
            "text.color",
            "axes.labelcolor",
            "axes.edgecolor",
            "xtick.color",
            "ytick.color",
        ),
        theme.ink,
    )
    return {
        **ink,
        "figure.facecolor": theme.paper,
        "savefig.facecolor": theme.paper,
        "axes.facecolor": theme.paper,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "grid.color": theme.ink,
        "grid.alpha": 0.18,
        "legend.frameon": False,
        # On a phone a picture shrinks to half its size.
        "font.size": 11.5,
        "axes.titlesize": 11.5,
        "legend.fontsize": 10.5,
        "lines.linewidth": 1.8,
    }


def plain_log(axis: Axis) -> None:
    """Labels a logarithmic axis with plain numbers: 200k, not 2 x 10^5.

    Args:
        axis: of a plot, x or y.
    """
    low, high = axis.get_view_interval()
    # Over many decades the numbers between the powers of ten would overlap.
    steps = (1.0, 2.0, 5.0) if high / low < 300 else (1.0,)
    axis.set_major_locator(LogLocator(subs=steps, numticks=12))
    axis.set_major_formatter(EngFormatter(sep="") if high > 1000 else "{x:g}")
    axis.set_minor_formatter(NullFormatter())


def legend_below(figure: Figure, handles: Any, labels: Any, most: int = 3) -> None:
    """Puts a legend below all axes, where it covers nothing.

    Args:
        figure: with constrained layout.
        handles: of what is drawn.
        labels: their names.
        most: columns of the legend.
    """
    columns = max(1, min(most, len(labels)))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)
