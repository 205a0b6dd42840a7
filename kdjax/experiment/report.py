"""What a run reports: `results.json`, the table and the curves of its networks."""

import datetime
import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.table import Table

import kdjax
from kdjax import models
from kdjax.experiment.config import Experiment
from kdjax.experiment.stage import Stage
from kdjax.runtime.console import console

MEASURED = ("agreement", "kl", "ece", "error_overlap")
"""What `kdjax.report` and `kdjax.analysis` add to a stage of `results.json`."""


def summarise(
    experiment: Experiment,
    results: Mapping[str, list[dict[str, Any]]],
    classes: Sequence[str] = (),
    data: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Returns the content of `results.json`.

    Args:
        experiment: what was run.
        results: by stage, the results of its replicas.
        classes: names by label, if they have any.
        data: how many training and test images there were.
    """
    return {
        "stages": {
            name: _summarise(experiment.stages[name], replicas)
            for name, replicas in results.items()
        },
        **({"classes": list(classes)} if classes else {}),
        **({"data": dict(data)} if data else {}),
        "config": experiment.config,
        "versions": {
            "kdjax": kdjax.__version__,
            "jax": jax.__version__,
            "python": platform.python_version(),
        },
        "devices": [str(device.device_kind) for device in jax.devices()],
        "finished": datetime.datetime.now(datetime.UTC).isoformat("T", "seconds"),
    }


def keep_measured(summary: dict[str, Any], path: Path) -> None:
    """Adds to results what further commands have measured of the same networks.

    Args:
        summary: as `summarise` returns it.
        path: the earlier `results.json`, if there is one.
    """
    try:
        before = json.loads(path.read_text())["stages"]
    except (OSError, ValueError, KeyError, TypeError):  # none, or no longer whole
        return
    for name, stage in summary["stages"].items():
        earlier = before.get(name, {})
        # The fingerprint is of the stage and of all that teach it.
        if earlier.get("fingerprint") == stage["fingerprint"]:
            stage |= {key: earlier[key] for key in MEASURED if key in earlier}


def _summarise(stage: Stage, replicas: list[dict[str, Any]]) -> dict[str, Any]:
    def spread(role: str, key: str) -> list[Any]:
        return [replica["networks"][role][key] for replica in replicas]

    def figures(role: str) -> dict[str, Any]:
        final = spread(role, "test_accuracy")
        return {
            "model": replicas[0]["networks"][role]["model"],
            "parameters": replicas[0]["networks"][role]["parameters"],
            "test_accuracy": {
                "final": final,
                "best": spread(role, "best_test_accuracy"),
                "median": _median(final),
            },
            "test_top5": {
                "final": spread(role, "test_top5"),
                "median": _median(spread(role, "test_top5")),
            },
            "test_loss": spread(role, "test_loss"),
        }

    others = [role for role in replicas[0]["networks"] if role != "student"]
    return {
        **figures("student"),
        # Where the network or the predictions come from, if they were not trained here.
        **({"given": list(stage.given)} if stage.given else {}),
        "method": stage.method_name,
        "teachers": list(stage.teachers),
        # With adapters and further networks; what is tied counts once.
        "trained_parameters": replicas[0].get("trained_parameters"),
        "others": {role: figures(role) for role in others},
        "devices": [replica["devices"] for replica in replicas],
        "seconds": [replica["seconds"] for replica in replicas],
        "images_per_second": [replica["images_per_second"] for replica in replicas],
        # Of the process that finished the replica, counted in epochs.
        "teacher_passes": [replica.get("teacher_passes") for replica in replicas],
        "fingerprint": [replica["fingerprint"] for replica in replicas],
        "digest": [replica["digest"] for replica in replicas],
    }


def _median(values: list[float | None]) -> float | None:
    """Returns the median; None where predictions alone are given: no test figures."""
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else None


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def _network(stage: Mapping[str, Any]) -> str:
    """Returns a network's name; where predictions are given alone, their files'."""
    if stage["test_accuracy"]["median"] is None:
        return " + ".join(Path(path).name for path in stage["given"])
    return models.inner(stage["model"])


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
                _network(network),
                f"{network['parameters']:,}",
                _percent(accuracy["median"]),
                _percent(network["test_top5"]["median"]),
                " ".join(map(_percent, accuracy["final"])),
            )
    console.print(table)


def plot_curves(results: Mapping[str, list[dict[str, Any]]], path: Path) -> None:
    """Draws loss and test accuracy of every network over the epochs.

    Lines are medians over the seeds, the band spans them.

    Args:
        results: by stage, the results of its replicas.
        path: of the PNG file.
    """
    # Given networks were not trained here.
    results = {name: found for name, found in results.items() if found[0]["history"]}
    if not results:
        return
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
    from matplotlib import colormaps

    for name in ("tab10", "tab20"):
        if count <= colormaps[name].N:
            return colormaps[name](range(count))
    return colormaps["turbo"](np.linspace(0, 1, count))
