"""ONNX files under onnxruntime, as their users run them: logits and speed."""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime

from kdjax.export.onnx.builder import IMAGES
from kdjax.runtime.errors import UserError

_BATCH = 64
_SECONDS = 1.0
"""The seconds for which each network and batch size is measured."""
_ROUNDS, _WARM, _LEAST = 5, 3, 3


class Session:
    """An ONNX file of a classifier, on this CPU."""

    def __init__(
        self, path: Path, prepare: Callable[[np.ndarray], np.ndarray], threads: int
    ):
        """Reads the file.

        Args:
            path: of the file.
            prepare: makes the network's input from images, uint8 `[N, H, W, C]`.
            threads: the number of threads for one batch.

        Raises:
            UserError: this onnxruntime cannot run it, for instance because it is older
                than the file's version of the operators.
        """
        self._prepare = prepare
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # errors only, no remarks on the graph
        try:
            self._session = onnxruntime.InferenceSession(
                path, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's have no class in common
            raise UserError(
                f"{path.name} is not exported: onnxruntime {onnxruntime.__version__} "
                f"cannot open it; a smaller opset may help: {error}"
            ) from error

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Returns logits, float32 `[N, classes]`.

        Args:
            images: uint8 `[N, H, W, C]`, at least one.
        """
        return np.concatenate(
            [
                self.run(self._prepare(images[start : start + _BATCH]))
                for start in range(0, len(images), _BATCH)
            ]
        )

    def run(self, batch: np.ndarray) -> np.ndarray:
        """Returns the logits of a prepared batch."""
        (logits,) = self._session.run(None, {IMAGES: batch})
        return logits

    def batch(self, images: np.ndarray, size: int) -> np.ndarray:
        """Returns a prepared batch of a size, with the images repeated as needed."""
        return self._prepare(np.resize(images, (size, *images.shape[1:])))


@dataclasses.dataclass(frozen=True)
class Speed:
    """The speed of a network.

    Attributes:
        latency: median milliseconds of one image alone.
        images_per_second: median in batches of 64.
    """

    latency: float
    images_per_second: float


def measure(sessions: Mapping[str, Session], images: np.ndarray) -> dict[str, Speed]:
    """Returns the speed of networks, measured in turn to spread noise evenly.

    Args:
        sessions: by any name.
        images: the inputs, uint8 `[N, H, W, C]`.
    """
    taken: dict[tuple[str, int], list[float]] = {}
    batches = {
        (name, size): session.batch(images, size)
        for name, session in sessions.items()
        for size in (1, _BATCH)
    }
    for (name, _), batch in batches.items():
        for _ in range(_WARM):
            sessions[name].run(batch)
    for _ in range(_ROUNDS):
        for key, batch in batches.items():
            call = functools.partial(sessions[key[0]].run, batch)
            taken.setdefault(key, []).extend(_times(call, _SECONDS / _ROUNDS))
    medians = {key: float(np.median(times)) for key, times in taken.items()}
    return {
        name: Speed(1000 * medians[name, 1], _BATCH / medians[name, _BATCH])
        for name in sessions
    }


def _times(call: Callable[[], object], seconds: float) -> Sequence[float]:
    """Returns how long each of some calls took, in seconds."""
    end, times = time.perf_counter() + seconds, list[float]()
    while len(times) < _LEAST or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times
