"""Whole experiments: images per second with data, augmentation and evaluation.

    pip install -e '.[benchmark]' && python -m benchmarks.epochs --data-dir DIR

runs the CTKD paper's experiment on CIFAR-10, the supervised expert and then CTKD's
student with its scratch teacher, by `python -m kdjax.main` and by PyTorch. PyTorch has
its images in the device's memory and varies them there, as kdjax does; it runs in every
form of `torch_steps.forms`, on a GPU compiled and in CUDA graphs. kdjax runs also with
the scratch teacher's logits replayed from the expert's training. Every run is a process
of its own; those of a round follow each other. What is compiled, once per stage, is in
nobody's seconds; kdjax's compilation is given apart.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import measure
from kdjax.runtime.console import console
from kdjax.runtime.errors import UserError

OURS = {"kdjax": "joint", "replay": "replay"}  # CTKD's scratch teacher
STAGES = {"expert": "supervised", "student": "ctkd"}
Rates = dict[str, dict[str, float]]


def ours(options: argparse.Namespace, scratch: str, cache: Path) -> Rates:
    """Returns kdjax's images per second, accuracy and compilation by stage."""
    arg = f"cifar10,scratch={scratch},epochs={options.epochs},seeds=1"
    arg += _sizes(options, ",{}={}")
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(sys.executable, "-m", "kdjax.main", f"--config=configs/ctkd.py:{arg}"),
            *(f"--config.precision={options.precision}", f"--workdir={folder}"),
        ]
        if options.data_dir:
            command.append(f"--config.data.dir={options.data_dir}")
        env = {**os.environ, "KDJAX_CACHE": str(cache)}
        subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL)
        found = {
            path.parent.name.rpartition("-")[0]: json.loads(path.read_text())
            for path in Path(folder, "stages").glob("*/result.json")
        }
    batch = _batch()
    return {
        stage: {
            "images_per_second": found[stage]["steps"]
            * batch
            / found[stage]["seconds"],
            "accuracy": found[stage]["networks"]["student"]["test_accuracy"],
            "compile_seconds": found[stage]["compile_seconds"],
        }
        for stage in STAGES
    }


def theirs(options: argparse.Namespace, flags: Sequence[str], cache: Path) -> Rates:
    """Returns PyTorch's images per second and accuracy by stage.

    Args:
        options: the command's.
        flags: a form's.
        cache: folder of decoded images.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "stages.json")
        command = [
            *(sys.executable, "-m", "benchmarks.torch_training", "ctkd"),
            *(f"--epochs={options.epochs}", f"--out={out}", *flags),
            *_sizes(options, " --{}={}").replace("_", "-").split(),
        ]
        if options.data_dir:
            command.append(f"--data-dir={options.data_dir}")
        env = {**os.environ, "KDJAX_CACHE": str(cache)}
        subprocess.run(command, env=env, check=True)
        found = json.loads(out.read_text())
    return {
        stage: {
            "images_per_second": found[stage]["images"] / found[stage]["seconds"],
            "accuracy": found[stage]["accuracy"]["student"],
        }
        for stage in STAGES
    }


def _about(options: argparse.Namespace) -> dict[str, Any]:
    names = "train_size", "test_size", "epochs", "precision"
    return {key: getattr(options, key) for key in names}


def _sizes(options: argparse.Namespace, form: str) -> str:
    sizes = {"train_size": options.train_size, "test_size": options.test_size}
    return "".join(form.format(key, size) for key, size in sizes.items() if size)


def _batch() -> int:
    from configs import common

    return common.SETTINGS["cifar10"].recipe.batch_size


def rivals(precision: str) -> dict[str, list[str]]:
    """Returns PyTorch's forms in a precision: their flags by name."""
    from benchmarks import torch_steps

    bf16 = precision == "bf16"
    forms = torch_steps.forms(torch_steps.device().type == "cuda")
    return {form.name: form.flags for form in forms if form.bf16 == bf16}


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Returns the figures of all rounds.

    After every run `options.out` has what was measured so far, so that a benchmark that
    is stopped, as on a machine that is lent for minutes, leaves what it has.
    """
    runs: dict[str, list[Rates]] = {}
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)  # decoded images and programs, for all rounds
        commands: dict[str, Callable[[], Rates]] = {}
        for name, scratch in OURS.items():
            commands[name] = lambda scratch=scratch: ours(options, scratch, cache)
        for name, flags in rivals(options.precision).items():
            commands[name] = lambda flags=flags: theirs(options, flags, cache)

        def timed(name: str) -> Callable[[], float]:
            def turn() -> float:
                begin = time.perf_counter()
                runs.setdefault(name, []).append(commands[name]())
                seconds = time.perf_counter() - begin
                measure.save(options.out, {**_about(options), "runs_so_far": runs})
                return seconds

            return turn

        found = measure.interleave(
            {name: timed(name) for name in commands}, options.rounds, options.busy
        )
    seconds = found.pop("values")
    kept = {name: [runs[name][i] for i in found["kept"]] for name in runs}
    stages = {}
    for stage, method in STAGES.items():

        def values(name: str, key: str, stage: str = stage) -> list[float]:
            return [rates[stage][key] for rates in kept[name]]

        rates = {name: values(name, "images_per_second") for name in kept}
        stages[method] = {
            "images_per_second": {k: measure.spread(v) for k, v in rates.items()},
            "ratio": {
                ours: {
                    name: measure.quotient(rates[ours], rates[name])
                    for name in rates
                    if name != ours
                }
                for ours in OURS
            },
            "accuracy": {name: values(name, "accuracy") for name in kept},
            "compile_seconds": {ours: values(ours, "compile_seconds") for ours in OURS},
        }
    return {"stages": stages, "process_seconds": seconds, **found}


def show(found: dict[str, Any]) -> None:
    """Prints a table for every stage, with a row for every program."""
    over = [f"{ours} over it" for ours in OURS]
    header = ("program", "images/s", *over, "test (%)", "compiling")
    for method, stage in found["stages"].items():
        rows = []
        for name, rates in stage["images_per_second"].items():
            accuracy = measure.spread(stage["accuracy"][name])["median"]
            compiling = stage["compile_seconds"].get(name)
            ratios = (stage["ratio"][ours].get(name) for ours in OURS)
            rows.append(
                (
                    name,
                    measure.figure(rates, ",.0f"),
                    *(measure.figure(ratio) if ratio else "" for ratio in ratios),
                    f"{100 * accuracy:.1f}",
                    f"{measure.spread(compiling)['median']:.0f}" if compiling else "",
                )
            )
        measure.show(
            f"Whole epochs on CIFAR-10, {method}: images/s, median [quartiles]",
            header,
            rows,
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and returns the exit status."""
    parser = measure.parser("epochs", __doc__, rounds=3)
    parser.add_argument("--data-dir", help="of the TFDS data sets")
    parser.add_argument("--train-size", type=int, help="all by default")
    parser.add_argument("--test-size", type=int, help="all by default")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument(
        "--precision",
        choices=("float32", "bf16"),
        default="float32",
        help="of both; PyTorch's bf16 is measured on a GPU alone",
    )
    options = parser.parse_args(argv)
    try:
        found = run(options)
    except subprocess.CalledProcessError as error:
        return error.returncode  # the run has said why
    except UserError as error:
        console.print(f"epochs: {error}", markup=False)
        return 1
    measure.save(options.out, {**_about(options), **found})
    show(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
