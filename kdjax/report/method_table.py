"""Reads what `python -m benchmarks.methods` keeps of a run: a table of all methods."""

from collections.abc import Mapping
from typing import Any

import numpy as np


def is_one(found: Mapping[str, Any]) -> bool:
    """Returns whether a file's content is such a table."""
    rows = found.get("methods")
    return (
        isinstance(rows, list)
        and isinstance(found.get("config"), dict)
        and all(isinstance(row, dict) and "test_accuracy" in row for row in rows)
    )


def as_results(found: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the table as `results.json` has it, with gaps for what it lacks.

    Stages of which there is no row, such as the teachers, have no accuracies.

    Args:
        found: the file's content.
    """
    rows = {row["method"]: row for row in found["methods"]}
    stages = {
        name: _stage(settings, rows.get(name))
        for name, settings in found["config"]["stages"].items()
    }
    return {**found, "stages": dict(sorted(stages.items(), key=_teachers_first))}


def _stage(
    settings: Mapping[str, Any], row: Mapping[str, Any] | None
) -> dict[str, Any]:
    accuracies = list(row["test_accuracy"]) if row else []
    return {
        "method": settings["method"],
        "model": settings["model"],
        "teachers": settings.get("teachers", []),
        "parameters": None,
        "test_accuracy": {
            "final": accuracies,
            "median": float(np.median(accuracies)) if row else None,
        },
        "test_top5": {"final": [row["top5"]] if row else []},  # of several the median
        "test_loss": [],
    }


def _teachers_first(item: tuple[str, Mapping[str, Any]]) -> bool:
    return bool(item[1]["teachers"])


def columns(results: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns columns of the page's table of networks, see `page.section`.

    Args:
        results: a run's; of others than these tables it returns nothing.
    """
    if not is_one(results):
        return {}
    rows = results["methods"]
    return {
        "epoch / KD's": {
            row["method"]: (row["epoch"], [f"{row['epoch']:.2f}"]) for row in rows
        },
        "extra parameters": {
            row["method"]: (row["extra_parameters"], [f"{row['extra_parameters']:,}"])
            for row in rows
        },
    }


NOTES = (
    "Epoch / KD's: how long an epoch takes, over the time of KD's. Extra parameters: "
    "those that are trained beside the student's own.",
)
