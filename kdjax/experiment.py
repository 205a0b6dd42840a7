"""An experiment in a working folder: runs what is missing, writes the results."""

from pathlib import Path
from typing import Any

import jax

from kdjax import parallel
from kdjax.analysis.report import draw_curves, print_table
from kdjax.data import resident, sources
from kdjax.data.stream import Stream
from kdjax.errors import UserError
from kdjax.files import write_json
from kdjax.graph import DTYPES, Experiment, Stage
from kdjax.interrupt import Interrupt
from kdjax.program import Program
from kdjax.progress import console
from kdjax.results import summarise
from kdjax.step import Step
from kdjax.store import Store
from kdjax.train import Training


class Run:
    """An experiment in a working folder."""

    def __init__(self, experiment: Experiment, workdir: Path, interrupt: Interrupt):
        """Loads the data.

        Args:
            experiment: what to run.
            workdir: where stages and results go; made if absent.
            interrupt: asked between steps.

        Raises:
            UserError: data that is not there, or a folder that cannot be written.
        """
        if experiment.precision == "float64":
            jax.config.update("jax_enable_x64", True)
        self._experiment, self._workdir = experiment, workdir
        self._interrupt = interrupt
        dataset = sources.load(**experiment.data)
        self._store = Store(experiment, dataset, workdir)
        self._mesh = parallel.make_mesh()
        self._data = resident.place(dataset, self._mesh)

    def run(self) -> dict[str, Any]:
        """Trains what is missing and returns the results, also in `results.json`."""
        stages = self._experiment.stages
        # All of them before the first is trained: what does not fit is known at once.
        programs = {
            name: self._program(stage)
            for name, stage in stages.items()
            if any(not self._store.result(name, seed) for seed in range(stage.seeds))
        }
        results = {}
        for name, stage in stages.items():
            results[name] = [
                self._replica(name, seed, programs.get(name))
                for seed in range(stage.seeds)
            ]
        summary = summarise(self._experiment, results)
        write_json(self._workdir / "results.json", summary)
        draw_curves(results, self._workdir / "curves.png")
        print_table(summary["stages"])
        return summary

    def _program(self, stage: Stage) -> Program:
        """Returns the programs of a stage; raises UserError where parts do not fit."""
        dataset, recipe = self._data.dataset, stage.recipe
        dtype = DTYPES[self._experiment.precision]
        stages = self._experiment.stages
        try:
            stream = Stream(
                size=len(dataset.train.labels),
                batch_size=recipe.batch_size,
                augment=self._experiment.augment,
                mean=dataset.mean,
                std=dataset.std,
                dtype=dtype,
            )
            step = Step(
                method=stage.method,
                student=stage.model,
                teachers={teacher: stages[teacher].model for teacher in stage.teachers},
                num_classes=dataset.num_classes,
                image_shape=self._data.image_shape,
                tx=recipe.optimiser(recipe.epochs * stream.steps),
                copy=stage.copy,
                dtype=dtype,
            )
            return Program(step, self._data, stream, self._mesh)
        except UserError as error:
            raise UserError(f"stage {stage.name!r}: {error}") from error

    def _replica(self, name: str, seed: int, program: Program | None) -> dict[str, Any]:
        """Returns a replica's result, after training it if there is none yet."""
        store, stage = self._store, self._experiment.stages[name]
        label, fingerprint = f"{name} seed {seed}", store.fingerprint(name, seed)
        if result := store.result(name, seed):
            console.print(f"{label}  found in {store.folder(name, seed)}", markup=False)
            return result
        self._interrupt.raise_if_set()
        assert program is not None
        frozen = store.teachers(name, seed)
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
            )
            result = {"fingerprint": fingerprint, "seed": seed, **training.run()}
            result["devices"] = [device.device_kind for device in jax.devices()]
            store.finish(name, seed, result)
            training.discard_checkpoints()
        return result
