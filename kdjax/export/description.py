"""A finished network as it is deployed, and the content of its `model.json`."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from kdjax import __version__, models
from kdjax.experiment.finished import Finished
from kdjax.export.deployed import Deployed
from kdjax.export.options import FILES, INT8, Options
from kdjax.export.preprocessing import Preprocessing

VERSION = 1
"""Of `model.json`."""


def deploy(found: Finished) -> Deployed:
    """Returns a finished network as it is deployed: in float32.

    Raises:
        UserError: the network's files are damaged.
    """
    wide = jax.config.read("jax_enable_x64")
    try:
        variables = found.variables()
    finally:  # which turns it on for float64
        jax.config.update("jax_enable_x64", wide)
    channels = found.image_shape[-1]
    return Deployed(
        model=found.model,
        num_classes=found.num_classes,
        image_shape=found.image_shape,
        variables=jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), variables),
        mean=found.mean or (0.0,) * channels,
        std=found.std or (1.0,) * channels,
    )


def parameters(network: Deployed) -> int:
    """Returns the number of a network's parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(network.variables["params"]))


def preprocessing(network: Deployed, options: Options) -> Preprocessing:
    """Returns the preprocessing from images to an exported network's input."""
    first = options.format in ("onnx", "torch") and not options.uint8
    layout = "NCHW" if first else "NHWC"
    return Preprocessing(network.mean, network.std, layout, options.uint8)


def describe(
    network: Deployed,
    found: Finished,
    stage: str,
    seed: int,
    options: Options,
    classes: Sequence[str],
) -> dict[str, Any]:
    """Returns the content of `model.json`, with the accuracy that the run measured.

    Args:
        network: the deployed network.
        found: the finished network that it comes from.
        stage: the stage's name.
        seed: the replica's number.
        options: the export's options.
        classes: their names by label; empty if there are none.
    """
    prepare = preprocessing(network, options)
    files = {"float32": FILES[options.format]}
    accuracy = found.result["networks"]["student"].get("test_accuracy")
    return {
        "version": VERSION,
        "format": options.format,
        "files": files | ({"int8": INT8} if options.int8 else {}),
        "model": models.inner(found.model),
        "stage": stage,
        "seed": seed,
        "fingerprint": found.result["fingerprint"],
        "num_classes": found.num_classes,
        "classes": list(classes),
        "input": {
            "name": "images",
            "dtype": "uint8" if options.uint8 else "float32",
            "layout": prepare.layout,
        },
        "output": "logits",
        "preprocessing": {
            "image_shape": list(found.image_shape),
            "fit": "cover",
            "mean": list(network.mean),
            "std": list(network.std),
            "inside": options.uint8,
        },
        "test_accuracy": {} if accuracy is None else {"float32": accuracy},
        "parameters": parameters(network),
        "kdjax": __version__,
    }
