"""Commands with mistakes, thousands of them in one interpreter."""

import contextlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from tests.campaign.outcome import Outcome, Trials

ROOT = Path(__file__).parents[2]
_LIMIT = 60.0  # seconds of the processor for one command
_SMALL = "epochs=1,batch_size=16,train_size=64,test_size=20"
BASES = (
    ["--config=configs/ctkd.py:digits," + _SMALL, "--workdir=w", "--dry-run"],
    ["--config=configs/dgkd.py:digits," + _SMALL, "--workdir=w", "--dry-run"],
    [
        f"--config=configs/kd.py:kd,dataset=digits,teacher=plain4,student=plain2,{_SMALL}",
        "--workdir=w",
        "--dry-run",
    ],
    [
        f"--config=configs/kd.py:at/kd,dataset=digits,teacher=resnet14,student=resnet8,{_SMALL}",
        "--workdir=w",
        "--stages=teacher",
        "--dry-run",
    ],
    [
        "--config=tests/campaign/config.py:chain",
        "--workdir=w",
        "--config.recipe.epochs=2",
        "--config.stages.student.dgkd.survival=0.5",
        "--dry-run",
    ],
    ["--config=tests/campaign/config.py:ctkd", "--workdir=w", "--dry-run"],
    ["--config=configs/born_again.py:digits," + _SMALL, "--workdir=w", "--dry-run"],
    [
        f"--config=configs/own.py:data=nowhere,teacher=plain-4,student=plain-2,{_SMALL}",
        "--workdir=w",
        "--dry-run",
    ],
    ["--list"],
    ["--list", "configs/kd.py"],
)
KEYS = (
    *("recipe.epochs", "recipe.batch_size", "recipe.learning_rate", "recipe.decay"),
    *("recipe.milestones", "recipe.momentum", "recipe.weight_decay", "recipe.mixup"),
    *("recipe.optimizer", "recipe.label_smoothing", "recipe.ema", "recipe.accumulate"),
    *("data.name", "data.dir", "data.train_size", "data.test_size", "data.augment"),
    *("data.augment.crop", "data.augment.flip", "data.validation", "seeds"),
    *("precision", "saving.every_s", "saving.evaluate_every", "saving.best"),
    *("bank.use", "bank.max_gb", "stages.student.model", "stages.student.method"),
    *("stages.student.teachers", "stages.student.seeds", "stages.student.copy"),
    *("stages.expert.model", "stages.expert.recipe", "stages", "note", ""),
)
VALUES = (
    *("", "0", "-1", "1", "2", "nan", "inf", "-inf", "1e999", "1e-300", "0.5", "1e20"),
    *("99999999999999999999", "True", "None", "none", "[]", "()", "{}", "(1,2)", "[1"),
    *("wrn-16-1", "resnet-8", "plain-2", "plain-0", "vgg-8", "tiny", "kd", "ctkd"),
    *("dgkd", "supervised", "crd+kd", "kd+kd", "+", "expert", "('expert',)", "a" * 999),
    *("..", "/", "/dev/null", "/nowhere/x", "digits", "cifar10", "é", "\n", "%s", "'"),
    *("float32", "float64", "bfloat16", "float8", "a b", "\0x", "{0}", "[red]"),
)
FLAGS = (
    *("--stages", "--coordinator", "--processes", "--process", "--wait", "--help"),
    *("--nonsense", "-h", "--", "-", "--config", "--workdir", "--list", "--dry-run"),
    *("--flagfile", "--undefok", "--nodry-run", "--verbosity", "--v"),
)


def mutated(rng: random.Random) -> list[str]:
    """Returns the arguments of one command, with one to three mistakes."""
    words = list(rng.choice(BASES))
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3))):
        words = rng.choice(_MUTATIONS)(words, rng)
    # Only short ones: what would train is a dry run.
    if not {"--list", "--help", "-h", "--dry-run"} & set(words):
        words.append("--dry-run")
    return [word.replace("\0", "0") for word in words]  # no shell can pass it


def _override(words: list[str], rng: random.Random) -> list[str]:
    flag = f"--config.{rng.choice(KEYS)}"
    value = rng.choice(VALUES)
    return [*words, rng.choice((f"{flag}={value}", flag))]


def _characters(words: list[str], rng: random.Random) -> list[str]:
    number = rng.randrange(len(words))
    letters = list(words[number])
    place = rng.randrange(len(letters) + 1)
    cut = letters[place : place + rng.choice((0, 1, 1, 4))]
    new = rng.choice(("", "", "=", ":", ",", "-", ".", "/", "x", "0", "+", " ", "é"))
    letters[place : place + len(cut)] = new
    return [*words[:number], "".join(letters), *words[number + 1 :]]


