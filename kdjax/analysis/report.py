"""The table at the end of a run, and the curves of its networks."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from kdjax.progress import console


def _percent(value: float) -> str:
    return f"{100 * value:.2f}"


def print_table(
    stages: Mapping[str, Mapping[str, Any]], validation: bool = False
) -> None:
    """Prints one row per network: model, parameters, accuracy in per cent.

    Args:
        stages: the 'stages' of `results.json`.
        validation: whether images held out of training stood in for the test's.
    """
    images = "Validation" if validation else "Test"
    table = Table(title=f"{images} accuracy after the last epoch (%)")
    table.add_column("stage")
    table.add_column("method")
    table.add_column("network")
    for name in ("parameters", "median", "top-5"):
        table.add_column(name, justify="right")
    table.add_column("each seed")
    for name, stage in stages.items():
        rows = {name: stage} | {
            f"{name}/{role}": other for role, other in stage["others"].items()
        }
        for label, network in rows.items():
            accuracy = network["test_accuracy"]
            table.add_row(
                label,
                stage["method"] if label == name else "",
                network["model"],
                f"{network['parameters']:,}",
                _percent(accuracy["median"]),
                _percent(network["test_top5"]["median"]),
                " ".join(map(_percent, accuracy["final"])),
            )
    console.print(table)


def draw_curves(results: Mapping[str, list[dict[str, Any]]], path: Path) -> None:
    """Draws loss and test accuracy of every network over the epochs.

    Lines are medians over the seeds, the band spans them.

    Args:
        results: by stage, the results of its replicas.
        path: of the PNG file.
    """
    import numpy as np
    from cycler import cycler
    from matplotlib.figure import Figure

    count = sum(len(replicas[0]["networks"]) for replicas in results.values())
    figure = Figure(figsize=(12, max(4, 0.22 * count)), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis in axes:
        axis.set_prop_cycle(cycler(color=_colours(count)))
    for column, key, scale in ((0, "test/loss/", 1), (1, "test/accuracy/", 100)):
        for name, replicas in results.items():
            for role in replicas[0]["networks"]:
                runs = [
                    {
                        record["epoch"]: scale * record[key + role]
                        for record in replica["history"]
                        if key + role in record
                    }
                    for replica in replicas
                ]
                epochs = sorted(set.intersection(*map(set, runs)))
                values = np.array([[run[epoch] for epoch in epochs] for run in runs])
                label = name if role == "student" else f"{name}/{role}"
                style = "-" if role == "student" else "--"
                (line,) = axes[column].plot(
                    epochs, np.median(values, axis=0), style, label=label
                )
                low, high = values.min(axis=0), values.max(axis=0)
                axes[column].fill_between(
                    epochs, low, high, alpha=0.2, lw=0, color=line.get_color()
                )
    axes[0].set(xlabel="epoch", ylabel="test loss", yscale="log")
    axes[1].set(xlabel="epoch", ylabel="test accuracy (%)")
    handles, labels = axes[1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False)
    for axis in axes:
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def _colours(count: int) -> Any:
    """Returns a colour of its own for each of so many lines."""
    import numpy as np
    from matplotlib import colormaps

    for name in ("tab10", "tab20"):
        if count <= colormaps[name].N:
            return colormaps[name](range(count))
    return colormaps["turbo"](np.linspace(0, 1, count))
