"""The options of an export, and checks that they fit together."""

import dataclasses
import importlib.util
from pathlib import Path

from kdjax.runtime.errors import UserError, unknown

FILES = {
    "onnx": "model.onnx",
    "stablehlo": "model.stablehlo",
    "safetensors": "model.safetensors",
    "torch": "model.pth",
}
"""The file of each format."""
INT8 = "model.int8.onnx"
ACTIVATIONS = ("int8", "uint8")
"""The types of activations in 8 bits; weights are int8."""
GRAPHS = ("onnx", "stablehlo")
"""The formats that contain the computation; the others contain named tensors."""

_NEEDED = {
    "onnx": ("onnx", "onnxruntime"),
    "safetensors": ("safetensors",),
    "stablehlo": ("flatbuffers",),
    "torch": ("torch",),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of an export.

    Attributes:
        format: a key of `FILES`.
        int8: whether to write a quantised file as well; 'onnx' only.
        uint8: whether the exported network takes uint8 images and normalises them
            itself.
        opset: the version of ONNX's operators; 0: the default.
        layout: for 'torch': the repository whose tensor names are used; '': that of
            the file that the network was imported from, otherwise the first one known
            for its family.
        calibration: the number of training images that calibrate the quantisation.
        activations: the type of quantised activations, one of `ACTIVATIONS`.
        data: where the run's images are now, if they have moved.
        threads: of onnxruntime in measurements; 0: all cores.

    Raises:
        UserError: the format is unknown, or options do not fit together.
    """

    format: str = "onnx"
    int8: bool = False
    uint8: bool = False
    opset: int = 0
    layout: str = ""
    calibration: int = 256
    activations: str = "int8"
    data: Path | None = None
    threads: int = 0

    def __post_init__(self) -> None:
        if self.format not in FILES:
            raise unknown("format", self.format, FILES)
        for name, formats in (
            ("int8", ("onnx",)),
            ("uint8", GRAPHS),
            ("opset", ("onnx",)),
            ("layout", ("torch",)),
            ("threads", ("onnx",)),
        ):
            if getattr(self, name) and self.format not in formats:
                raise UserError(
                    f"{name} is for format {' and '.join(formats)}, not {self.format}"
                )
        if self.activations not in ACTIVATIONS:
            raise unknown("activations", self.activations, ACTIVATIONS)
        if self.calibration < 1:
            raise UserError(f"calibration={self.calibration} must be at least 1")
        for name in ("activations", "calibration"):
            value = getattr(self, name)
            if not self.int8 and value != getattr(Options, name):
                raise UserError(f"{name}={value} is for 8 bits: give int8 as well")
        if self.data is not None and not self.data.exists():
            raise UserError(f"data={self.data}: no such file or folder")
        if self.threads < 0:
            raise UserError(f"threads={self.threads} is negative")

    def check_installed(self) -> None:
        """Raises UserError if a package that the format needs is not installed."""
        extra = "torch" if self.format == "torch" else "export"
        for package in _NEEDED[self.format]:
            if importlib.util.find_spec(package) is None:
                raise UserError(
                    f"format {self.format} needs {package}, which is not installed: "
                    f"pip install 'kdjax[{extra}]'"
                )
