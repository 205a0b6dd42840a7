"""Folders of runs whose networks the tests export."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from exported import deployed

pytest.importorskip("onnxruntime", reason="onnxruntime, of 'export', is not installed")


from kdjax.data import sources
from kdjax.experiment.config import PRECISIONS
from kdjax.export import verify
from kdjax.export.__main__ import main
from kdjax.export.description import parameters
from kdjax.runtime.files import write_json
from kdjax.train.saved_network import save_student

FEW = ["--threads=1"]


def finish(folder, stages, precision="float32", **stated):
    """Writes what a run on the digits leaves, of networks that were not trained.

    Args:
        folder: the run's.
        stages: by name the network, its variables or None, and its teachers.
        precision: the run's.
        **stated: what `results.json` says of every stage besides.
    """
    data, dtype = sources.load("digits", test_size=300), PRECISIONS[precision].dtype
    results = {}
    for number, (name, (model, given, *teachers)) in enumerate(stages.items()):
        fingerprint = f"{number:012x}"
        place = folder / "stages" / f"{name}-{fingerprint}"
        network = dataclasses.replace(
            deployed(model, (8, 8, 1)), mean=data.mean, std=data.std
        )
        if given is not None:
            network = dataclasses.replace(network, variables=given)
        with jax.enable_x64(precision == "float64"):
            wide = jax.tree.map(lambda leaf: np.asarray(leaf, dtype), network.variables)
            save_student(place, model, wide)
        logits = verify.reference(network, data.test.images)
        accuracy = float(np.mean(logits.argmax(1) == data.test.labels))
        figures = {"model": model, "parameters": parameters(network)}
        settings = {
            "kdjax": "0.0.9",
            "num_classes": 10,
            "recipe": {
                "epochs": 2,
                "batch_size": 32,
                "optimizer": "sgd",
                "learning_rate": 0.1,
            },
            "data": {
                "train_size": data.train_size,
                "image_shape": data.image_shape,
                "mean": data.mean,
                "std": data.std,
                "content": data.content,
            },
            "precision": precision,
        }
        write_json(place / "stage.json", settings)
        student = {**figures, "test_accuracy": accuracy}
        result = {"networks": {"student": student}, "fingerprint": fingerprint}
        write_json(place / "result.json", result)
        results[name] = {
            **figures,
            "test_accuracy": {"final": [accuracy], "median": accuracy},
            "method": "kd" if teachers else "supervised",
            "teachers": teachers,
            "fingerprint": [fingerprint],
            **stated,
        }
    config = {"data": {"name": "digits", "test_size": 300}}
    write_json(folder / "results.json", {"stages": results, "config": config})
    return folder


def about(out):
    return json.loads((out / "model.json").read_text())


def told(argv, capsys):
    """Returns the one line with which a command ends that its user has to correct."""
    assert main([str(word) for word in argv]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line
