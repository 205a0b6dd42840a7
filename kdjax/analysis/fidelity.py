"""How close a student is to its teacher, on images that neither was trained on."""

import numpy as np


def agreement(student: np.ndarray, teacher: np.ndarray) -> float:
    """Returns the share of images for which both predict the same class.

    Args:
        student: [N, classes] logits.
        teacher: [N, classes] logits.

    Raises:
        ValueError: shapes differ.

    Reference:
        Stanton et al., *Does Knowledge Distillation Really Work?*, 2021.
    """
    _check(student, teacher)
    return float(np.mean(student.argmax(1) == teacher.argmax(1)))


def divergence(student: np.ndarray, teacher: np.ndarray) -> float:
    """Returns the mean over images of KL(teacher || student), in nats.

    Probabilities are at temperature 1.

    Args:
        student: [N, classes] logits.
        teacher: [N, classes] logits.

    Raises:
        ValueError: shapes differ.
    """
    _check(student, teacher)
    log_s, log_t = log_softmax(student), log_softmax(teacher)
    return float(np.mean(np.sum(np.exp(log_t) * (log_t - log_s), axis=1)))


def distances(student: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    """Returns the difference of two networks on each image, from 0 to log 2.

    It is the Jensen-Shannon divergence of their probabilities, which is symmetric and
    always finite.

    Args:
        student: [N, classes] logits.
        teacher: [N, classes] logits.

    Returns:
        [N] divergences in nats.

    Raises:
        ValueError: shapes differ.
    """
    _check(student, teacher)
    logs = log_softmax(student), log_softmax(teacher)
    middle = np.logaddexp(*logs) - np.log(2)
    halves = [0.5 * np.sum(np.exp(log) * (log - middle), axis=1) for log in logs]
    return np.maximum(halves[0] + halves[1], 0)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Returns the logarithms of a network's probabilities, [N, classes], in float64."""
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def _check(student: np.ndarray, teacher: np.ndarray) -> None:
    if student.shape != teacher.shape or student.ndim != 2:
        raise ValueError(
            f"student and teacher must both be [N, classes], not {student.shape} and "
            f"{teacher.shape}"
        )
