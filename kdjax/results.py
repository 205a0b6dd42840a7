"""What `results.json` says."""

import datetime
import platform
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

import kdjax
from kdjax.graph import Experiment, Stage


def summarise(
    experiment: Experiment, results: Mapping[str, list[dict[str, Any]]]
) -> dict[str, Any]:
    """Returns the content of `results.json`.

    Args:
        experiment: what was run.
        results: by stage, the results of its replicas.
    """
    return {
        "stages": {
            name: _summarise(experiment.stages[name], replicas)
            for name, replicas in results.items()
        },
        "config": experiment.config,
        "versions": {
            "kdjax": kdjax.__version__,
            "jax": jax.__version__,
            "python": platform.python_version(),
        },
        "devices": [str(device.device_kind) for device in jax.devices()],
        "finished": datetime.datetime.now(datetime.UTC).isoformat("T", "seconds"),
    }


def _summarise(stage: Stage, replicas: list[dict[str, Any]]) -> dict[str, Any]:
    def spread(role: str, key: str) -> list[float]:
        return [replica["networks"][role][key] for replica in replicas]

    def figures(role: str) -> dict[str, Any]:
        final = spread(role, "test_accuracy")
        return {
            "model": replicas[0]["networks"][role]["model"],
            "parameters": replicas[0]["networks"][role]["parameters"],
            "test_accuracy": {
                "final": final,
                "best": spread(role, "best_test_accuracy"),
                "median": float(np.median(final)),
            },
            "test_top5": {
                "final": spread(role, "test_top5"),
                "median": float(np.median(spread(role, "test_top5"))),
            },
            "test_loss": spread(role, "test_loss"),
        }

    others = [role for role in replicas[0]["networks"] if role != "student"]
    return {
        **figures("student"),
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
