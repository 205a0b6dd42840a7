"""DGKD's chain without augmentation: kdjax with the bank against plain PyTorch.

    pip install -e '.[benchmark]' && python -m benchmarks.torch_chain --data-dir DIR

Plain CNNs on CIFAR-100, each taught by all before it. kdjax asks every teacher once
about every image and trains from what it stored. PyTorch runs every guide in every
step: as the released code does it, which keeps the guides' graphs and differentiates
them too, and under no_grad, which it could have done. PyTorch's images lie in memory
ready-made. Seconds are those of training, teacher passes and evaluation; kdjax's
compilation is given apart.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import chain, measure
from kdjax.runtime.console import console
from kdjax.runtime.errors import UserError

OURS = "kdjax, bank"
THEIRS = {
    "torch, released": ["--with-grad"],
    "torch, no_grad": [],
    "torch, no_grad, channels_last": ["--layout=channels_last"],
}


def theirs(
    options: argparse.Namespace, assistants: int, flags: Sequence[str]
) -> dict[str, float]:
    """Returns seconds of PyTorch's chain and the student's accuracy."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "stages.json")
        command = [
            *(sys.executable, "-m", "benchmarks.torch_training", "chain", *flags),
            *(f"--path={chain.PATHS[assistants]}", f"--epochs={options.epochs}"),
            *(f"--train-size={options.train_size}", f"--out={out}"),
            f"--test-size={options.test_size}",
        ]
        if options.data_dir:
            command.append(f"--data-dir={options.data_dir}")
        subprocess.run(command, check=True)
        stages = list(json.loads(out.read_text()).values())
    return {
        "seconds": sum(stage["seconds"] for stage in stages),
        "accuracy": stages[-1]["accuracy"]["student"],
    }


def run(options: argparse.Namespace, assistants: int) -> dict[str, Any]:
    """Returns the figures of one chain: seconds, ratios, and every run's."""
    runs: dict[str, list[dict[str, Any]]] = {}

    def ours() -> float:
        found = chain.run(options, assistants, "none", bank=True)
        runs.setdefault(OURS, []).append(found)
        return found["seconds"]

    def turn(name: str) -> float:
        found = theirs(options, assistants, THEIRS[name])
        runs.setdefault(name, []).append(found)
        return found["seconds"]

    turns = {OURS: ours}
    for name in THEIRS:
        turns[name] = lambda name=name: turn(name)
    found = measure.interleave(turns, options.rounds, options.busy)
    seconds = found.pop("values")
    kept = {name: [runs[name][i] for i in found["kept"]] for name in runs}
    return {
        "assistants": assistants,
        "seconds": {name: measure.spread(values) for name, values in seconds.items()},
        "ratio": {
            name: measure.quotient(seconds[name], seconds[OURS]) for name in THEIRS
        },
        "accuracy": {
            name: [figures["accuracy"] for figures in kept[name]] for name in kept
        },
        "compile_seconds": [figures["compile_seconds"] for figures in kept[OURS]],
        "passes": kept[OURS][0]["passes"],
        **found,
    }


def show(chains: Sequence[dict[str, Any]]) -> None:
    """Prints a row for every chain and program."""
    rows = []
    for found in chains:
        for name, seconds in found["seconds"].items():
            accuracy = measure.spread(found["accuracy"][name])["median"]
            compiling = measure.spread(found["compile_seconds"])["median"]
            rows.append(
                (
                    f"{found['assistants']} assistants, {name}",
                    measure.figure(seconds, ".1f"),
                    f"{compiling:.0f}" if name == OURS else "",
                    "" if name == OURS else measure.figure(found["ratio"][name]),
                    f"{100 * accuracy:.2f}",
                )
            )
    measure.show(
        "DGKD's chain on CIFAR-100 without augmentation: median [quartiles]",
        ("chain", "seconds", "compiling", f"/ {OURS}", "student (%)"),
        rows,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measures the chains and returns the exit status."""
    parser = measure.parser("torch_chain", __doc__, rounds=3)
    parser.add_argument("--data-dir", help="of the TFDS data sets")
    parser.add_argument("--train-size", type=int, default=1000)
    parser.add_argument("--test-size", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument(
        "--assistants",
        type=int,
        nargs="+",
        choices=tuple(chain.PATHS),
        default=tuple(chain.PATHS),
    )
    options = parser.parse_args(argv)
    chains = []
    for assistants in options.assistants:
        try:
            chains.append(run(options, assistants))
        except subprocess.CalledProcessError as error:
            return error.returncode  # the run has said why
        except UserError as error:
            console.print(f"{assistants} assistants: {error}", markup=False)
            break
        sizes = {
            key: getattr(options, key) for key in ("train_size", "test_size", "epochs")
        }
        measure.save(options.out, {**sizes, "chains": chains})
    if chains:
        show(chains)
    return int(len(chains) < len(options.assistants))


if __name__ == "__main__":
    sys.exit(main())