def _argument(words: list[str], rng: random.Random) -> list[str]:
    """Changes one value behind a config's colon."""
    found = [n for n, word in enumerate(words) if ":" in word]
    if not found:
        return _override(words, rng)
    path, _, arg = words[found[0]].partition(":")
    parts = arg.split(",")
    number = rng.randrange(len(parts))
    key = parts[number].partition("=")[0]
    value = rng.choice(VALUES)
    parts[number] = rng.choice((f"{key}={value}", value, f"{value}=1", ""))
    words = list(words)
    words[found[0]] = f"{path}:{','.join(parts)}"
    return words


def _drop(words: list[str], rng: random.Random) -> list[str]:
    number = rng.randrange(len(words))
    return words[:number] + words[number + 1 :] or ["--list"]


def _double(words: list[str], rng: random.Random) -> list[str]:
    return [*words, rng.choice(words)]


def _flag(words: list[str], rng: random.Random) -> list[str]:
    flag, value = rng.choice(FLAGS), rng.choice(VALUES)
    place = rng.randrange(len(words) + 1)
    new = rng.choice(([flag], [f"{flag}={value}"], [flag, value]))
    return [*words[:place], *new, *words[place:]]


Mutation = Callable[[list[str], random.Random], list[str]]
_MUTATIONS: tuple[Mutation, ...] = (
    *(_override, _override, _override, _argument, _argument),
    *(_characters, _characters, _drop, _double, _flag),
)


class _TooLongError(BaseException):
    """A command that did not end in time."""


def one(args: list[str]) -> dict[str, object]:
    """Returns how a command ends in this process: code, and what stderr had.

    Whatever is to be trained is checked and not trained.
    """
    from kdjax.experiment.run import Run
    from kdjax.main import main

    def late(*_: object) -> None:
        raise _TooLongError

    out, err = io.StringIO(), io.StringIO()
    code: object
    signal.signal(signal.SIGVTALRM, late)
    signal.setitimer(signal.ITIMER_VIRTUAL, _LIMIT)
    untrained = mock.patch.object(Run, "run", return_value={})
    with (
        untrained,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            code = main(["kdjax", *args])
        except SystemExit as end:
            code = end.code
        except BaseException:
            traceback.print_exc()
            code = 1
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    return {"args": args, "code": code, "err": err.getvalue()[-2000:]}


def outcome_of(ended: dict[str, object]) -> Outcome:
    """Returns the outcome of a command: done, told in one short line, or neither."""
    code, err = ended["code"], str(ended["err"])
    if code == 0 and not err:
        return Outcome.EQUAL
    line = err.startswith("kdjax: ") and err.count("\n") == 1 and len(err) <= 308
    if code == 2 and line:
        return Outcome.TOLD
    return Outcome.TRACEBACK if "Traceback" in err or code != 2 else Outcome.WRONG


def trials(number: int, seed: int, folder: Path, found: Trials) -> None:
    """Tries a number of commands in a process of their own."""
    if not number:
        return
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    env["KDJAX_CACHE"] = str(folder / "cache")
    done = 0
    while done < number:
        command = [sys.executable, "-m", "tests.campaign.fuzz"]
        process = subprocess.Popen(
            [*command, *map(str, (done, number, seed, folder / "fuzz"))],
            cwd=ROOT,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert process.stdout
        for line in process.stdout:
            ended = json.loads(line)
            found.add("fuzzed commands", outcome_of(ended), **ended)
            done += 1
        if process.wait():  # the interpreter itself ended: by the next command
            about = {"number": done, "code": process.returncode, "err": ""}
            found.add("fuzzed commands", Outcome.TRACEBACK, **about)
            done += 1


def _serve(first: int, number: int, seed: int, folder: Path) -> None:
    """Runs the commands from one on, and prints how each ends."""
    lines = os.fdopen(os.dup(1), "w")
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("configs", "tests"):
        if not (folder / name).exists():
            (folder / name).symlink_to(ROOT / name)
    os.chdir(folder)
    for trial in range(first, number):
        ended = one(mutated(random.Random(f"{seed} {trial}")))
        print(json.dumps(ended), file=lines, flush=True)


if __name__ == "__main__":
    _first, _number, _seed = map(int, sys.argv[1:4])
    _serve(_first, _number, _seed, Path(sys.argv[4]))
