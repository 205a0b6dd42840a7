"""Inspects a file of PyTorch tensors: python -m kdjax.import_torch FILE.

    python -m kdjax.import_torch teacher.pth
    python -m kdjax.import_torch teacher.pth --data cifar10 --out networks/teacher

Prints the file's format, the networks that it may hold, and the first lines of the
mapping from PyTorch's tensors to kdjax's. `--data` evaluates the network on the test
images of a data set; `--out` writes it to a folder, from which
`kdjax.train.saved_network.read_network` reads it again.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from kdjax.runtime import command


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(number) for number in text.split(","))


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command.Parser(
        prog="python -m kdjax.import_torch",
        description="Inspects a file of PyTorch tensors and imports its network.",
    )
    parser.add_argument(
        "file",
        type=Path,
        help="a state dict by torch.save, wrapped or not, or a .safetensors file",
    )
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="the network, such as resnet-56 (default: the one that the file fits)",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="write the network to this folder"
    )
    parser.add_argument(
        "--data",
        metavar="NAME",
        help="evaluate it on the test images of this data set, or of this folder or "
        "file of one's own",
    )
    parser.add_argument(
        "--data-dir", type=Path, help="folder of all data sets (default: TFDS's)"
    )
    for what, meaning in (("mean", "mean"), ("std", "standard deviation")):
        parser.add_argument(
            f"--{what}",
            type=_numbers,
            metavar="R,G,B",
            help=f"{meaning} of the channels, on the scale 0 to 1, with which the "
            "network was trained (default: the data set's)",
        )
    parser.add_argument(
        "--rows",
        type=int,
        default=8,
        metavar="N",
        help="lines of the mapping to print (default: %(default)s)",
    )
    options = parser.parse_args(argv)
    if options.rows < 0:
        parser.error(f"--rows={options.rows} is negative")
    if (options.mean or options.std) and not options.data:
        parser.error("--mean and --std are for the images of --data")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    return command.run(lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> None:
    options = _parse(argv)
    # Imported late, so that wrong arguments fail fast.
    from kdjax.import_torch.importing import Import
    from kdjax.runtime import backend

    backend.use_compilation_cache()
    importing = Import(options.file, options.model, options.out)
    importing.show(options.rows)
    if options.data:
        importing.evaluate(options.data, options.data_dir, options.mean, options.std)
    if options.out:
        importing.write()


if __name__ == "__main__":
    sys.exit(main())
