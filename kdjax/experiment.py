"""An experiment in a working folder: runs what is missing, writes the results."""

import contextlib
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import jax

from kdjax import parallel
from kdjax.analysis.report import draw_curves, print_table
from kdjax.bank import Bank
from kdjax.data import resident, sources
from kdjax.data.sources import Dataset, Source
from kdjax.data.stream import Stream
from kdjax.errors import UserError
from kdjax.files import write_json
from kdjax.graph import DTYPES, Experiment, Stage, ancestry
from kdjax.interrupt import Interrupt
from kdjax.metrics import Record
from kdjax.plan import plan
from kdjax.program import Program
from kdjax.progress import console
from kdjax.results import summarise
from kdjax.step import Step
from kdjax.store import Store
from kdjax.train import Training

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
        if experiment.precision == "float64":
            jax.config.update("jax_enable_x64", True)
        self._experiment, self._workdir = experiment, workdir
        self._interrupt, self._observe = interrupt, observe
        dataset = sources.load(**experiment.data)
        self._store = Store(experiment, dataset, workdir)
        self._store.make()
        self._mesh = parallel.make_mesh()
        self._data = resident.place(dataset, self._mesh)
        self._steps = make_steps(experiment, dataset)
        size = len(dataset.train.labels)
        self._plan = plan(experiment, self._steps, size)
        self._bank = Bank(workdir / "bank", self._plan, self._store, size, interrupt)

    def run(self, only: Collection[str] = ()) -> dict[str, Any]:
        """Trains what is missing and returns the results, also in `results.json`.

        Args:
            only: stages to which the run is confined, with all that teach them; empty
                means all.

        Raises:
            UserError: an unknown stage, or what a user can mend while training.
            Interrupted: after a signal.
        """
        stages = ancestry(self._experiment, only)
        for teacher in self._plan.too_large:
            console.print(
                f"bank: {teacher}'s outputs do not fit into bank.max_gb="
                f"{self._experiment.bank.max_gb:g}: computed in the step",
                markup=False,
            )
        # All of them before the first is trained: what does not fit is known at once.
        programs = {
            name: self._program(stage)
            for name, stage in stages.items()
            if any(not self._store.result(name, seed) for seed in range(stage.seeds))
        }
        results: dict[str, list[dict[str, Any]]] = {name: [] for name in stages}
        # Seed by seed: what the bank holds for one is gone before the next.
        for seed in range(max(stage.seeds for stage in stages.values())):
            for name, stage in stages.items():
                if seed < stage.seeds:
                    result = self._replica(name, seed, programs.get(name))
                    results[name].append(result)
        summary = summarise(self._experiment, results)
        write_json(self._workdir / "results.json", summary)
        draw_curves(results, self._workdir / "curves.png")
        validation = bool(self._experiment.data.get("validation"))
        print_table(summary["stages"], validation)
        return summary

    def _program(self, stage: Stage) -> Program:
        """Returns the programs of a stage; raises UserError where parts do not fit."""
        dataset = self._data.dataset
        with naming(stage):
            stream = Stream(
                size=len(dataset.train.labels),
                batch_size=stage.recipe.batch_size,
                augment=self._experiment.augment,
                mean=dataset.mean,
                std=dataset.std,
                dtype=DTYPES[self._experiment.precision],
            )
            banked = self._plan.banked[stage.name]
            step = self._steps[stage.name]
            return Program(step, self._data, stream, self._mesh, banked)

    def _replica(self, name: str, seed: int, program: Program | None) -> dict[str, Any]:
        """Returns a replica's result, after training it if there is none yet."""
        store, stage = self._store, self._experiment.stages[name]
        label, fingerprint = f"{name} seed {seed}", store.fingerprint(name, seed)
        if result := store.result(name, seed):
            console.print(f"{label}  found in {store.folder(name, seed)}", markup=False)
            return result
        self._interrupt.raise_if_set()
        assert program is not None
        frozen, passes = store.teachers(name, seed), self._bank.passes
        with store.open(name, seed) as folder:
            training = Training(
                program,
                stage.recipe,
                self._experiment.saving,
                label=label,
                seed=seed,
                frozen=frozen,
                folder=folder,
                fingerprint=fingerprint,
                interrupt=self._interrupt,
                tables=self._bank.reader(name, seed, program, frozen),
                observe=lambda record: self._observe(name, seed, record),
            )
            result = {"fingerprint": fingerprint, "seed": seed, **training.run()}
            result["devices"] = [device.device_kind for device in jax.devices()]
            # Over the training images: for the bank, and inside the steps.
            in_steps = len(stage.teachers) - len(program.banked)
            passes = self._bank.passes - passes + in_steps * stage.recipe.epochs
            result["teacher_passes"] = passes
            store.finish(name, seed, result)
            training.discard_checkpoints()
        self._bank.finished(name, seed)
        return result


@contextlib.contextmanager
def naming(stage: Stage) -> Iterator[None]:
    """Puts the stage's name before what is wrong with it."""
    try:
        yield
    except UserError as error:
        raise UserError(f"stage {stage.name!r}: {error}") from error


def make_steps(experiment: Experiment, images: Dataset | Source) -> dict[str, Step]:
    """Returns the step of every stage.

    Args:
        experiment: the graph of stages.
        images: the data set, or what is known of it beforehand.

    Raises:
        UserError: a network that does not fit the images.
    """
    steps = {}
    for name, stage in experiment.stages.items():
        with naming(stage):
            steps[name] = step = Step(
                method=stage.method,
                student=stage.model,
                teachers={
                    teacher: experiment.stages[teacher].model
                    for teacher in stage.teachers
                },
                num_classes=images.num_classes,
                image_shape=images.image_shape,
                tx=stage.recipe.optimiser(
                    stage.recipe.epochs * (images.train_size // stage.recipe.batch_size)
                ),
                copy=stage.copy,
                dtype=DTYPES[experiment.precision],
            )
            step.shapes()
    return steps
