"""The CTKD paper's student from labels alone: the same recipe by kdjax and by PyTorch.

    pip install -e '.[benchmark]' && python -m benchmarks.baseline --data-dir DIR

trains WRN-16-1 on CIFAR-10, some seeds by `python -m kdjax.main` and as many by plain
PyTorch, and prints the test accuracy after the last epoch of each, the medians and
their difference. The two share the images, the data's constants and the recipe's
numbers, and no code that computes with them. What differs: the random numbers;
BatchNorm's running variance, which PyTorch keeps n/(n-1) times as large (n is 8,192 at
least); and that PyTorch, trained in bf16, evaluates in float32. Both evaluate once,
after the last epoch. Finished seeds stay in the working folder: a command that was
stopped continues with the next one.
"""

import argparse
import dataclasses
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import measure
from configs import common
from kdjax.data import sources, tfds_files
from kdjax.runtime import command
from kdjax.runtime.console import console
from kdjax.runtime.errors import UserError
from kdjax.runtime.files import check_folder, expand, write_json

NEAR = 0.3
"""Points between the medians up to which the two count as equal."""

SETTING = common.SETTINGS["cifar10"]
PROGRAMS = ("kdjax", "torch")
Figures = dict[str, Any]
"""Of a seed: its accuracy, speed and device."""


def call(words: Sequence[str]) -> None:
    """Runs a module in a process of its own; its errors are seen, its tables are not.

    Raises:
        subprocess.CalledProcessError: it has failed.
    """
    command_line = [sys.executable, "-m", *words]
    subprocess.run(command_line, check=True, stdout=subprocess.DEVNULL)


def ours(options: argparse.Namespace, seed: int) -> Figures:
    """Returns what kdjax reached with a seed; earlier seeds it finds in the folder."""
    arg = f"table1,seeds={seed + 1},epochs={options.epochs}"
    for name in ("train_size", "test_size"):
        if size := getattr(options, name):
            arg += f",{name}={size}"
    folder = options.workdir / "kdjax"
    words = [
        *("kdjax.main", f"--config=configs/ctkd_tables.py:{arg}", "--stages=baseline"),
        *(f"--config.precision={options.precision}", f"--workdir={folder}"),
        f"--config.saving.evaluate_every={options.epochs}",
    ]
    call([*words, *_data(options, "--config.data.dir")])
    results = json.loads((folder / "results.json").read_text())
    stage = results["stages"]["baseline"]
    return {
        "accuracy": stage["test_accuracy"]["final"][seed],
        "images_per_second": stage["images_per_second"][seed],
        "device": results["devices"][0],
    }


def theirs(options: argparse.Namespace, seed: int) -> Figures:
    """Returns what PyTorch reached with a seed; a finished one is not trained again."""
    folder = options.workdir / "torch" / _digest(settings(options))
    folder.mkdir(parents=True, exist_ok=True)
    out = folder / f"seed-{seed}.json"
    if not out.exists():
        words = [
            *("benchmarks.torch_training", "labels", f"--seed={seed}"),
            *(f"--epochs={options.epochs}", f"--out={out}", *options.form.flags),
        ]
        for name in ("train_size", "test_size"):
            if size := getattr(options, name):
                words.append(f"--{name.replace('_', '-')}={size}")
        call([*words, *_data(options, "--data-dir")])
    found = json.loads(out.read_text())["student"]
    return {
        "accuracy": found["accuracy"]["student"],
        "images_per_second": found["images"] / found["seconds"],
        "device": found["device"],
    }


def _data(options: argparse.Namespace, flag: str) -> list[str]:
    return [f"{flag}={options.data_dir}"] if options.data_dir else []


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """Returns all that decides the figures but the seed, as plain data."""
    names = ("epochs", "train_size", "test_size", "precision")
    recipe = dataclasses.replace(SETTING.recipe, epochs=options.epochs)
    return {
        **{name: getattr(options, name) for name in names},
        "student": SETTING.student,
        "recipe": recipe.settings(),
        "augment": dataclasses.asdict(SETTING.augment),
        **({"torch": options.form.name} if "torch" in options.programs else {}),
    }


