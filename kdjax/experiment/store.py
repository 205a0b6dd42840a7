"""The working folder: a folder for every replica of a stage, found by fingerprint."""

import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

import kdjax
from kdjax import methods, models
from kdjax.data.streaming.dataset import Images
from kdjax.experiment.config import Experiment
from kdjax.experiment.given_contents import Givens
from kdjax.models import Variables
from kdjax.runtime import parallel
from kdjax.runtime.computation import computation_id
from kdjax.runtime.errors import UserError
from kdjax.runtime.files import (
    read_checked_json,
    remove_leftovers,
    write_checked_json,
)
from kdjax.train import rounding
from kdjax.train.loop import load_network
from kdjax.train.model_outputs import apply_model
from kdjax.train.networks import Networks


class Store:
    """The replicas of an experiment's stages in a working folder.

    A replica's folder is `stages/<name>-<fingerprint>`; the fingerprint hashes
    everything that decides its weights and figures, but not its name: another config
    finds it under the name that the first one gave it.
    """

    def __init__(self, experiment: Experiment, dataset: Images, workdir: Path):
        """Looks nowhere yet.

        Args:
            experiment: the graph of stages.
            dataset: what they are trained on.
            workdir: where everything goes.
        """
        self._experiment, self._dataset = experiment, dataset
        self.givens = Givens(experiment, dataset)
        self._stages = workdir / "stages"
        self._hashed: dict[str, dict[str, Any]] = {}  # by network: tracing takes time
        self._stage_networks: dict[str, Networks] = {}  # likewise
        self._fingerprints: dict[tuple[str, int], str] = {}
        self.data = {
            "name": dataset.name,
            "version": dataset.version,
            "image_shape": dataset.image_shape,
            "train_size": dataset.train_size,
            "test_size": dataset.test_size,
            "mean": dataset.mean,
            "std": dataset.std,
            "content": dataset.content,
        }

    def make(self) -> None:
        """Makes the folder.

        Raises:
            UserError: it cannot be written.
        """
        if not parallel.is_first():
            return
        try:
            self._stages.mkdir(parents=True, exist_ok=True)
            probe = self._stages / ".writable"
            probe.touch()
            probe.unlink(missing_ok=True)
            remove_leftovers(self._stages.parent)
        except OSError as error:
            raise UserError(
                f"workdir {self._stages.parent} cannot be written: {error.strerror}"
            ) from error

    def settings(self, name: str, seed: int) -> dict[str, Any]:
        """Returns everything that decides one replica of a stage, as plain data."""
        experiment = self._experiment
        stage = experiment.stages[name]
        augment = dataclasses.asdict(experiment.augment)
        given = self.givens.digest(name)
        if stage.given:  # nothing of how others are trained decides it
            return {
                **given,
                **self._computation(stage.model),
                "roles": {"student": self._model(stage.model)},
                "data": self.data,
                "precision": experiment.precision,
            }
        return {
            **given,
            "seed": seed,
            "copy": stage.init_index,
            "roles": {
                role: self._model(model)
                for role, model in stage.method.roles(stage.model).items()
            },
            # With the name: the first of several methods counts the cross-entropy.
            "method": {
                "name": stage.method_name,
                **methods.options(self._networks(name).method),
            },
            "teachers": [
                self.fingerprint(teacher, self.replica_of(teacher, seed))
                for teacher in stage.teachers
            ],
            **self._targets(name),
            "recipe": stage.recipe.settings(),
            "data": self.data,
            "augment": {"version": experiment.augment.VERSION, **augment},
            "precision": experiment.precision,
        }

    def _targets(self, name: str) -> dict[str, int]:
        """Returns the version of teachers' targets, where any are read."""
        specs = self._networks(name).target_specs
        read = any(jax.tree.leaves(specs[teacher]) for teacher in specs)
        return {"targets": rounding.VERSION} if read else {}

    def _networks(self, name: str) -> Networks:
        """Returns a stage's networks, and so how it learns with all filled in."""
        if name not in self._stage_networks:
            stages, images = self._experiment.stages, self._dataset
            stage = stages[name]
            teachers = {teacher: stages[teacher].model for teacher in stage.teachers}
            self._stage_networks[name] = Networks(
                stage.method,
                stage.model,
                teachers,
                images.num_classes,
                images.image_shape,
            )
        return self._stage_networks[name]

    def _model(self, name: str) -> dict[str, Any]:
        """Returns what is hashed of a network: name and version, and of one's own more.

        Code has no version unless it says so (`VERSION`). A class that was edited shows
        by the shapes of its parameters, and one of a notebook or script, or a module of
        PyTorch, by all that it computes.
        """
        if name in self._hashed:
            return self._hashed[name]
        hashed: dict[str, Any] = {"model": name, "version": models.version(name)}
        classes, shape = self._dataset.num_classes, self._dataset.image_shape
        own = models.inner(name)
        if models.is_own(own) and not models.is_function(own):
            shapes = models.shapes(name, classes, shape)
            flat = flatten_dict(dict(shapes))
            hashed["shapes"] = {
                "/".join(path): list(leaf.shape) for path, leaf in sorted(flat.items())
            }
            foreign = models.torch_network(own, classes) is not None
            if foreign or own.startswith("__main__:"):
                images = jax.ShapeDtypeStruct((2, *shape), np.float32)
                apply = functools.partial(
                    apply_model, name, classes, np.dtype(np.float32), False
                )
                hashed["computation"] = computation_id(apply, shapes, images)
        self._hashed[name] = hashed
        return hashed

    def _computation(self, model: str) -> dict[str, str]:
        """Returns a hash of what a given function computes, which has no version."""
        model = models.inner(model)
        if not models.is_function(model):
            return {}
        return {"computation": models.function_id(model, self._dataset.image_shape)}

    def replica_of(self, teacher: str, seed: int) -> int:
        """Returns the replica of a teacher that teaches a stage's replica."""
        return seed % self._experiment.stages[teacher].seeds

    def fingerprint(self, name: str, seed: int) -> str:
        """Returns the hash by which a replica is found again."""
        if (name, seed) not in self._fingerprints:
            # Canonical JSON: the order in which a config names its keys does not count.
            text = json.dumps(self.settings(name, seed), sort_keys=True)
            found = hashlib.sha256(text.encode()).hexdigest()[:12]
            # In a chain taught by all before, every stage is asked for by all later.
            self._fingerprints[name, seed] = found
        return self._fingerprints[name, seed]

    def folder(self, name: str, seed: int) -> Path:
        """Returns a replica's folder, which may bear the name of another config."""
        fingerprint = self.fingerprint(name, seed)
        folders = sorted(self._stages.glob(f"*-{fingerprint}"))
        return folders[0] if folders else self._stages / f"{name}-{fingerprint}"

    @contextlib.contextmanager
    def open(self, name: str, seed: int) -> Iterator[Path]:
        """Makes a replica's folder with its settings and holds it for this run.

        Raises:
            UserError: another run trains the replica.
        """
        folder = self.folder(name, seed)
        if not parallel.is_first():
            yield folder  # held by the first process
            return
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "lock", "w") as lock:
            try:
                # The kernel drops the lock when the process ends, however it ends.
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(
                    f"{folder} is being trained by another process"
                ) from error
            settings = {
                "kdjax": kdjax.__version__,
                "num_classes": self._dataset.num_classes,
                "classes": list(self._dataset.classes),
                "packages": self._packages(name),
                **self.settings(name, seed),
            }
            write_checked_json(folder / "stage.json", settings)
            yield folder

    def _packages(self, name: str) -> dict[str, str]:
        """Returns the versions of the packages that a stage's own networks are from."""
        stage = self._experiment.stages[name]
        return {
            package: version
            for model in stage.method.roles(stage.model).values()
            for package, version in models.packages(model).items()
        }

    def other_versions(self, name: str, seed: int) -> dict[str, tuple[str, str]]:
        """Returns which packages had another version when a replica was begun.

        The library itself, and where the stage's own networks are from. Their code is
        not hashed: a replica is found again, and a line tells the difference.

        Args:
            name: of the stage.
            seed: of the replica.

        Returns:
            The version then and the version now, by package.
        """
        path = self.folder(name, seed) / "stage.json"
        try:
            begun = read_checked_json(path)
            before = {"kdjax": begun["kdjax"], **begun.get("packages", {})}
        except (OSError, ValueError, KeyError):
            return {}  # not begun, or killed while it was written
        now = {"kdjax": kdjax.__version__, **self._packages(name)}
        return {
            package: (version, now[package])
            for package, version in before.items()
            if package in now and version != now[package]
        }

    def finish(self, name: str, seed: int, result: dict[str, Any]) -> None:
        """Writes a replica's result, the last thing: now it counts as finished."""
        if parallel.is_first():
            write_checked_json(self.folder(name, seed) / "result.json", result)
        parallel.wait_for_all(f"{name} {seed} is finished")

    def result(self, name: str, seed: int) -> dict[str, Any] | None:
        """Returns the result of a replica, or None if it is not finished.

        Raises:
            UserError: the file is damaged.
        """
        path = self.folder(name, seed) / "result.json"
        if not path.exists():
            return None
        try:
            return read_checked_json(path)
        except ValueError as error:
            raise UserError(
                f"{path} is damaged: {error}; delete its folder to train it again"
            ) from error

    def network(self, name: str, seed: int) -> Variables:
        """Returns the student that a finished replica has trained, or was given.

        Raises:
            UserError: it is damaged.
        """
        if self._experiment.stages[name].given:
            return self.givens.variables(name)
        return load_network(
            self.folder(name, seed),
            self._experiment.stages[name].model,
            self._dataset.num_classes,
            self._dataset.image_shape,
            self._experiment.dtype,
        )

    def teachers(self, name: str, seed: int) -> dict[str, Variables]:
        """Returns the trained networks that teach a replica, by stage."""
        return {
            teacher: self.network(teacher, self.replica_of(teacher, seed))
            for teacher in self._experiment.stages[name].teachers
        }
