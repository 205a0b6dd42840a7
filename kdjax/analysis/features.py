"""t-SNE plots of networks' pooled features of test images."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kdjax.runtime.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PERPLEXITY = 30
CLASSES = 10
"""The largest number of classes in a picture, each with its own colour."""

COLOURS = (
    *("#cc6677", "#4477aa", "#ddcc77", "#117733", "#88ccee"),
    *("#882255", "#44aa99", "#999933", "#aa4499", "#888888"),
)
"""The classes' colours: Tol's muted scheme, for readers with colour blindness too."""

_SEED = 20200702  # fixed: it selects the images


def choose(labels: np.ndarray, count: int) -> np.ndarray:
    """Returns the positions of the images to plot, in order.

    Args:
        labels: [N] classes of all images.
        count: the number of images of the first `CLASSES` classes to plot, or all of
            them if there are fewer.

    Returns:
        [M] positions, the same at every call.

    Raises:
        UserError: there are too few images for t-SNE.
    """
    shown = np.flatnonzero(labels < CLASSES)
    count = min(count, len(shown))
    if count <= PERPLEXITY:
        raise UserError(
            f"t-SNE needs more than {PERPLEXITY} images (its perplexity), not {count}; "
            "--examples 0 leaves it out"
        )
    # Raw bits, because NumPy promises only them to be the same in every version.
    keys = np.random.PCG64(_SEED).random_raw(len(shown))
    return np.sort(shown[np.argsort(keys)[:count]])


def embed(features: np.ndarray) -> np.ndarray:
    """Returns a point of the plane for every image, by t-SNE.

    Args:
        features: [M, channels], of more than `PERPLEXITY` images.

    Returns:
        [M, 2] points; all zero if the features of all images are equal.

    Reference:
        van der Maaten & Hinton, *Visualizing Data using t-SNE*, 2008, as in
        scikit-learn, started from the principal components.
    """
    from sklearn.manifold import TSNE  # takes a second
    from threadpoolctl import threadpool_limits

    if not np.ptp(features, axis=0).any():
        return np.zeros((len(features), 2))
    tsne = TSNE(perplexity=PERPLEXITY, init="pca", random_state=0)
    # OpenMP's threads spin while they wait: on two busy cores that takes five times as
    # long as one thread.
    with threadpool_limits(1, user_api="openmp"):
        return tsne.fit_transform(features)


@dataclasses.dataclass(frozen=True, eq=False)
class Panel:
    """One network's part of the picture.

    Attributes:
        title: which network it is.
        points: [M, 2].
        labels: [M] true classes.
        wrong: [M] whether the network gets the image wrong.
    """

    title: str
    points: np.ndarray
    labels: np.ndarray
    wrong: np.ndarray


def plot_tsne(panels: Sequence[Panel], title: str, path: Path) -> None:
    """Draws `draw_tsne` into a PNG file.

    Args:
        panels: the networks.
        title: of the picture.
        path: of the file.
    """
    figure = draw_tsne(panels)
    figure.suptitle(title, fontsize=12)
    figure.savefig(path, dpi=120)


def draw_tsne(
    panels: Sequence[Panel], most: int = 5, classes: Sequence[str] = ()
) -> "Figure":
    """Draws one panel for every network: images coloured by class, errors crossed.

    Args:
        panels: the networks.
        most: panels in a row; of more, every row has one less.
        classes: their names by label; empty: the labels are their names.
    """
    from matplotlib import rcParams
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    columns = len(panels) if len(panels) <= most else most - 1
    rows = math.ceil(len(panels) / columns)
    figure = Figure(
        figsize=(max(3.2 * columns, 6), 3.6 * rows + 1), layout="constrained"
    )
    # Markers shrink with the number of points.
    area = 25 * min(1.0, 400 / max(len(panel.labels) for panel in panels)) ** 0.5
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, panel in zip(axes, panels, strict=False):
        for label in np.unique(panel.labels):
            for wrong, marker in ((False, "."), (True, "x")):
                shown = (panel.labels == label) & (panel.wrong == wrong)
                axis.scatter(
                    *panel.points[shown].T,
                    s=area / 2 if wrong else area,
                    linewidths=1 if wrong else 0,
                    marker=marker,
                    color=COLOURS[label],
                )
        axis.set_title(panel.title, fontsize=10)
        axis.set(xticks=[], yticks=[], box_aspect=1)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    labels = np.unique(np.concatenate([panel.labels for panel in panels]))
    names = {label: classes[label] if classes else str(label) for label in labels}
    numbered = all(name.isdigit() for name in names.values())
    handles = [
        Line2D([], [], marker="o", ls="", ms=5, color=COLOURS[label], label=name)
        for label, name in names.items()
    ]
    if numbered:
        handles[0].set_label(f"class {names[labels[0]]}")
    handles.append(
        Line2D(
            [], [], marker="x", ls="", ms=5, color=rcParams["text.color"], label="wrong"
        )
    )
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=len(handles)
        if numbered and columns > 2
        else math.ceil(len(handles) / (2 if numbered or columns > 2 else 3)),
        frameon=False,
        columnspacing=1,
        handletextpad=0.1,
    )
    return figure
