"""What networks answer: how sure they are, what they confuse, where two differ."""

import math
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from kdjax.analysis.calibration import Reliability
from kdjax.report.figures.style import Theme

_CLASSES = 20
"""The most classes of which a confusion matrix is drawn whole."""
_PAIRS = 15


def reliability(found: Mapping[str, Reliability], theme: Theme) -> Figure:
    """Draws accuracy over confidence, a panel for every network.

    Args:
        found: by the network's label.
        theme: the colours.
    """
    columns = min(3, len(found))
    rows = math.ceil(len(found) / columns)
    figure = Figure(
        figsize=(max(4.4, 2.1 * columns), 2.3 * rows + 0.4), layout="constrained"
    )
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True)
    colour = theme.cycle[0]
    for axis, (label, bins) in zip(axes.flat, found.items(), strict=False):
        width = 1 / len(bins.count)
        lefts = np.arange(len(bins.count)) * width
        filled = bins.count > 0
        axis.bar(
            lefts[filled],
            bins.accuracy[filled],
            width,
            align="edge",
            color=colour,
            edgecolor=theme.paper,
            linewidth=0.5,
        )
        axis.plot([0, 1], [0, 1], "--", color=theme.ink, lw=1)
        axis.set_title(f"{label}\nECE {100 * bins.ece:.2f} %", fontsize=9)
        axis.set(xlim=(0, 1), ylim=(0, 1), box_aspect=1)
        axis.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        axis.tick_params(labelsize=9)
    for axis in list(axes.flat)[len(found) :]:
        axis.set_axis_off()
    figure.supxlabel("confidence", fontsize=10)
    figure.supylabel("accuracy", fontsize=10)
    return figure


def confusion(
    label: str,
    predicted: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    theme: Theme,
) -> Figure:
    """Draws which class is taken for which; of many classes the commonest mistakes.

    Args:
        label: the network's.
        predicted: [N] classes that it names.
        labels: [N] true classes.
        classes: names by label.
        theme: the colours.
    """
    count = len(classes)
    matrix = np.bincount(labels * count + predicted, minlength=count**2)
    matrix = matrix.reshape(count, count)
    if count > _CLASSES:
        return _mistakes(label, matrix, classes, theme)
    size = max(4.2, 0.42 * count + 1.4)
    figure = Figure(figsize=(size + 0.8, size), layout="constrained")
    axes = figure.subplots()
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    shown = axes.imshow(100 * share, cmap="cividis", vmin=0, vmax=100)
    for true, named in np.argwhere(matrix > 0):
        ink = "black" if share[true, named] > 0.5 else "white"
        axes.text(
            named,
            true,
            f"{matrix[true, named]}",
            ha="center",
            va="center",
            color=ink,
            fontsize=8,
        )
    turn = 90 if any(len(name) > 2 for name in classes) else 0
    axes.set_xticks(range(count), classes, rotation=turn)
    axes.set_yticks(range(count), classes)
    axes.set(xlabel="named class", ylabel="true class", title=label)
    axes.spines[:].set_visible(False)
    figure.colorbar(shown, ax=axes, label="share of the true class (%)", shrink=0.8)
    return figure


def _mistakes(
    label: str, matrix: np.ndarray, classes: Sequence[str], theme: Theme
) -> Figure:
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:_PAIRS]
    pairs = [divmod(int(place), len(classes)) for place in order]
    figure = Figure(figsize=(6.2, 1.4 + 0.27 * len(pairs)), layout="constrained")
    axes = figure.subplots()
    names = [f"{classes[true]} taken for {classes[named]}" for true, named in pairs]
    axes.barh(names, [wrong[pair] for pair in pairs], color=theme.cycle[0])
    axes.invert_yaxis()
    axes.set(xlabel="test images", title=f"{label}: its commonest mistakes")
    axes.grid(axis="x")
    return figure


def differing(
    images: np.ndarray,
    labels: np.ndarray,
    answers: Mapping[str, np.ndarray],
    classes: Sequence[str],
) -> Figure:
    """Draws images with what each network says of them.

    Args:
        images: [N, H, W, C], those on which the networks differ most.
        labels: [N] true classes.
        answers: by the network's label, [N, classes] probabilities.
        classes: names by label.
    """
    columns = 3  # so that the words are readable on a phone
    rows = math.ceil(len(images) / columns)
    figure = Figure(figsize=(4.8, 2.2 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for i, axis in zip(range(len(images)), axes.flat, strict=False):
        show(axis, images[i])
        lines = [f"true: {classes[labels[i]]}"]
        for label, probabilities in answers.items():
            named = int(probabilities[i].argmax())
            lines.append(
                f"{label}: {classes[named]} ({100 * probabilities[i, named]:.0f} %)"
            )
        axis.set_title("\n".join(lines), fontsize=8)
    return figure


def attention(
    images: np.ndarray, maps: Mapping[str, np.ndarray], theme: Theme
) -> Figure:
    """Draws attention maps over the images: a row per image, a column per network.

    Args:
        images: [N, H, W, C].
        maps: by the network's label, [N, h, w] mean squared activations.
        theme: the colours.
    """
    columns = 1 + len(maps)
    figure = Figure(
        figsize=(max(4.5, 1.05 * columns), 1.05 * len(images) + 0.6),
        layout="constrained",
    )
    axes = figure.subplots(len(images), columns, squeeze=False)
    height, width = images.shape[1:3]
    for i, row in enumerate(axes):
        for axis in row:
            show(axis, images[i])
            axis.set_axis_off()
        for axis, found in zip(row[1:], maps.values(), strict=True):
            axis.imshow(
                found[i] / max(found[i].max(), 1e-12),
                cmap="inferno",
                alpha=0.6,
                vmin=0,
                vmax=1,
                extent=(-0.5, width - 0.5, height - 0.5, -0.5),
                interpolation="bilinear",
            )
    for axis, label in zip(axes[0], ("image", *maps), strict=True):
        wrapped = "\n".join(textwrap.wrap(label, 13))
        axis.set_title(wrapped, fontsize=8, color=theme.ink)
    return figure


def show(axis: object, image: np.ndarray) -> None:
    """Shows an image as it is stored, grey or in colours."""
    grey = image.shape[-1] == 1
    axis.imshow(  # type: ignore[attr-defined]
        image[..., 0] if grey else image,
        cmap="gray" if grey else None,
        vmin=0,
        vmax=255,
    )
