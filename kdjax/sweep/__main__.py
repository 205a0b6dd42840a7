"""The command `python -m kdjax.sweep`: searches a config's hyper-parameters.

Trials are judged on images held out of training, never on test images. They share a
working folder, so stages that no searched argument changes are trained once.
"""

import dataclasses
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from math import inf
from pathlib import Path
from typing import Any

from absl import flags

from kdjax.experiment.flags import parse_flags
from kdjax.runtime import command
from kdjax.runtime.errors import UserError
from kdjax.runtime.files import expand
from kdjax.runtime.signals import Interrupt

_RANGES = "lambda=0.3:0.95,temperature=2:10,survival=0.5:1"
_USAGE = f"""\
usage: python -m kdjax.sweep --config CONFIG.py[:ARG] --workdir DIR [--trials N]
           [--validation K] [--search NAME=LOW:HIGH,...] [--seed S] [--config.KEY=VALUE]

  --config      an experiment that takes the searched arguments: configs/dgkd.py:digits
  --workdir     the folder for stages and sweep.db; the same command continues there
  --trials      how many there shall be in all (20)
  --validation  images held out of training, to judge by (a tenth of the data set's)
  --search      arguments and their ranges; else what the config leaves open of
                {_RANGES}
  --seed        of the search (0)
"""


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What is searched.

    Attributes:
        path: the config's file.
        arg: its argument.
        overrides: flags that change every trial's config.
        workdir: of all trials.
        validation: the number of images held out of training.
        ranges: least and greatest value by argument.
        seed: of the search.
    """

    path: str
    arg: str
    overrides: tuple[str, ...]
    workdir: Path
    validation: int = 1
    ranges: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    seed: int = 0

    def line(self, params: Mapping[str, float]) -> str:
        """Returns the config with its argument, to which parameters are added."""
        words = [self.arg, *(f"{name}={params[name]:.3g}" for name in params)]
        return ":".join(filter(None, (self.path, ",".join(filter(None, words)))))

    def config(self, params: Mapping[str, float]) -> dict[str, Any]:
        """Returns a trial's config, as plain dictionaries.

        Raises:
            UserError: the config does not take these arguments.
        """
        config = f"--config={self.line(params)}"
        argv = ["kdjax", config, *self.overrides, f"--workdir={self.workdir}"]
        options = parse_flags(argv)
        if options is None or options.stages or options.dry_run:
            raise UserError("a sweep takes no --stages and no --dry-run; see --help")
        data = options.config["data"]
        if data.get("validation"):
            raise UserError("data.validation is what --validation sets; see --help")
        # test_size is meant for test images, not for the held-out ones in their place.
        changes = {"validation": self.validation, "test_size": None}
        return {**options.config, "data": {**data, **changes}}

    def command(self, params: Mapping[str, float]) -> str:
        """Returns the command that trains with parameters on all training images."""
        config = ("--config", self.line(params), *self.overrides)
        folder = ("--workdir", str(self.workdir / "best"))
        return shlex.join(("python", "-m", "kdjax.main", *config, *folder))

    def identity(self) -> dict[str, Any]:
        """Returns what must be the same for a study to continue."""
        ranges = (f"{name}={a:g}:{b:g}" for name, (a, b) in self.ranges.items())
        return {
            "config": shlex.join((self.line({}), *self.overrides)),
            "search": ",".join(ranges),
            "validation": self.validation,
            "seed": self.seed,
        }


def parse_ranges(text: str) -> dict[str, tuple[float, float]]:
    """Returns least and greatest values from 'lambda=0.3:0.95,temperature=2:10'.

    Raises:
        UserError: the text is not of this form, or a range is empty.
    """
    ranges = {}
    for word in text.split(","):
        name, _, bounds = word.partition("=")
        try:
            # To the digits of `line`: a trial's rounded value then stays in the range.
            low, high = (float(f"{float(bound):.3g}") for bound in bounds.split(":"))
        except ValueError:
            raise UserError(f"search: {word!r} is not NAME=LOW:HIGH") from None
        if not -inf < low < high < inf:
            raise UserError(f"search: {word!r}: {low:g} is not less than {high:g}")
        if name in ranges:
            raise UserError(f"search: {name!r} comes twice")
        ranges[name] = (low, high)
    return ranges


def open_ranges(sweep: Sweep, search: str | None) -> dict[str, tuple[float, float]]:
    """Returns the given ranges, or those default ranges that can be searched.

    Raises:
        UserError: the config fixes an argument, or does not take or use it.
    """
    fixed = [word.partition("=")[0] for word in sweep.arg.split(",") if "=" in word]
    ranges = {}
    for name, (low, high) in parse_ranges(search or _RANGES).items():
        try:
            if name in fixed:
                raise UserError(f"search: {sweep.line({})} fixes {name!r} already")
            # A method may not have the argument: only one has `survival`.
            if sweep.config({name: low}) == sweep.config({name: high}):
                raise UserError(f"search: {name!r} changes nothing in {sweep.line({})}")
        except UserError:
            if search:
                raise
        else:
            ranges[name] = (low, high)
    if not ranges:
        raise UserError(f"search: {sweep.line({})} leaves none of {_RANGES} open")
    return ranges


def parse(argv: Sequence[str]) -> tuple[Sweep, int] | None:
    """Returns the sweep and the number of trials, or None for --help.

    Raises:
        UserError: flags or values are invalid.
    """
    values = flags.FlagValues()
    values.set_gnu_getopt(True)  # an override's value may be a separate word
    for name in ("config", "workdir", "search"):
        flags.DEFINE_string(name, None, "", flag_values=values)
    for name, default, least in (("trials", 20, 1), ("validation", None, 1)):
        flags.DEFINE_integer(name, default, "", lower_bound=least, flag_values=values)
    flags.DEFINE_integer("seed", 0, "", lower_bound=0, flag_values=values)
    flags.DEFINE_bool("help", False, "", flag_values=values, short_name="h")
    try:
        overrides = values(list(argv), known_only=True)[1:]
    except flags.Error as error:
        raise UserError(str(error)) from error
    if values.help:
        return None
    for name in ("config", "workdir"):
        if not values[name].value:
            raise UserError(f"--{name} is missing; see --help")
    from kdjax.data import sources
    from kdjax.experiment.config import parse_config

    path, _, arg = values.config.partition(":")
    folder = expand(values.workdir)
    sweep = Sweep(path, arg, tuple(overrides), folder, seed=values.seed)
    data = parse_config(sweep.config({})).data
    whole = {**data, "train_size": None, "test_size": None, "validation": 0}
    validation = values.validation or sources.expected(**whole).train_size // 10
    ranges = open_ranges(sweep, values.search)
    sweep = dataclasses.replace(sweep, validation=validation, ranges=ranges)
    return sweep, values.trials


def search(sweep: Sweep, wanted: int, interrupt: Interrupt) -> None:
    """Runs trials until `wanted` are finished, and prints the best setting.

    Raises:
        UserError: a mistake that the user can correct.
        Interrupted: after a signal.
    """
    try:
        from kdjax.sweep import trials
    except ModuleNotFoundError as error:
        if error.name != "optuna":
            raise
        raise UserError("optuna is missing: pip install 'kdjax[sweep]'") from error
    from kdjax.experiment.config import parse_config
    from kdjax.experiment.run import Run

    # Errors in the ranges' ends, the data or the config come before the study is made.
    for end in (0, 1):
        params = {name: bounds[end] for name, bounds in sweep.ranges.items()}
        parsed = parse_config(sweep.config(params))
    Run(parsed, sweep.workdir, interrupt)
    *_, student = parsed.stages.values()
    warmup = student.epochs // 4
    path = sweep.workdir / "sweep.db"
    with trials.opened(path, sweep.identity(), warmup) as (study, storage):
        while len(trials.finished(study)) < wanted:
            interrupt.raise_if_set()
            trial = trials.next_trial(study, storage, sweep.ranges, sweep.seed)
            parsed = parse_config(sweep.config(trial.params))
            observe = trials.observer(trial, student)
            run = Run(parsed, sweep.workdir, interrupt, observe)
            try:
                stages = run.run()["stages"]
            except trials.PRUNED as reason:
                trials.tell(trial, reason)
                # Stored outputs of teachers that the pruned student will not read.
                shutil.rmtree(sweep.workdir / "bank", ignore_errors=True)
            else:
                trials.tell(trial, stages[student.name]["test_accuracy"]["median"])
        best = trials.show(study, sweep.validation)
        print("\nTrain the best setting on all training images with:")
        print(sweep.command({name: best[name] for name in sweep.ranges}))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a sweep and returns the exit code."""
    interrupt = Interrupt(at_once=True)

    def run() -> None:
        with interrupt.installed():
            _main(sys.argv if argv is None else argv, interrupt)

    return command.run(run)


def _main(argv: Sequence[str], interrupt: Interrupt) -> None:
    parsed = parse(argv)
    if parsed is None:
        print(_USAGE)
        return
    from kdjax.runtime import backend

    backend.use_compilation_cache()
    search(*parsed, interrupt)


if __name__ == "__main__":
    sys.exit(command.finish(main()))
