"""Training of one replica of a stage: restore, epochs, evaluate, record, save."""

import dataclasses
import shutil
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdjax import metrics, models
from kdjax.checkpoint import Checkpoints, digest
from kdjax.errors import UserError
from kdjax.interrupt import Interrupt, Interrupted
from kdjax.models import Variables
from kdjax.program import Program
from kdjax.progress import StageProgress
from kdjax.recipe import Recipe

_SCORE = "test/accuracy/student"
_IN_FLIGHT = 2  # dispatches that may wait: signals and the progress stay prompt


@dataclasses.dataclass(frozen=True)
class Saving:
    """When a stage saves and evaluates.

    Attributes:
        every_s: seconds between checkpoints, which may lie within an epoch.
        best: whether to keep the networks of the best test accuracy as well.
        evaluate_every: epochs between evaluations; the last epoch is always evaluated.
    """

    every_s: float = 60.0
    best: bool = False
    evaluate_every: int = 1

    def __post_init__(self) -> None:
        if self.evaluate_every < 1:
            raise UserError(f"evaluate_every={self.evaluate_every} is not positive")
        if self.every_s < 0:
            raise UserError(f"every_s={self.every_s} is negative")


class Training:
    """One replica of a stage while it trains."""

    def __init__(
        self,
        program: Program,
        recipe: Recipe,
        saving: Saving,
        *,
        label: str,
        seed: int,
        frozen: Mapping[str, Variables],
        folder: Path,
        fingerprint: str,
        interrupt: Interrupt,
        tables: Callable[[int], Mapping[str, Any]] = lambda epoch: {},
        observe: Callable[[metrics.Record], None] = lambda record: None,
    ):
        """Starts, or goes on from the newest checkpoint.

        Args:
            program: the stage's.
            recipe: how the stage is optimised.
            saving: when to save and evaluate.
            label: stage and seed, for people.
            seed: of the replica.
            frozen: the teachers' variables, by stage.
            folder: of the replica: checkpoints, records and networks go here.
            fingerprint: of the replica.
            interrupt: asked between steps.
            tables: returns the banked teachers' outputs in an epoch, counted from 0.
            observe: called with every epoch's record.

        Raises:
            UserError: a checkpoint that is damaged or of another config.
        """
        self._program, self._recipe, self._saving = program, recipe, saving
        self._label, self._folder, self._interrupt = label, folder, interrupt
        self._fingerprint = fingerprint
        self._key = program.place(jax.random.key(seed))
        self._frozen = program.place(program.computed(frozen))
        self._tables, self._observe = tables, observe
        self._steps = program.stream.steps
        self._total = recipe.epochs * self._steps
        self._schedule = recipe.schedule(self._total)
        self._checkpoints = Checkpoints(folder / "checkpoints")
        self._history: list[metrics.Record] = []
        self._seconds = 0.0
        if self._checkpoints.latest() is None:
            self._state = program.start(seed, frozen)
            self._totals = program.empty()
        else:
            try:
                self._restore()
            except UserError:
                self._checkpoints.close()
                raise
        self._step = int(self._state.step)
        program.compile(self._key, self._frozen)

    def _restore(self) -> None:
        tree, meta = self._checkpoints.restore(self._program.shapes)
        if meta["fingerprint"] != self._fingerprint:
            raise UserError(
                f"the checkpoint in {self._folder} is of another config "
                f"({meta['fingerprint']}, not {self._fingerprint}); choose another "
                "workdir or delete that folder"
            )
        self._state, self._totals = tree
        self._history, self._seconds = meta["history"], meta["seconds"]

    def run(self) -> dict[str, Any]:
        """Trains to the end and returns the result.

        Returns:
            Test figures and parameters by network, times, digest and history.

        Raises:
            UserError: a loss that is not finite.
            Interrupted: after a signal, once a checkpoint is saved.
        """
        self._clock = self._saved = time.perf_counter()
        self._compiled = self._program.compile_seconds
        best = Checkpoints(self._folder / "best") if self._saving.best else None
        with (
            self._checkpoints,
            metrics.Writer(self._folder, self._history) as writer,
            StageProgress(self._label, self._total, self._step) as progress,
        ):
            while self._step < self._total:
                record = self._epoch(progress)
                if best and record.get(_SCORE, -1) > best_score(self._history):
                    networks = self._program.step.networks(self._state)
                    best.save(self._step, networks, {"epoch": record["epoch"]})
                self._history.append(record)
                writer.write(record)
                progress.line(describe(record, self._recipe.epochs))
                self._observe(record)
                self._save_if_due()
        if best:
            best.close()
        return self._finish()

    def _epoch(self, progress: StageProgress) -> metrics.Record:
        """Trains to the end of the epoch and returns its record."""
        program, steps = self._program, self._steps
        order = program.order(self._key, self._step // steps)
        begin, first = self._elapsed(), self._step
        try:
            tables = self._tables(self._step // steps)
        except (Interrupted, UserError):
            self._save()
            raise
        in_flight: deque[jax.Array] = deque()

        def speed() -> float:
            images = (self._step - first) * self._recipe.batch_size
            return images / (self._elapsed() - begin)

        while True:
            count = min(program.steps_per_dispatch, steps - self._step % steps)
            self._state, self._totals, done = program.train(
                self._state,
                self._totals,
                self._frozen,
                tables,
                order,
                self._key,
                count,
            )
            self._step += count
            in_flight.append(done)
            if len(in_flight) > _IN_FLIGHT:
                in_flight.popleft().block_until_ready()
            progress.step(self._step, speed())
            if self._step % steps == 0:
                break
            self._save_if_due()
        means = metrics.means(self._totals, steps)
        record = {
            "epoch": self._step // steps,
            "step": self._step,
            "learning_rate": float(self._schedule(self._step - 1)),
            "images_per_second": speed(),
            **{f"train/{name}": value for name, value in means.items()},
        }
        last = self._step == self._total
        if last or record["epoch"] % self._saving.evaluate_every == 0:
            for name, value in program.evaluate(self._state).items():
                record[f"test/{name}"] = metrics.finite(f"test {name}", float(value))
        self._totals = program.empty()
        return {**record, "seconds": self._elapsed()}

    def _elapsed(self) -> float:
        """Returns seconds so far, without what was compiled on the way."""
        compiling = self._program.compile_seconds - self._compiled
        return self._seconds + time.perf_counter() - self._clock - compiling

    def _save_if_due(self) -> None:
        """Saves a checkpoint when it is time to, or when a signal has come."""
        if self._step == self._total:
            return  # the networks themselves are saved next
        signalled = self._interrupt.number is not None
        if not signalled and time.perf_counter() - self._saved < self._saving.every_s:
            return
        self._save()
        if signalled:
            self._interrupt.raise_if_set()

    def _save(self) -> None:
        metrics.check_finite(self._totals, self._steps)
        meta = {
            "fingerprint": self._fingerprint,
            "history": self._history,
            "seconds": self._elapsed(),
        }
        self._checkpoints.save(self._step, (self._state, self._totals), meta)
        self._saved = time.perf_counter()

    def _finish(self) -> dict[str, Any]:
        """Saves the networks and returns the result."""
        step = self._program.step
        networks = jax.device_get(step.networks(self._state))
        # What a run left that was killed before its result was written.
        shutil.rmtree(self._folder / "networks", ignore_errors=True)
        for role, variables in networks.items():
            with Checkpoints(self._folder / "networks" / role) as keeper:
                keeper.save(self._step, variables, {"model": step.roles[role]})
        last = self._history[-1]
        speeds = [record["images_per_second"] for record in self._history]
        return {
            "networks": {
                role: {
                    "model": step.roles[role],
                    "parameters": sum(
                        leaf.size for leaf in jax.tree.leaves(variables["params"])
                    ),
                    "test_accuracy": last[f"test/accuracy/{role}"],
                    "best_test_accuracy": best_score(self._history, role),
                    "test_top5": last[f"test/top5/{role}"],
                    "test_loss": last[f"test/loss/{role}"],
                }
                for role, variables in networks.items()
            },
            "epochs": self._recipe.epochs,
            "steps": self._step,
            "seconds": last["seconds"],
            "compile_seconds": self._program.compile_seconds,
            "images_per_second": float(np.median(speeds)),
            "digest": digest(networks),
            "history": self._history,
        }

    def discard_checkpoints(self) -> None:
        """Drops the checkpoints: to be called once the result is written."""
        shutil.rmtree(self._folder / "checkpoints", ignore_errors=True)


def best_score(history: list[metrics.Record], role: str = "student") -> float:
    """Returns the best test accuracy of a network so far, or -1."""
    name = f"test/accuracy/{role}"
    return max((record[name] for record in history if name in record), default=-1.0)


def describe(record: metrics.Record, epochs: int) -> str:
    """Returns an epoch's record as a line."""
    words = [f"epoch {record['epoch']}/{epochs}", f"loss {record['train/loss']:.4g}"]
    for name, value in record.items():
        if name.startswith("test/accuracy/"):
            words.append(f"{name.removeprefix('test/accuracy/')} {100 * value:.2f} %")
    words.append(f"{record['images_per_second']:,.0f} images/s")
    return "  ".join(words)


def load_network(
    folder: Path,
    model: str,
    num_classes: int,
    image_shape: tuple[int, int, int],
    dtype: jnp.dtype = jnp.float32,
    role: str = "student",
) -> Variables:
    """Returns the variables of a network that a finished stage has saved.

    Args:
        folder: the replica's.
        model: the network's name.
        num_classes: the data set's.
        image_shape: height, width and channels.
        dtype: of parameters and statistics.
        role: which of the stage's networks.

    Raises:
        UserError: it is damaged, or not of this shape.
    """
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
        models.shapes(model, num_classes, image_shape, dtype),
    )
    try:
        with Checkpoints(folder / "networks" / role) as keeper:
            variables, _ = keeper.restore(target)
    except UserError as error:
        raise UserError(
            f"the network in {folder} cannot be used ({error}); delete that folder to "
            "train it again"
        ) from error
    return variables
