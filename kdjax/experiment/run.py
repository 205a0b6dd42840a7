"""An experiment in a working folder: runs what is missing, writes the results."""

import contextlib
import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from kdjax.data import device_feed
from kdjax.data.device_feed import DeviceDataset
from kdjax.data.sources import Dataset
from kdjax.data.streaming.dataset import Streamed
from kdjax.experiment.bank import Bank
from kdjax.experiment.bank_plan import why_uncacheable
from kdjax.experiment.build import make_feed, naming, open_data
from kdjax.experiment.config import Experiment, ancestry
from kdjax.experiment.given_contents import with_start
from kdjax.experiment.given_stages import check_given, with_images
from kdjax.experiment.load_targets import TargetLoader
from kdjax.experiment.predictions import is_table
from kdjax.experiment.report import keep_measured, plot_curves, print_table, summarise
from kdjax.experiment.stage import Stage
from kdjax.experiment.stage_programs import StagePrograms
from kdjax.experiment.store import Store
from kdjax.models import Variables
from kdjax.runtime import disk, parallel
from kdjax.runtime.console import console
from kdjax.runtime.files import check_folder, write_json
from kdjax.runtime.signals import Interrupt
from kdjax.train.loop import Training
from kdjax.train.metrics import Record
from kdjax.train.replica import Replica, resume_group
from kdjax.train.saved_network import save_student

Observer = Callable[[str, int, Record], None]
"""Called with stage, seed and record of every epoch; what it raises ends the run."""


