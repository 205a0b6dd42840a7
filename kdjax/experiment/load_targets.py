"""What a stage has of its teachers in an epoch: from the bank and from recordings."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.experiment.bank import Bank
from kdjax.experiment.bank_plan import BankEntry
from kdjax.experiment.store import Store
from kdjax.models import Outputs
from kdjax.runtime.signals import Interrupt
from kdjax.train import recordings, rounding
from kdjax.train.program import Program
from kdjax.train.replica import Replica
from kdjax.train.replica_step import EpochTargets


class TargetLoader:
    """Loads the targets of replicas that are trained side by side, epoch by epoch.

    The bank returns arrays on the host; the program places them on the devices.
    """

    def __init__(
        self,
        bank: Bank,
        store: Store,
        stage: str,
        program: Program,
        replicas: Sequence[Replica],
        interrupt: Interrupt,
        tables: Mapping[str, np.ndarray] | None = None,
    ):
        """Loads nothing yet.

        Args:
            bank: of the run.
            store: knows where recordings are.
            stage: of the replicas.
            program: the stage's.
            replicas: in their order on the mesh.
            interrupt: asked while teachers are computed.
            tables: given predictions of the training images, by teacher.
        """
        self._bank, self._store, self._stage = bank, store, stage
        self._program, self._replicas, self._interrupt = program, replicas, interrupt
        self._tables = tables or {}
        # By teacher, the stored epoch that is on the devices, and its arrays.
        self._placed: dict[str, tuple[int, Any]] = {}

    def __call__(self, epoch: int) -> EpochTargets:
        """Returns the targets of an epoch, on the devices.

        Args:
            epoch: counted from 0.

        Raises:
            UserError: a file of the bank or a recording cannot be used.
            Interrupted: after a signal.
        """
        return EpochTargets(
            {name: self._banked(name, epoch) for name in self._program.banked},
            {name: self._recorded(name, epoch) for name in self._program.replayed},
        )

    def _banked(self, teacher: str, epoch: int) -> Any:
        """Returns one teacher's targets for all replicas."""
        if teacher in self._tables:
            return self._from_predictions(teacher)
        entries = [
            self._bank.entry(self._stage, r.seed, teacher) for r in self._replicas
        ]
        stored = entries[0].stored_epoch(epoch)
        if teacher in self._placed and self._placed[teacher][0] == stored:
            return self._placed[teacher][1]
        self._placed.pop(teacher, None)  # before the next is placed: one at a time
        by_entry: dict[BankEntry, Any] = {}  # replicas may share one
        for entry, replica in zip(entries, self._replicas, strict=True):
            if entry not in by_entry:
                by_entry[entry] = self._load(entry, stored, replica)
        placed = self._program.stack_replicas([by_entry[entry] for entry in entries])
        self._placed[teacher] = stored, placed
        return placed

    def _from_predictions(self, teacher: str) -> Any:
        """Returns the targets of a teacher of which predictions are given alone.

        They are the same in every epoch, and rounded as the bank's are.
        """
        if teacher not in self._placed:
            outputs = Outputs(jnp.asarray(self._tables[teacher]), {})
            targets = self._program.step.method.teacher_targets(outputs)
            stored = rounding.stored_dtype(self._program.step.dtype)
            rounded = jax.tree.map(lambda leaf: np.asarray(leaf, stored), targets)
            replicas = [rounded] * len(self._replicas)
            self._placed[teacher] = 0, self._program.stack_replicas(replicas)
        return self._placed[teacher][1]

    def _load(self, entry: BankEntry, epoch: int, replica: Replica) -> Any:
        """Returns one replica's targets on the host, as the method made them."""
        teacher, computing = entry.teacher, self._program.teacher_targets
        compute = functools.partial(
            computing.over_epoch,
            teacher,
            replica.frozen[teacher],
            before_chunk=self._interrupt.raise_if_set,
        )
        stored = rounding.stored_dtype(self._program.step.dtype)
        specs = [
            jax.ShapeDtypeStruct(shape, stored) for shape in computing.shapes(teacher)
        ]
        leaves = self._bank.load(entry, epoch, specs, compute)
        structure = jax.tree.structure(self._program.step.target_specs[teacher])
        return jax.tree.unflatten(structure, leaves)

    def _recorded(self, teacher: str, epoch: int) -> Any:
        """Returns the logits that the replicas' teachers had in their own training."""
        program = self._program
        shape = program.feed.stream.size, program.step.num_classes
        recorded = [
            recordings.read(self._store.folder(teacher, r.seed), epoch, shape)
            for r in self._replicas
        ]
        return program.stack_replicas(recorded)
