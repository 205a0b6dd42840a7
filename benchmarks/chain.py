"""A chain of teacher assistants with and without the bank: passes, seconds, accuracy.

    python -m benchmarks.chain --data-dir DIR

trains DGKD's plain CNNs on CIFAR-100 with 3 and 7 assistants, with and without
augmentation, each with teachers' outputs from the bank and with every teacher in every
step. Each run is a process of its own with empty caches; the two of a pair follow each
other. Seconds are the stages' training, evaluation and teacher passes; compilation,
which does not grow with the data, is given apart.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from kdjax.runtime.console import console
from kdjax.runtime.files import write_json

PATHS = {
    3: "plain10/plain8/plain6/plain4/plain2",
    7: "plain10/plain9/plain8/plain7/plain6/plain5/plain4/plain3/plain2",
}
"""By number of assistants: Tables 1 and 5 of the DGKD paper."""


def run(options: argparse.Namespace, assistants: int, augment: str, bank: bool) -> dict:
    """Returns what one run measured.

    Args:
        options: the command's.
        assistants: a key of `PATHS`.
        augment: 'paper' or 'none'.
        bank: whether teachers' outputs come from the bank.
    """
    arg = (
        f"cifar100-plain,path={PATHS[assistants]},augment={augment},seeds=1,"
        f"train_size={options.train_size},test_size={options.test_size},"
        f"epochs={options.epochs}"
    )
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(sys.executable, "-m", "kdjax.main", f"--config=configs/dgkd.py:{arg}"),
            f"--config.bank.use={bank}",
            f"--config.saving.evaluate_every={options.epochs}",
            f"--workdir={folder}/run",
        ]
        if options.data_dir:
            command.append(f"--config.data.dir={options.data_dir}")
        env = {**os.environ, "KDJAX_CACHE": f"{folder}/cache"}
        subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL)
        results = json.loads(Path(folder, "run", "results.json").read_text())
        found = [
            json.loads(path.read_text())
            for path in Path(folder, "run", "stages").glob("*/result.json")
        ]
    stages = results["stages"]
    return {
        "assistants": assistants,
        "augment": augment,
        "bank": bank,
        "passes": sum(sum(stage["teacher_passes"]) for stage in stages.values()),
        "seconds": sum(sum(stage["seconds"]) for stage in stages.values()),
        "compile_seconds": sum(result["compile_seconds"] for result in found),
        "accuracy": stages["S2"]["test_accuracy"]["final"][0],
        "devices": results["devices"],
        "versions": results["versions"],
    }


def pair(options: argparse.Namespace, assistants: int, augment: str) -> dict[str, Any]:
    """Returns one chain without and with the bank, and the ratio of their seconds."""
    without = run(options, assistants, augment, bank=False)
    with_bank = run(options, assistants, augment, bank=True)
    ratio = without["seconds"] / with_bank["seconds"]
    return {"without": without, "with": with_bank, "ratio": ratio}


def show(pairs: Sequence[dict[str, Any]]) -> None:
    """Prints a row for every pair."""
    table = Table(title="DGKD's chain on CIFAR-100: without the bank / with it")
    for name in (
        "assistants",
        "augmentation",
        "teacher passes",
        "seconds",
        "compiling",
    ):
        table.add_column(name, justify="right")
    table.add_column("faster", justify="right")
    table.add_column("student (%)", justify="right")

    def both(found: dict[str, Any], key: str, scale: float, form: str) -> str:
        return " / ".join(
            format(scale * found[which][key], form) for which in ("without", "with")
        )

    for found in pairs:
        table.add_row(
            str(found["with"]["assistants"]),
            found["with"]["augment"],
            both(found, "passes", 1, "d"),
            both(found, "seconds", 1, ".0f"),
            both(found, "compile_seconds", 1, ".0f"),
            f"{found['ratio']:.2f}",
            both(found, "accuracy", 100, ".2f"),
        )
    console.print(table)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the pairs and returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.chain", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--data-dir", help="of the TFDS data sets")
    parser.add_argument("--train-size", type=int, default=1000)
    parser.add_argument("--test-size", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument(
        "--assistants", type=int, nargs="+", choices=tuple(PATHS), default=tuple(PATHS)
    )
    parser.add_argument(
        "--augment", nargs="+", choices=("paper", "none"), default=("none", "paper")
    )
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    options = parser.parse_args(argv)
    pairs = []
    for assistants in options.assistants:
        for augment in options.augment:
            try:
                pairs.append(pair(options, assistants, augment))
            except subprocess.CalledProcessError as error:
                return error.returncode  # the run has said why
            if options.out:
                sizes = {
                    key: getattr(options, key)
                    for key in ("train_size", "test_size", "epochs")
                }
                write_json(options.out, {**sizes, "pairs": pairs})
    show(pairs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