class Run:
    """An experiment in a working folder."""

    def __init__(
        self,
        experiment: Experiment,
        workdir: Path,
        interrupt: Interrupt,
        observe: Observer = lambda stage, seed, record: None,
    ):
        """Loads the data.

        Args:
            experiment: what to run.
            workdir: where stages and results go; made if absent.
            interrupt: asked between steps.
            observe: called with every epoch's record.

        Raises:
            UserError: data that is not there, a folder that cannot be written, or
                parts that do not fit.
        """
        check_folder(workdir, "workdir")
        if experiment.precision == "float64":
            jax.config.update("jax_enable_x64", True)
        self._workdir = workdir
        self._interrupt, self._observe = interrupt, observe
        dataset = open_data(experiment)
        self._experiment = experiment = with_images(experiment, dataset)
        self._classes = dataset.classes
        self._store = Store(experiment, dataset, workdir)
        self._store.make()
        self._data: DeviceDataset | Streamed
        if isinstance(dataset, Dataset):
            self._data = device_feed.place(dataset, parallel.make_mesh())
        else:
            self._data = dataset
        self._programs = StagePrograms(experiment, dataset, self._data, self._store)
        self._plan = self._programs.plan
        self._bank = Bank(workdir / "bank", self._plan, self._store)

    def run(self, only: Collection[str] = ()) -> dict[str, Any]:
        """Trains what is missing and returns the results, also in `results.json`.

        Args:
            only: stages to which the run is confined, with all that teach them; empty
                means all.

        Raises:
            UserError: an unknown stage, or a mistake that shows while training.
            OSError: what cannot be written, by folder or file.
            Interrupted: after a signal.
        """
        self._interrupt.remember()
        with disk.writing_to(self._workdir):
            return self._run(ancestry(self._experiment, only))

    def _run(self, stages: Mapping[str, Stage]) -> dict[str, Any]:
        """Trains what is missing of some stages, and returns the results."""
        show_note(self._experiment)
        for teacher in self._plan.too_large:
            console.print(
                f"bank: {teacher}'s outputs do not fit into bank.max_gb="
                f"{self._experiment.bank.max_gb:g}: computed in the step",
                markup=False,
            )
        for name in self._plan.uncacheable:
            reason = why_uncacheable(self._experiment.stages[name])
            console.print(f"bank: {name} {reason}", markup=False)
        self._describe_tables(stages)
        self._programs.check(stages, self._interrupt)
        self._announce(stages)
        results: dict[str, list[dict[str, Any]]] = {name: [] for name in stages}
        # Round by round through all stages: a seed's bank entries are deleted before
        # the next seeds fill theirs.
        most = max(stage.seeds for stage in stages.values())
        for seeds in rounds(most, self._programs.devices):
            for name, stage in stages.items():
                own = [seed for seed in seeds if seed < stage.seeds]
                results[name] += self._replicas(name, own)
        sizes = {key: self._store.data[key] for key in ("train_size", "test_size")}
        summary = summarise(self._experiment, results, self._classes, sizes)
        if parallel.is_first():
            keep_measured(summary, self._workdir / "results.json")
            write_json(self._workdir / "results.json", summary)
            plot_curves(results, self._workdir / "curves.png")
        validation = bool(self._experiment.data.get("validation"))
        print_table(summary["stages"], validation)
        return summary

    def _announce(self, stages: Mapping[str, Stage]) -> None:
        """Writes what this run is about to do, for those who watch it."""
        if not parallel.is_first():
            return
        planned = {
            name: {
                "method": stage.method_name,
                "model": stage.model,
                "teachers": list(stage.teachers),
                "epochs": stage.epochs,
                "fingerprint": [
                    self._store.fingerprint(name, seed) for seed in range(stage.seeds)
                ],
            }
            for name, stage in stages.items()
        }
        write_json(self._workdir / "experiment.json", {"stages": planned})

    def _replicas(self, name: str, seeds: Sequence[int]) -> list[dict[str, Any]]:
        """Returns the results of some replicas, after training what is missing."""
        store = self._store
        missing = self._programs.missing(name, seeds)
        for seed in seeds:
            for package, (old, new) in store.other_versions(name, seed).items():
                console.print(
                    f"{name} seed {seed}  was begun by {package} {old}; this is {new}, "
                    "whose results may differ",
                    markup=False,
                )
            if seed not in missing:
                folder = store.folder(name, seed)
                console.print(f"{name} seed {seed}  found in {folder}", markup=False)
        while missing:
            self._interrupt.raise_if_set()
            if self._experiment.stages[name].given:
                self._check_given(name)
            else:
                self._train(name, missing)
            missing = self._programs.missing(name, missing)
        return [store.result(name, seed) or {} for seed in seeds]

    def _describe_tables(self, stages: Mapping[str, Stage]) -> None:
        """Says what predictions of the plain images mean where images are varied."""
        tables = [name for name in self._store.givens.tables if name in stages]
        if tables and self._experiment.augment.varies:
            console.print(
                f"{', '.join(tables)}: the predictions are of the plain images; the "
                "students see varied ones",
                markup=False,
            )

    def _check_given(self, name: str) -> None:
        """Evaluates a given network, once, and counts it as finished."""
        stage, store = self._experiment.stages[name], self._store
        feed = make_feed(
            self._experiment, stage, self._data, parallel.make_mesh(replicas=1)
        )
        with store.open(name, 0) as folder, naming(stage):
            result = check_given(stage, self._programs.steps[name], feed, store.givens)
            if parallel.is_first() and not is_table(stage.given):
                save_student(folder, stage.model, store.givens.variables(name))
            result["fingerprint"] = store.fingerprint(name, 0)
            store.finish(name, 0, result)

    def _train(self, name: str, seeds: Sequence[int]) -> None:
        """Trains the first of some replicas: as many as can run side by side."""
        store, stage = self._store, self._experiment.stages[name]
        saving = self._experiment.saving
        passes = self._bank.passes
        with contextlib.ExitStack() as held:
            replicas = []
            for seed in seeds:
                replica = Replica(
                    label=f"{name} seed {seed}",
                    seed=seed,
                    folder=held.enter_context(store.open(name, seed)),
                    fingerprint=store.fingerprint(name, seed),
                    frozen=store.teachers(name, seed),
                    start=functools.partial(self._start, name),
                    observe=functools.partial(self._observe, name, seed),
                    keep_best=saving.best,
                )
                replicas.append(held.enter_context(contextlib.closing(replica)))
            # Replicas that were stopped at another step are trained in the next round.
            step, group = resume_group(replicas)
            group = group[: self._programs.width(len(group))]
            program = self._programs.program(stage, len(group))
            training = Training(
                program,
                stage.recipes,
                saving,
                group,
                step=step,
                interrupt=self._interrupt,
                load_targets=TargetLoader(
                    self._bank,
                    store,
                    name,
                    program,
                    group,
                    self._interrupt,
                    store.givens.tables,
                ),
            )
            results = training.run()
            # Over the training images: for the bank, and inside the steps.
            in_steps = len(stage.teachers) - len(program.banked)
            in_bank = (self._bank.passes - passes) / len(group)
            for replica, result in zip(group, results, strict=True):
                result |= {
                    "fingerprint": replica.fingerprint,
                    "seed": replica.seed,
                    "devices": [device.device_kind for device in jax.devices()],
                    "side_by_side": len(group),
                    "teacher_passes": in_bank + in_steps * stage.epochs,
                }
                store.finish(name, replica.seed, result)
                replica.discard_checkpoints()
                self._bank.finished(name, replica.seed)

    def _start(self, name: str, own: Variables) -> Variables:
        """Returns the student's first variables: its own, or given ones."""
        start = self._store.givens.start(name)
        return own if start is None else with_start(name, own, start)


def show_note(experiment: Experiment) -> None:
    """Prints what a config says to people, such as the recipe that was chosen."""
    if note := experiment.config.get("note"):
        console.print(note, markup=False)


def rounds(seeds: int, devices: int) -> Iterator[range]:
    """Yields the seeds that are trained side by side, on all devices."""
    first = 0
    while first < seeds:
        width = parallel.side_by_side(seeds - first, devices)
        yield range(first, first + width)
        first += width
