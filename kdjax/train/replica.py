"""What is kept of one seed of a stage: checkpoints, records, networks, the result."""

import contextlib
import dataclasses
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from kdjax.models import Variables
from kdjax.runtime import parallel
from kdjax.runtime.errors import UserError
from kdjax.runtime.files import digest
from kdjax.train import metrics, recordings, records
from kdjax.train.checkpoint import Checkpoints
from kdjax.train.state import TrainState
from kdjax.train.step import Step

_SCORE = "test/accuracy/student"


@dataclasses.dataclass(kw_only=True)
class Replica:
    """One seed of a stage while it trains.

    Attributes:
        label: stage and seed, for people.
        seed: of the replica.
        folder: checkpoints, records and networks go here.
        fingerprint: what its checkpoints must be of.
        frozen: the teachers' variables, by stage.
        start: makes the student's first variables of its own ones.
        observe: called with every epoch's record.
        keep_best: whether the networks of the best test accuracy are kept as well.
        history: the records so far.
        seconds: of training so far.
    """

    label: str
    seed: int
    folder: Path
    fingerprint: str
    frozen: Mapping[str, Variables]
    start: Callable[[Variables], Variables] = lambda own: own
    observe: Callable[[metrics.Record], None] = lambda record: None
    keep_best: bool = False
    history: list[metrics.Record] = dataclasses.field(default_factory=list)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self._open = contextlib.ExitStack()
        self._checkpoints = self._open.enter_context(
            Checkpoints(self.folder / "checkpoints", keep=2)
        )
        self._best: Checkpoints | None = None
        self._writer: records.Writer | None = None
        self._best_score = -1.0

    def close(self) -> None:
        """Waits for what is being written, and closes all files."""
        self._open.close()

    def saved(self) -> list[int]:
        """Returns the steps of its checkpoints, the newest last."""
        return self._checkpoints.steps()

    def restore(self, step: int, shapes: Any) -> Any:
        """Goes back to a checkpoint and returns what was saved.

        Args:
            step: one of `saved()`; what is newer is dropped.
            shapes: of the tree.

        Raises:
            UserError: a checkpoint that is damaged or of another config, or damaged
                records.
        """
        tree, meta = self._checkpoints.restore(shapes, step)
        if meta["fingerprint"] != self.fingerprint:
            raise UserError(
                f"the checkpoint in {self.folder} is of another config "
                f"({meta['fingerprint']}, not {self.fingerprint}); choose another "
                "workdir or delete that folder"
            )
        if "history" in meta:  # earlier versions saved the records themselves
            self.history = meta["history"]
        else:
            mark = records.Mark(**meta["records"])
            self.history = records.read_records(self.folder, mark)
        self.seconds = meta["seconds"]
        self._checkpoints.drop_after(step)
        return tree

    def save(self, step: int, tree: Any, seconds: float) -> None:
        """Saves a checkpoint; of several processes the first one does."""
        if self._writer is None:
            return
        meta = {
            "fingerprint": self.fingerprint,
            "records": dataclasses.asdict(self._writer.mark()),
            "seconds": seconds,
        }
        self._checkpoints.save(step, tree, meta)

    def begin(self) -> None:
        """Opens the records, with those of `history`."""
        self._best_score = best_score(self.history)
        if self.keep_best:
            best = Checkpoints(self.folder / "best")
            self._best = self._open.enter_context(best)
        if parallel.is_first():
            writer = records.Writer(self.folder, self.history)
            self._writer = self._open.enter_context(writer)

    def add(
        self, record: metrics.Record, step: Step, state: Callable[[], TrainState]
    ) -> None:
        """Adds an epoch's record.

        Args:
            record: of the epoch.
            step: the stage's.
            state: returns the replica's state, on the host.
        """
        score = record.get(_SCORE, -1.0)
        if self._best and score > self._best_score:
            networks = step.networks(state())
            self._best.save(int(record["step"]), networks, {"epoch": record["epoch"]})
        self._best_score = max(score, self._best_score)
        self.history.append(record)
        if self._writer:
            self._writer.write(record)

    def keep_recording(self, epoch: int, logits: np.ndarray) -> None:
        """Keeps the student's training-mode logits of an epoch, counted from 0."""
        recordings.write(self.folder, epoch, logits)

    def finish(self, step: Step, state: TrainState) -> dict[str, Any]:
        """Saves the networks and returns the result.

        Args:
            step: the stage's.
            state: the replica's at the end, on the host.

        Returns:
            Test figures and parameters by network, speed, digest and history.
        """
        networks, last = step.networks(state), self.history[-1]
        if parallel.is_first():  # no other may even open what the first one replaces
            # What a run left that was killed before its result was written.
            shutil.rmtree(self.folder / "networks", ignore_errors=True)
            for role, variables in networks.items():
                with Checkpoints(self.folder / "networks" / role) as keeper:
                    meta = {"model": step.roles[role]}
                    keeper.save(int(last["step"]), variables, meta)
        speeds = [record["images_per_second"] for record in self.history]
        return {
            "networks": {
                role: {
                    "model": step.roles[role],
                    "parameters": sum(
                        leaf.size for leaf in jax.tree.leaves(variables["params"])
                    ),
                    "test_accuracy": last[f"test/accuracy/{role}"],
                    "best_test_accuracy": best_score(self.history, role),
                    "test_top5": last[f"test/top5/{role}"],
                    "test_loss": last[f"test/loss/{role}"],
                }
                for role, variables in networks.items()
            },
            "trained_parameters": sum(
                leaf.size for leaf in jax.tree.leaves(state.params)
            ),
            "epochs": last["epoch"],
            "steps": last["step"],
            "seconds": last["seconds"],
            "images_per_second": float(np.median(speeds)),
            "digest": digest(networks),
            "history": self.history,
        }

    def discard_checkpoints(self) -> None:
        """Drops the checkpoints: to be called once the result is written."""
        self.close()
        if parallel.is_first():
            shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)


def resume_group(replicas: Sequence[Replica]) -> tuple[int | None, list[Replica]]:
    """Returns the checkpoint to resume from, and the replicas that can resume there.

    None is the start, for those without a checkpoint. Replicas that were trained side
    by side share a checkpoint wherever they were stopped.
    """
    fresh = [replica for replica in replicas if not replica.saved()]
    if fresh:
        return None, fresh
    step = min(replica.saved()[-1] for replica in replicas)
    return step, [replica for replica in replicas if step in replica.saved()]


def best_score(history: Sequence[metrics.Record], role: str = "student") -> float:
    """Returns the best test accuracy of a network so far, or -1."""
    name = f"test/accuracy/{role}"
    return max((record[name] for record in history if name in record), default=-1.0)
