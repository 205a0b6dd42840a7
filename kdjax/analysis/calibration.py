"""Calibration: whether a network's confidence matches its accuracy, and the ECE."""

import dataclasses

import numpy as np

from kdjax.analysis.fidelity import log_softmax

BINS = 15
"""Of equal width from 0 to 1, as in the reference."""


@dataclasses.dataclass(frozen=True, eq=False)
class Reliability:
    """A network's test images, binned by its confidence.

    Attributes:
        count: [bins] images.
        confidence: [bins] mean probability of the predicted class; NaN in empty bins.
        accuracy: [bins] share of correct predictions; NaN in empty bins.
    """

    count: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def ece(self) -> float:
        """The expected calibration error: the mean gap, weighted by images."""
        filled = self.count > 0
        gaps = np.abs(self.accuracy[filled] - self.confidence[filled])
        return float(np.sum(gaps * self.count[filled]) / self.count.sum())


def reliability(
    logits: np.ndarray, labels: np.ndarray, bins: int = BINS
) -> Reliability:
    """Sorts images into bins by the probability of the predicted class.

    Args:
        logits: [N, classes].
        labels: [N] true classes.
        bins: the number of bins of equal width; a probability on an edge falls into
            the lower one.

    Raises:
        ValueError: shapes do not match, or there are no images.

    Reference:
        Guo et al., *On Calibration of Modern Neural Networks*, 2017.
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not len(labels):
        raise ValueError(
            f"logits must be [N, classes] and labels [N], not {logits.shape} and "
            f"{labels.shape}"
        )
    confidence = np.exp(log_softmax(logits).max(1))
    right = logits.argmax(1) == labels
    index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    count = np.bincount(index, minlength=bins)
    with np.errstate(invalid="ignore"):
        return Reliability(
            count=count,
            confidence=np.bincount(index, confidence, bins) / count,
            accuracy=np.bincount(index, right, bins) / count,
        )