def _digest(value: Mapping[str, Any]) -> str:
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def compare(seeds: Mapping[str, Sequence[Figures]]) -> dict[str, Any]:
    """Returns the medians of both programs, and their difference in points.

    Args:
        seeds: by program, the figures of its seeds.
    """
    medians = {
        name: measure.spread([100 * one["accuracy"] for one in found])["median"]
        for name, found in seeds.items()
        if found
    }
    if len(medians) < len(PROGRAMS):
        return {"medians": medians}
    difference = medians["kdjax"] - medians["torch"]
    # Accuracies are hundredths of a point: what rounding adds is none.
    near = abs(round(difference, 6)) <= NEAR
    return {"medians": medians, "difference": difference, "near": near}


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Trains what is missing and returns all figures; saves them after every seed."""
    seeds: dict[str, list[Figures]] = {name: [] for name in options.programs}
    train = {"kdjax": ours, "torch": theirs}
    figures: dict[str, Any] = {}
    for seed in range(options.seeds):
        for name in options.programs:
            found = train[name](options, seed)
            seeds[name].append(found)
            console.print(f"{name}, seed {seed}: {100 * found['accuracy']:.2f} %")
            figures = {**settings(options), "seeds": seeds, **compare(seeds)}
            if options.out:
                # Not `measure.save`: JAX would take the GPU's memory in this process.
                about = {"cores": os.cpu_count(), "versions": measure.versions()}
                write_json(options.out, {**about, **figures})
    return figures


def show(figures: Mapping[str, Any]) -> None:
    """Prints a row for every program, and how far the medians are apart."""
    rows = []
    for name, seeds in figures["seeds"].items():
        speeds = [one["images_per_second"] for one in seeds]
        rows.append(
            (
                figures["torch"] if name == "torch" else name,
                f"{figures['medians'][name]:.2f}",
                " ".join(f"{100 * one['accuracy']:.2f}" for one in seeds),
                f"{measure.spread(speeds)['median']:,.0f}",
            )
        )
    measure.show(
        f"{figures['student']} on CIFAR-10, labels alone: test accuracy after epoch "
        f"{figures['epochs']} (%)",
        ("program", "median", "each seed", "images/s"),
        rows,
    )
    if "difference" in figures:
        word = "within" if figures["near"] else "more than"
        console.print(
            f"kdjax's median minus PyTorch's: {figures['difference']:+.2f} points, "
            f"{word} {NEAR}"
        )


def form(options: argparse.Namespace) -> Any:
    """Returns PyTorch's form: the fastest here, where the options leave it open.

    Raises:
        UserError: PyTorch or a compiler is missing, or a graph is wanted on CPU.
    """
    if importlib.util.find_spec("torch") is None:
        raise UserError("torch is missing: pip install -e '.[benchmark]'")
    from benchmarks import torch_steps

    cuda = torch_steps.device().type == "cuda"
    compiled, graph = options.compile, options.graph
    if compiled is not False:
        # On CPU compiling gains a few per cent or nothing.
        reason = torch_steps.missing_compiler() if cuda or compiled else "not asked for"
        if compiled and reason:
            raise UserError(f"--compile does not work here: {reason}")
        compiled = not reason
    if graph and not cuda:
        raise UserError("--graph needs a GPU, and PyTorch finds none")
    return torch_steps.Form(
        options.layout,
        bf16=options.precision == "bf16",
        compiled=compiled,
        graph=cuda if graph is None else graph,
    )


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Returns the options, with `programs` and PyTorch's `form`.

    Raises:
        UserError: a value is out of range, or the data set is not there.
    """
    parser = measure.parser("baseline", __doc__)
    parser.add_argument("--data-dir", help="of the TFDS data sets")
    parser.add_argument("--workdir", type=Path, default=Path("runs/baseline"))
    parser.add_argument("--seeds", type=int, default=3, help="of each program")
    parser.add_argument("--epochs", type=int, default=SETTING.recipe.epochs)
    parser.add_argument("--train-size", type=int, help="all by default")
    parser.add_argument("--test-size", type=int, help="all by default")
    parser.add_argument("--precision", choices=("float32", "bf16"), default="float32")
    parser.add_argument("--only", choices=PROGRAMS, help="train this one alone")
    torch = parser.add_argument_group("PyTorch's form; by default the fastest here")
    torch.add_argument(
        "--layout", choices=("NCHW", "channels_last"), default="channels_last"
    )
    torch.add_argument("--compile", action=argparse.BooleanOptionalAction)
    torch.add_argument("--graph", action=argparse.BooleanOptionalAction)
    options = parser.parse_args(argv)
    for name in ("seeds", "epochs"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name}={getattr(options, name)} is not positive")
    sizes = {name: getattr(options, name) for name in ("train_size", "test_size")}
    source = sources.expected(SETTING.dataset, **sizes)
    if source.train_size < SETTING.recipe.batch_size:
        raise UserError(
            f"--train-size={source.train_size} is less than a batch of "
            f"{SETTING.recipe.batch_size}"
        )
    tfds_files.locate(SETTING.dataset, source.tfds_name, options.data_dir)
    options.workdir = expand(options.workdir)
    check_folder(options.workdir, "workdir")
    options.programs = [options.only] if options.only else list(PROGRAMS)
    options.form = form(options) if "torch" in options.programs else None
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Trains and compares; returns the exit status."""
    try:
        return command.run(lambda: show(run(parse(argv))), prefix="baseline: ")
    except subprocess.CalledProcessError as error:
        return error.returncode  # the program has printed why


if __name__ == "__main__":
    sys.exit(main())
