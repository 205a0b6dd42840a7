"""Networks in 8 bits: onnxruntime's static quantisation of an ONNX file."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)

from kdjax.export.onnx.builder import IMAGES

_TYPES = {"int8": QuantType.QInt8, "uint8": QuantType.QUInt8}


class _Batches(CalibrationDataReader):
    """Yields prepared batches to the quantiser."""

    def __init__(self, batches: Iterable[np.ndarray]):
        self._batches = iter(batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Returns the next input, or None at the end."""
        batch = next(self._batches, None)
        return None if batch is None else {IMAGES: batch}


def quantise(
    source: Path,
    target: Path,
    batches: Iterable[np.ndarray],
    method: CalibrationMethod = CalibrationMethod.MinMax,
    activations: str = "int8",
    **options: Any,
) -> None:
    """Writes a network whose weights and activations have 8 bits.

    Weights are scaled per output channel and symmetric; the ranges of activations are
    those of the calibration images. The file holds pairs of QuantizeLinear and
    DequantizeLinear, which runtimes fuse with the convolutions.

    Args:
        source: the ONNX file in float32.
        target: the file to write.
        batches: the network's inputs for some training images.
        method: how ranges are derived from the observed activations.
        activations: their type, 'int8' or 'uint8'.
        **options: further arguments of `quantize_static`.
    """
    with _quiet():
        quantize_static(
            source,
            target,
            _Batches(batches),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=_TYPES[activations],
            weight_type=QuantType.QInt8,
            calibrate_method=method,
            **options,
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences the quantiser's logging, output and warnings."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
