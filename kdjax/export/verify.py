"""Verifies that an exported file computes the same logits as kdjax."""

import jax
import numpy as np

from kdjax.export.deployed import Deployed
from kdjax.export.images import Part
from kdjax.runtime.errors import UserError
from kdjax.train.prediction import Predictor

TOLERANCE = 1e-4
"""The permitted difference of logits, relative to the largest one or to 1."""
IMAGES = 256
"""The number of test images that are compared."""


def reference(network: Deployed, images: np.ndarray) -> np.ndarray:
    """Returns kdjax's own logits, float32 `[N, classes]`.

    Args:
        network: to run.
        images: uint8 `[N, H, W, C]`.
    """
    predictor = Predictor(network.model, network.num_classes, network.mean, network.std)
    with jax.default_matmul_precision(
        "float32"
    ):  # on GPUs and TPUs the default precision is lower
        return predictor.logits(network.variables, images)


def check(logits: np.ndarray, expected: np.ndarray, part: Part, file: str) -> None:
    """Compares a file's logits on some test images with kdjax's.

    Args:
        logits: the file's, `[N, classes]`.
        expected: kdjax's.
        part: the images.
        file: its name for messages.

    Raises:
        UserError: the logits differ; the message states by how much.
    """
    if logits.shape != expected.shape or not np.isfinite(logits).all():
        raise UserError(
            f"{file} is not exported: on {len(expected)} test images its logits are "
            f"{'not finite' if logits.shape == expected.shape else logits.shape}"
        )
    bound = TOLERANCE * max(1.0, float(np.abs(expected).max()))
    off = float(np.abs(logits - expected).max())
    right, wanted = (
        int((each.argmax(axis=1) == part.labels).sum()) for each in (logits, expected)
    )
    if off > bound or right != wanted:
        raise UserError(
            f"{file} is not exported: on {len(expected)} test images its logits are "
            f"off by up to {off:.2g} (allowed: {bound:.2g}), and {right} of them are "
            f"right, of kdjax's {wanted}"
        )
