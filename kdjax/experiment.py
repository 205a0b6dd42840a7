"""From a config to a graph of stages, and from there to results."""

import dataclasses
import datetime
import hashlib
import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import kdjax
from kdjax import methods, models, parallel
from kdjax.analysis.report import draw_curves, print_table
from kdjax.data import resident, sources
from kdjax.data.augment import Augment
from kdjax.data.stream import Stream
from kdjax.errors import UserError, unknown
from kdjax.fields import build
from kdjax.files import write_json
from kdjax.interrupt import Interrupt
from kdjax.methods import Method
from kdjax.models import Variables
from kdjax.program import Program
from kdjax.progress import console
from kdjax.recipe import Recipe
from kdjax.step import Step
from kdjax.train import Saving, Training, load_network

DTYPES = {"float32": jnp.float32, "float64": jnp.float64}


@dataclasses.dataclass(frozen=True)
class Stage:
    """One training run that ends in one named network, for every seed.

    Attributes:
        name: for people and for the stages it teaches.
        model: the network's name.
        method: how it learns.
        teachers: the stages that teach it.
        recipe: how it is optimised.
        seeds: number of replicas.
        copy: tells its start apart from that of an equal network.
    """

    name: str
    model: str
    method: Method
    method_name: str
    teachers: tuple[str, ...]
    recipe: Recipe
    seeds: int
    copy: int


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A data set and a graph of stages, every teacher before whom it teaches.

    `config` is what it was made from, for the record.
    """

    config: Mapping[str, Any]
    data: Mapping[str, Any]
    augment: Augment
    stages: Mapping[str, Stage]
    precision: str
    saving: Saving


_CONFIG = ("data", "recipe", "seeds", "precision", "saving", "stages")
_DATA = ("name", "dir", "train_size", "test_size", "augment")
_STAGE = ("model", "method", "teachers", "recipe", "seeds", "copy")


def _expect(
    kind: str,
    settings: Mapping[str, Any],
    known: tuple[str, ...],
    required: tuple[str, ...],
) -> None:
    for key in settings:
        if key not in known:
            raise unknown(kind, key, known)
    for key in required:
        if key not in settings:
            raise UserError(f"{kind} {key!r} is missing")


def parse(config: Mapping[str, Any]) -> Experiment:
    """Returns the experiment that a config describes.

    Args:
        config: plain nested dictionaries: 'data', 'recipe', 'seeds', 'precision',
            'saving' and 'stages', as `configs/common.py` makes them.

    Raises:
        UserError: an unknown name or a value out of range.
    """
    required = ("data", "recipe", "seeds", "stages")
    _expect("config key", config, _CONFIG, required)
    data = dict(config["data"])
    _expect("data key", data, _DATA, ("name",))
    if data["name"] not in sources.SOURCES:
        raise unknown("data set", data["name"], sources.SOURCES)
    augment = build(Augment, "data.augment", data.pop("augment", {}))
    precision = config.get("precision", "float32")
    if precision not in DTYPES:
        raise unknown("precision", precision, DTYPES)
    stages = {
        name: _parse_stage(name, settings, config)
        for name, settings in config["stages"].items()
    }
    return Experiment(
        config=config,
        data=data,
        augment=augment,
        stages=_in_order(stages),
        precision=precision,
        saving=build(Saving, "saving", config.get("saving", {})),
    )


def _parse_stage(
    name: str, settings: Mapping[str, Any], config: Mapping[str, Any]
) -> Stage:
    settings = dict(settings)
    method = settings.get("method", "supervised")
    known = (*_STAGE, *methods.METHODS)
    _expect(f"key of stage {name!r}", settings, known, ("model",))
    options = {key: settings[key] for key in settings if key not in _STAGE}
    recipe = {**config["recipe"], **settings.get("recipe", {})}
    seeds = settings.get("seeds", config["seeds"])
    if seeds < 1:
        raise UserError(f"stage {name!r}: seeds={seeds} is not positive")
    stage = Stage(
        name=name,
        model=settings["model"],
        method=methods.create(method, options),
        method_name=method,
        teachers=tuple(settings.get("teachers", ())),
        recipe=build(Recipe, f"recipe of stage {name!r}", recipe),
        seeds=seeds,
        copy=settings.get("copy", 0),
    )
    for model in stage.method.roles(stage.model).values():
        models.create(model, 2)
    if len(stage.teachers) != stage.method.num_teachers:
        raise UserError(
            f"stage {name!r}: method {method!r} takes {stage.method.num_teachers} "
            f"teachers, not {len(stage.teachers)} ({', '.join(stage.teachers)})"
        )
    return stage


def _in_order(stages: Mapping[str, Stage]) -> dict[str, Stage]:
    """Returns the stages with every teacher before the stages that it teaches."""
    ordered: dict[str, Stage] = {}

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            raise UserError(f"stages teach in a circle: {' -> '.join((*path, name))}")
        if name in ordered:
            return
        for teacher in stages[name].teachers:
            if teacher not in stages:
                raise unknown(f"teacher of stage {name!r}", teacher, stages)
            visit(teacher, (*path, name))
        ordered[name] = stages[name]

    for name in stages:
        visit(name, ())
    return ordered


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
        self._experiment, self._workdir = experiment, workdir
        self._interrupt = interrupt
        try:
            (workdir / "stages").mkdir(parents=True, exist_ok=True)
            probe = workdir / "stages" / ".writable"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise UserError(
                f"workdir {workdir} cannot be written: {error.strerror}"
            ) from error
        data = experiment.data
        dataset = sources.load(
            data["name"],
            data.get("dir"),
            train_size=data.get("train_size"),
            test_size=data.get("test_size"),
        )
        self._dtype = DTYPES[experiment.precision]
        self._mesh = parallel.make_mesh()
        self._data = resident.place(dataset, self._mesh)

    def settings(self, name: str, seed: int) -> dict[str, Any]:
        """Returns everything that decides the weights of one replica of a stage."""
        stage = self._experiment.stages[name]
        teachers = [
            self.fingerprint(teacher, self.replica_of(teacher, seed))
            for teacher in stage.teachers
        ]
        roles = stage.method.roles(stage.model).items()
        data = self._data.dataset
        return {
            "seed": seed,
            "copy": stage.copy,
            "roles": {
                role: {"model": model, "version": models.version(model)}
                for role, model in roles
            },
            "method": methods.options(stage.method),
            "teachers": teachers,
            "recipe": {"version": Recipe.VERSION, **dataclasses.asdict(stage.recipe)},
            "data": {
                "name": data.name,
                "version": data.version,
                "train_size": len(data.train.labels),
                "classes": data.num_classes,
                "image_shape": list(self._data.image_shape),
            },
            "augment": {
                "version": Augment.VERSION,
                **dataclasses.asdict(self._experiment.augment),
            },
            "precision": self._experiment.precision,
        }

    def replica_of(self, teacher: str, seed: int) -> int:
        """Returns the replica of a teacher that teaches a stage's replica."""
        return seed % self._experiment.stages[teacher].seeds

    def fingerprint(self, name: str, seed: int) -> str:
        """Returns the hash by which a replica of a stage is found again."""
        text = json.dumps(self.settings(name, seed), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def folder(self, name: str, seed: int) -> Path:
        """Returns a replica's folder; one that another config named is found too."""
        fingerprint = self.fingerprint(name, seed)
        found = sorted((self._workdir / "stages").glob(f"*-{fingerprint}"))
        return found[0] if found else self._workdir / "stages" / f"{name}-{fingerprint}"

    def _program(self, stage: Stage) -> Program:
        """Returns the programs of a stage; raises UserError where parts do not fit."""
        dataset, recipe = self._data.dataset, stage.recipe
        try:
            stream = Stream(
                size=len(dataset.train.labels),
                batch_size=recipe.batch_size,
                augment=self._experiment.augment,
                mean=dataset.mean,
                std=dataset.std,
                dtype=self._dtype,
            )
            step = Step(
                method=stage.method,
                student=stage.model,
                teachers={
                    teacher: self._experiment.stages[teacher].model
                    for teacher in stage.teachers
                },
                num_classes=dataset.num_classes,
                image_shape=self._data.image_shape,
                tx=recipe.optimiser(recipe.epochs * stream.steps),
                copy=stage.copy,
                dtype=self._dtype,
            )
            return Program(step, self._data, stream, self._mesh)
        except UserError as error:
            raise UserError(f"stage {stage.name!r}: {error}") from error

    def _finished(self, name: str, seed: int) -> dict[str, Any] | None:
        """Returns the result of a replica, or None if it is not finished."""
        path = self.folder(name, seed) / "result.json"
        return json.loads(path.read_text()) if path.exists() else None

    def _load(self, name: str, seed: int) -> Variables:
        """Returns the trained network of a replica."""
        return load_network(
            self.folder(name, seed),
            self._experiment.stages[name].model,
            self._data.dataset.num_classes,
            self._data.image_shape,
            self._dtype,
        )

    def run(self) -> dict[str, Any]:
        """Trains what is missing and returns the results, also in `results.json`."""
        stages = self._experiment.stages
        # All of them before the first is trained: what does not fit is known at once.
        programs = {
            name: self._program(stage)
            for name, stage in stages.items()
            if any(not self._finished(name, seed) for seed in range(stage.seeds))
        }
        results = {}
        for name, stage in stages.items():
            results[name] = [
                self._replica(name, seed, programs.get(name))
                for seed in range(stage.seeds)
            ]
        summary = self._summary(results)
        write_json(self._workdir / "results.json", summary)
        draw_curves(results, self._workdir / "curves.png")
        print_table(summary["stages"])
        return summary

    def _replica(self, name: str, seed: int, program: Program | None) -> dict[str, Any]:
        """Returns a replica's result, after training it if there is none yet."""
        stage = self._experiment.stages[name]
        folder, fingerprint = self.folder(name, seed), self.fingerprint(name, seed)
        label = f"{name} seed {seed}"
        if result := self._finished(name, seed):
            console.print(f"{label}  found in {folder}", markup=False)
            return result
        assert program is not None
        folder.mkdir(exist_ok=True)
        settings = {"kdjax": kdjax.__version__, **self.settings(name, seed)}
        write_json(folder / "stage.json", settings)
        frozen = {
            teacher: self._load(teacher, self.replica_of(teacher, seed))
            for teacher in stage.teachers
        }
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
        result = training.run()
        result = {"fingerprint": fingerprint, "seed": seed, **result}
        write_json(folder / "result.json", result)
        return result

    def _summary(self, results: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any]:
        return {
            "stages": {
                name: _summarise(self._experiment.stages[name], replicas)
                for name, replicas in results.items()
            },
            "config": self._experiment.config,
            "versions": {
                "kdjax": kdjax.__version__,
                "jax": jax.__version__,
                "python": platform.python_version(),
            },
            "devices": [str(device.device_kind) for device in jax.devices()],
            "finished": datetime.datetime.now(datetime.UTC).isoformat("T", "seconds"),
        }


def _summarise(stage: Stage, replicas: list[dict[str, Any]]) -> dict[str, Any]:
    def spread(role: str, key: str) -> list[float]:
        return [replica["networks"][role][key] for replica in replicas]

    def figures(role: str) -> dict[str, Any]:
        final = spread(role, "test_accuracy")
        return {
            "model": replicas[0]["networks"][role]["model"],
            "parameters": replicas[0]["networks"][role]["parameters"],
            "test_accuracy": {
                "final": final,
                "best": spread(role, "best_test_accuracy"),
                "median": float(np.median(final)),
            },
            "test_top5": {
                "final": spread(role, "test_top5"),
                "median": float(np.median(spread(role, "test_top5"))),
            },
            "test_loss": spread(role, "test_loss"),
        }

    others = [role for role in replicas[0]["networks"] if role != "student"]
    return {
        **figures("student"),
        "method": stage.method_name,
        "teachers": list(stage.teachers),
        "others": {role: figures(role) for role in others},
        "seconds": [replica["seconds"] for replica in replicas],
        "images_per_second": [replica["images_per_second"] for replica in replicas],
        "fingerprint": [replica["fingerprint"] for replica in replicas],
        "digest": [replica["digest"] for replica in replicas],
    }
