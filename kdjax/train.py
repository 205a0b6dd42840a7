"""Training of one stage: restore, epochs, evaluate, record, save."""

import dataclasses
import math
import shutil
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from kdjax import backend, metrics, models, parallel
from kdjax.checkpoint import Checkpoints, digest
from kdjax.data.sources import Dataset
from kdjax.data.stream import Stream, normalise
from kdjax.errors import UserError
from kdjax.interrupt import Interrupt
from kdjax.keys import fold
from kdjax.models import Variables
from kdjax.progress import StageProgress
from kdjax.step import Step, TrainState

_EVAL_BATCH = 256


@dataclasses.dataclass(frozen=True)
class Saving:
    """When and what a stage saves and evaluates.

    Attributes:
        every_s: seconds between checkpoints; 0 saves after every epoch and dispatch.
        best: whether to keep the networks of the best test accuracy as well.
        evaluate_every: epochs between evaluations; the last epoch is always evaluated.
    """

    every_s: float = 60.0
    best: bool = False
    evaluate_every: int = 1

    def __post_init__(self):
        if self.evaluate_every < 1 or self.every_s < 0:
            raise UserError(
                f"evaluate_every={self.evaluate_every} must be at least 1 and "
                f"every_s={self.every_s} at least 0"
            )


class Trainer:
    """The programs of one stage, compiled once, and the loop that runs them."""

    def __init__(
        self,
        step: Step,
        dataset: Dataset,
        stream: Stream,
        epochs: int,
        schedule: optax.Schedule,
        mesh: Mesh,
        saving: Saving,
    ):
        """Prepares a stage; nothing is compiled before the first run.

        Args:
            step: the stage's step.
            dataset: images and labels.
            stream: makes batches of the training images.
            epochs: how many.
            schedule: learning rate by step, for the records.
            mesh: the devices.
            saving: when to save and evaluate.
        """
        parallel.check_batch(mesh, stream.batch_size)
        self._step, self._stream, self._mesh = step, stream, mesh
        self._dataset, self._epochs, self._saving = dataset, epochs, saving
        self._schedule = schedule
        self._per_dispatch = backend.steps_per_dispatch()
        self._programs: tuple[Any, Any] | None = None
        self.compile_seconds = 0.0

    def _dispatch(self, state, totals, frozen, data, order, key, count):
        """Runs `count` steps of one epoch; one step where a loop costs more."""

        def one(_, carry):
            state, totals = carry
            stream_key = fold(key, "stream")
            batch = self._stream.batch(data, order, stream_key, state.step)
            sharding = parallel.over_data(self._mesh)
            batch = jax.lax.with_sharding_constraint(batch, sharding)
            new, measured = self._step.train(state, frozen, batch, key)
            return new, metrics.add(totals, measured, state.step)

        carry = (state, totals)
        if self._per_dispatch == 1:
            carry = one(0, carry)
        else:
            carry = jax.lax.fori_loop(0, count, one, carry)
        return carry, carry[0].step + 0  # a number of its own, to wait for

    def _evaluate(self, state, test):
        """Returns every network's accuracy, top-5 accuracy and loss on test images."""
        mean, std = self._dataset.mean, self._dataset.std

        def one(batch):
            sharding = parallel.over_data(self._mesh)
            images, labels, valid = jax.lax.with_sharding_constraint(batch, sharding)
            images = normalise(images, mean, std, self._stream.dtype)
            return self._step.evaluate(state, images, labels, valid)

        sums = jax.lax.map(one, test)
        size = len(self._dataset.test.labels)
        return {name: jnp.sum(value) / size for name, value in sums.items()}

    def _place(self, tree: Any) -> Any:
        return jax.device_put(tree, parallel.replicated(self._mesh))

    def _test_batches(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the test set in batches, the last one padded and marked."""
        images, labels = self._dataset.test.images, self._dataset.test.labels
        size = len(labels)
        per_batch = math.ceil(min(_EVAL_BATCH, size) / self._mesh.size)
        per_batch *= self._mesh.size
        count = math.ceil(size / per_batch)
        padding = count * per_batch - size
        images = np.concatenate([images, np.zeros_like(images[:1].repeat(padding, 0))])
        labels = np.concatenate([labels, np.zeros(padding, labels.dtype)])
        valid = np.arange(len(labels)) < size
        return tuple(
            array.reshape(count, per_batch, *array.shape[1:])
            for array in (images, labels, valid)
        )

    def _compile(self, state, totals, frozen, data, order, key, test) -> None:
        """Compiles the train and evaluation programs, once for all replicas."""
        if self._programs:
            return
        start = time.perf_counter()
        options = backend.compiler_options()
        everywhere = parallel.replicated(self._mesh)
        train = jax.jit(
            self._dispatch,
            donate_argnums=(0, 1),
            out_shardings=everywhere,
            compiler_options=options,
        )
        evaluate = jax.jit(
            self._evaluate, out_shardings=everywhere, compiler_options=options
        )
        self._programs = (
            train.lower(state, totals, frozen, data, order, key, 1).compile(),
            evaluate.lower(state, test).compile(),
        )
        self.compile_seconds = time.perf_counter() - start

    def shapes(self, frozen: Mapping[str, Any]) -> tuple[TrainState, dict[str, Any]]:
        """Returns the shapes of state and metrics: raises what the step would raise.

        Args:
            frozen: the teachers' variables or their shapes.
        """
        try:
            state = jax.eval_shape(self._step.init, jax.random.key(0), frozen)
            batch = jax.eval_shape(
                self._stream.batch,
                (self._dataset.train.images, self._dataset.train.labels),
                jax.ShapeDtypeStruct((self._stream.size,), jnp.int32),
                jax.random.key(0),
                state.step,
            )
            _, measured = jax.eval_shape(
                self._step.train, state, frozen, batch, jax.random.key(0)
            )
        except UserError:
            raise
        # A loss's: shapes of student and teacher that do not fit.
        except ValueError as error:
            raise UserError(str(error).replace("\n", " ")) from error
        return state, measured

    def run(
        self,
        label: str,
        seed: int,
        frozen: Mapping[str, Variables],
        folder: Path,
        fingerprint: str,
        interrupt: Interrupt,
    ) -> dict[str, Any]:
        """Trains one replica, from its newest checkpoint if there is one.

        Args:
            label: stage and seed, for people.
            seed: of the replica.
            frozen: the teachers' variables, by stage.
            folder: of the replica: checkpoints, records and networks go here.
            fingerprint: of the replica; a checkpoint of another one is refused.
            interrupt: asked between steps.

        Returns:
            The result: test figures by role, parameters, times, digest and history.

        Raises:
            UserError: a loss that is not finite, or a checkpoint that cannot be used.
            Interrupted: after a signal, once a checkpoint is saved.
        """
        key = self._place(jax.random.key(seed))
        frozen = self._place(frozen)
        data = self._place((self._dataset.train.images, self._dataset.train.labels))
        test = self._place(self._test_batches())
        everywhere = parallel.replicated(self._mesh)
        order_of = jax.jit(
            lambda key, epoch: self._stream.order(fold(key, "stream"), epoch),
            out_shardings=everywhere,
        )
        state_shape, measured = self.shapes(frozen)
        empty = jax.jit(lambda: metrics.zeros(measured), out_shardings=everywhere)
        steps, total = self._stream.steps, self._epochs * self._stream.steps
        checkpoints = Checkpoints(folder / "checkpoints")
        best = Checkpoints(folder / "best") if self._saving.best else None
        history: list[metrics.Record] = []
        seconds = 0.0
        if checkpoints.latest() is None:
            init = jax.jit(self._step.init, out_shardings=everywhere)
            state, totals = init(key, frozen), empty()
        else:
            target = jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(
                    leaf.shape, leaf.dtype, sharding=everywhere
                ),
                (state_shape, jax.eval_shape(empty)),
            )
            (state, totals), meta = checkpoints.restore(target)
            if meta["fingerprint"] != fingerprint:
                raise UserError(
                    f"checkpoint in {folder} is of another config "
                    f"({meta['fingerprint']}, not {fingerprint}); choose another "
                    "workdir"
                )
            history, seconds = meta["history"], meta["seconds"]
        step = int(state.step)
        order = order_of(key, step // steps)
        self._compile(state, totals, frozen, data, order, key, test)
        train, evaluate = self._programs  # type: ignore[misc]
        writer = metrics.Writer(folder, history)
        begin = saved = time.perf_counter()
        epoch_begin, epoch_step = begin, step
        in_flight: deque[jax.Array] = deque()

        def save() -> None:
            metrics.check_finite(jax.device_get(totals), steps)
            meta = {"fingerprint": fingerprint, "history": history}
            meta["seconds"] = seconds + time.perf_counter() - begin
            checkpoints.save(step, (state, totals), meta)

        progress = StageProgress(label, total, step)
        with progress:
            while step < total:
                count = min(self._per_dispatch, steps - step % steps)
                (state, totals), done = train(
                    state, totals, frozen, data, order, key, count
                )
                step += count
                # At most two dispatches wait: signals and the bar stay prompt.
                in_flight.append(done)
                if len(in_flight) > 2:
                    in_flight.popleft().block_until_ready()
                elapsed = time.perf_counter() - epoch_begin
                images = (step - epoch_step) * self._stream.batch_size
                progress.step(step, images / elapsed)
                if step % steps == 0:
                    epoch = step // steps
                    sums = jax.device_get(totals)
                    metrics.check_finite(sums, steps)
                    elapsed = time.perf_counter() - epoch_begin
                    record = {
                        "epoch": epoch,
                        "step": step,
                        "learning_rate": float(self._schedule(step - 1)),
                        "images_per_second": images / elapsed,
                    }
                    for name, value in sums["sums"].items():
                        record[f"train/{name}"] = float(value) / steps
                    if epoch % self._saving.evaluate_every == 0 or step == total:
                        found = jax.device_get(evaluate(state, test))
                        for name, value in found.items():
                            record[f"test/{name}"] = float(value)
                    record["seconds"] = seconds + time.perf_counter() - begin
                    score = record.get("test/accuracy/student", -1.0)
                    if best and score > _best(history, "student"):
                        best.save(step, self._step.networks(state), {"epoch": epoch})
                    history.append(record)
                    writer.write(record)
                    progress.line(_line(record, self._epochs))
                    totals = empty()
                    if step < total:
                        order = order_of(key, epoch)
                    epoch_begin, epoch_step = time.perf_counter(), step
                due = time.perf_counter() - saved >= self._saving.every_s
                if (due or interrupt.number) and step < total:
                    save()
                    saved = time.perf_counter()
                    if interrupt.number:
                        checkpoints.close()
                        writer.close()
                        interrupt.raise_if_set()
        writer.close()
        networks = jax.device_get(self._step.networks(state))
        for role, variables in networks.items():
            keeper = Checkpoints(folder / "networks" / role)
            keeper.save(step, variables, {"model": self._step.roles[role]})
            keeper.close()
        if best:
            best.close()
        checkpoints.close()
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        return self._result(networks, history)

    def _result(
        self, networks: Mapping[str, Variables], history: list[metrics.Record]
    ) -> dict[str, Any]:
        last = history[-1]
        return {
            "networks": {
                role: {
                    "model": self._step.roles[role],
                    "parameters": sum(
                        leaf.size for leaf in jax.tree.leaves(variables["params"])
                    ),
                    "test_accuracy": last[f"test/accuracy/{role}"],
                    "best_test_accuracy": _best(history, role),
                    "test_top5": last[f"test/top5/{role}"],
                    "test_loss": last[f"test/loss/{role}"],
                }
                for role, variables in networks.items()
            },
            "epochs": self._epochs,
            "steps": last["step"],
            "seconds": last["seconds"],
            "compile_seconds": self.compile_seconds,
            "images_per_second": float(
                np.median([record["images_per_second"] for record in history])
            ),
            "digest": digest(networks),
            "history": history,
        }


def _best(history: list[metrics.Record], role: str) -> float:
    name = f"test/accuracy/{role}"
    return max((record[name] for record in history if name in record), default=-1.0)


def _line(record: metrics.Record, epochs: int) -> str:
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
    keeper = Checkpoints(folder / "networks" / role)
    variables, _ = keeper.restore(target)
    keeper.close()
    return variables
