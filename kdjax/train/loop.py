"""Training of a stage's replicas, side by side: epochs, evaluation, records, saving."""

import bisect
import contextlib
import dataclasses
import itertools
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from kdjax import models
from kdjax.models import Variables
from kdjax.runtime import parallel
from kdjax.runtime.console import StageProgress
from kdjax.runtime.errors import UserError
from kdjax.runtime.signals import Interrupt, Interrupted
from kdjax.train import metrics
from kdjax.train.checkpoint import Checkpoints
from kdjax.train.program import Program
from kdjax.train.recipe import Recipe
from kdjax.train.replica import Replica
from kdjax.train.replica_step import EpochTargets
from kdjax.train.state import TrainState

_IN_FLIGHT = 2  # dispatches that may wait: signals and the progress stay prompt
_ASK_EVERY = 16  # dispatches between questions to other processes, which wait for all


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
    """Replicas of a stage while they train side by side."""

    def __init__(
        self,
        program: Program,
        recipes: Sequence[Recipe],
        saving: Saving,
        replicas: Sequence[Replica],
        *,
        step: int | None,
        interrupt: Interrupt,
        load_targets: Callable[[int], EpochTargets] = lambda epoch: EpochTargets(),
    ):
        """Starts, or resumes from checkpoints of one step.

        Args:
            program: the stage's, for so many replicas.
            recipes: how the stage is optimised, in each of its phases.
            saving: when to save and evaluate.
            replicas: as `resume_group` gives them.
            step: as `resume_group` gives it.
            interrupt: asked between steps.
            load_targets: returns the teachers' targets of an epoch, counted from 0,
                with a leading axis of replicas.

        Raises:
            UserError: a checkpoint that is damaged or of another config.
        """
        self._recipes, self._saving = recipes, saving
        self._replicas, self._step = replicas, step or 0
        self._interrupt, self._load_targets = interrupt, load_targets
        self._steps = program.feed.stream.steps
        # Where the phases end; the step there is the next one's first.
        epochs = itertools.accumulate(recipe.epochs for recipe in recipes)
        self._ends = [number * self._steps for number in epochs]
        self._total, self._phases = self._ends[-1], program.phases
        self._program = program = self._phases[self._phase]
        self._dispatches = 0
        if step is None:
            trees = [
                (
                    program.start(replica.seed, replica.frozen, replica.start),
                    program.zero_metrics(),
                )
                for replica in replicas
            ]
        else:
            trees = [replica.restore(step, program.specs) for replica in replicas]
        self._state, self._totals = program.stack_replicas(trees)
        self._keys = program.stack_replicas([jax.random.key(r.seed) for r in replicas])
        self._teachers = program.prepare_teachers([r.frozen for r in replicas])
        program.compile()

    @property
    def _phase(self) -> int:
        return min(bisect.bisect_right(self._ends, self._step), len(self._ends) - 1)

    def _enter_phase(self) -> None:
        """Starts the next phase where the last one has ended."""
        program = self._phases[self._phase]
        if program is self._program:
            return
        states = [
            program.start_phase(state)
            for state in self._program.unstack_replicas(self._state)
        ]
        self._program = program
        self._state = program.stack_replicas(states)
        self._totals = program.stack_replicas([program.zero_metrics() for _ in states])
        program.compile()

    def _learning_rate(self) -> float:
        """Returns that of the step before."""
        # Of the step that was just done: schedules count from the phase's start.
        before = self._step - 1
        phase = bisect.bisect_right(self._ends, before)
        begin = self._ends[phase - 1] if phase else 0
        rates = self._recipes[phase].learning_rates(self._ends[phase] - begin)
        return float(rates(before - begin))

    @property
    def _compile_seconds(self) -> float:
        return sum(program.compile_seconds for program in self._phases)

    def run(self) -> list[dict[str, Any]]:
        """Trains to the end and returns the replicas' results.

        Raises:
            UserError: a loss that is not finite.
            Interrupted: after a signal, once a checkpoint is saved.
        """
        self._clock = self._saved = time.perf_counter()
        self._seconds = max(replica.seconds for replica in self._replicas)
        self._compiled = self._compile_seconds
        for replica in self._replicas:
            replica.begin()
        label = " + ".join(replica.label for replica in self._replicas)
        with StageProgress(label, self._total, self._step) as progress:
            while self._step < self._total:
                self._epoch(progress)
                self._enter_phase()
                self._save_if_due()
        results = []
        for replica, state in zip(
            self._replicas, self._program.unstack_replicas(self._state), strict=True
        ):
            result = replica.finish(self._program.step, state)
            result["compile_seconds"] = self._compile_seconds
            results.append(result)
        return results

    def _epoch(self, progress: StageProgress) -> None:
        """Trains to the end of the epoch and records it."""
        program, steps = self._program, self._steps
        epoch, first = divmod(self._step, steps)
        begin = self._elapsed()
        try:
            targets = self._load_targets(epoch)
        except (Interrupted, UserError):
            # Computing the bank's targets can take minutes; nothing is lost by it.
            self._save()
            raise
        in_flight: deque[jax.Array] = deque()

        def speed() -> float:
            images = (self._step % steps or steps) - first
            return images * program.feed.stream.batch_size / (self._elapsed() - begin)

        feed = program.feed.epoch(
            [replica.seed for replica in self._replicas],
            epoch,
            first,
            program.steps_per_dispatch,
        )
        with contextlib.closing(feed):
            for count, dispatch_inputs in feed:
                self._state, self._totals, done = program.train(
                    self._state,
                    self._totals,
                    self._teachers,
                    targets,
                    dispatch_inputs,
                    self._keys,
                    count,
                )
                self._step += count
                in_flight.append(done)
                # Dispatch is asynchronous; an unbounded queue would delay signals.
                if len(in_flight) > _IN_FLIGHT:
                    in_flight.popleft().block_until_ready()
                progress.step(self._step, speed() * len(self._replicas))
                if self._step % steps:
                    self._save_if_due()
        totals = program.unstack_replicas(self._totals)
        means = [metrics.means(total, steps) for total in totals]
        common = {
            "epoch": epoch + 1,
            "step": self._step,
            "learning_rate": self._learning_rate(),
            "images_per_second": speed(),
        }
        tests: list[dict[str, float]] = [{} for _ in self._replicas]
        last = self._step == self._total
        if last or (epoch + 1) % self._saving.evaluate_every == 0:
            tests = program.evaluate(self._state)
        self._totals = program.stack_replicas(
            [program.zero_metrics() for _ in self._replicas]
        )
        for i, replica in enumerate(self._replicas):
            record = {
                **common,
                **{f"train/{name}": value for name, value in means[i].items()},
                **{
                    f"test/{name}": metrics.finite(f"test {name}", value)
                    for name, value in tests[i].items()
                },
                "seconds": self._elapsed(),
            }
            if program.record:
                replica.keep_recording(epoch, program.recorded_logits(totals[i]))
            replica.add(record, program.step, lambda i=i: self._state_of(i))  # type: ignore[misc]
            epochs = self._total // steps
            progress.line(f"{replica.label}  {describe(record, epochs)}")
            replica.observe(record)

    def _state_of(self, replica: int) -> TrainState:
        return self._program.unstack_replicas(self._state)[replica]

    def _elapsed(self) -> float:
        """Returns seconds so far, without what was compiled on the way."""
        compiling = self._compile_seconds - self._compiled
        return self._seconds + time.perf_counter() - self._clock - compiling

    def _save_if_due(self) -> None:
        """Saves a checkpoint when it is time to, or when a signal has come."""
        if self._step == self._total:
            return  # the networks themselves are saved next
        self._dispatches += 1
        if jax.process_count() > 1 and self._dispatches % _ASK_EVERY:
            return
        number = self._interrupt.number or 0
        due = time.perf_counter() - self._saved >= self._saving.every_s
        # One number for two questions: bit 0 is 'save', the rest the signal's number.
        # The largest of all processes counts, so that all save and stop together.
        agreed = parallel.agree(2 * number + due)
        if agreed:
            self._save()
        if agreed > 1:
            raise Interrupted(agreed // 2)

    def _save(self) -> None:
        trees = self._program.unstack_replicas((self._state, self._totals))
        for replica, tree in zip(self._replicas, trees, strict=True):
            # A state that has diverged must not replace the last good checkpoint.
            metrics.check_finite(tree[1], self._steps)
            replica.save(self._step, tree, self._elapsed())
        self._saved = time.perf_counter()


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
    shapes = models.shapes(model, num_classes, image_shape, dtype)
    try:
        with Checkpoints(folder / "networks" / role) as keeper:
            variables, _ = keeper.restore(shapes)
    except UserError as error:
        raise UserError(
            f"the network in {folder} cannot be used ({error}); delete that folder to "
            "train it again"
        ) from error
    return variables
