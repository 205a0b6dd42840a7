"""Exports a finished network: python -m kdjax.export WORKDIR --stage NAME --out DIR.

    python -m kdjax.export runs/digits --stage student --out student/
    python -m kdjax.export runs/digits --stage student --int8 --out student/
    python -m kdjax.export runs/digits --stage student --format torch --out student/

The folder holds the network, `model.json` with all that programs need to know, and a
model card; for ONNX also `table.json`: teachers, student and quantised student, with
size, accuracy and speed. Every file is verified against kdjax's own logits.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from kdjax.runtime import command


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command.Parser(
        prog="python -m kdjax.export",
        description="Exports the network of a finished stage.",
    )
    parser.add_argument("workdir", type=Path, help="the folder of a finished run")
    parser.add_argument(
        "--stage", required=True, metavar="NAME", help="such as student"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="its replica (default: 0)"
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="the folder to write"
    )
    parser.add_argument(
        "--format",
        default="onnx",
        help="onnx (the default), stablehlo, safetensors, or torch: a state dict",
    )
    parser.add_argument(
        "--int8",
        action="store_true",
        help="also write a file in 8 bits, calibrated on training images",
    )
    parser.add_argument(
        "--uint8",
        action="store_true",
        help="let the file take uint8 images [N, H, W, C] and normalise them itself",
    )
    parser.add_argument(
        "--opset",
        type=int,
        default=0,
        metavar="N",
        help="the version of ONNX's operators (default: 17)",
    )
    parser.add_argument(
        "--layout",
        default="",
        metavar="NAME",
        help="for --format torch: the repository whose tensor names are used",
    )
    parser.add_argument(
        "--calibration",
        type=int,
        default=256,
        metavar="N",
        help="training images that calibrate the 8-bit ranges (default: 256)",
    )
    parser.add_argument(
        "--activations",
        default="int8",
        metavar="TYPE",
        help="for --int8: int8 (the default), or uint8, which is faster on x86 "
        "processors with VNNI and less exact on those without",
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="PATH",
        help="where the run's images are now, if they have moved",
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=0,
        metavar="N",
        help="threads for the table's measurements (default: all cores)",
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    return command.run(lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> None:
    parsed = _parse(argv)
    # Imported late, so that wrong arguments fail fast.
    from kdjax.export.exporting import export
    from kdjax.export.options import Options
    from kdjax.runtime import backend
    from kdjax.runtime.files import expand

    options = Options(
        format=parsed.format,
        int8=parsed.int8,
        uint8=parsed.uint8,
        opset=parsed.opset,
        layout=parsed.layout,
        calibration=parsed.calibration,
        activations=parsed.activations,
        data=parsed.data and expand(parsed.data),
        threads=parsed.threads,
    )
    backend.use_compilation_cache()
    workdir, out = (expand(path) for path in (parsed.workdir, parsed.out))
    export(workdir, parsed.stage, out, options, parsed.seed)


if __name__ == "__main__":
    sys.exit(main())
