"""The bank: what frozen teachers say over the training stream, computed once.

The stream is a pure function, so a teacher's outputs over it are one of (teacher,
stream, epoch, index). They are kept in float16 in `<workdir>/bank`, a file for every
epoch, from the first stage that reads them to the last.
"""

import errno
import json
import shutil
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from kdjax.experiment.bank_plan import BankEntry, Plan
from kdjax.experiment.store import Store
from kdjax.models import Variables
from kdjax.runtime import parallel
from kdjax.runtime.errors import UserError
from kdjax.runtime.files import replace_whole, write_json
from kdjax.runtime.signals import Interrupt
from kdjax.train import recordings
from kdjax.train.program import EpochTargets, Program
from kdjax.train.replica import Replica


class Bank:
    """The teachers' outputs of one run.

    Attributes:
        passes: how many epochs of a teacher have been computed.
    """

    def __init__(
        self, folder: Path, plan: Plan, store: Store, size: int, interrupt: Interrupt
    ):
        """Removes what no unfinished replica reads; makes nothing yet.

        Args:
            folder: for the files.
            plan: who reads what.
            store: finds the teachers.
            size: the number of training images.
            interrupt: asked between chunks.
        """
        self._folder, self._plan, self._store = folder, plan, store
        self._size, self._interrupt = size, interrupt
        self._held: dict[tuple[BankEntry, ...], tuple[int, Any]] = {}
        self._waiting: dict[BankEntry, set[tuple[str, int]]] = {}
        for (stage, seed, _), table in plan.tables.items():
            if store.result(stage, seed) is None:
                self._waiting.setdefault(table, set()).add((stage, seed))
        for table in plan.epochs:
            if table not in self._waiting:
                self._remove(table)
        self.passes = 0

    def reader(
        self, stage: str, program: Program, replicas: Sequence[Replica]
    ) -> Callable[[int], EpochTargets]:
        """Returns the function from an epoch to the tables that replicas read.

        Args:
            stage: of the replicas.
            program: the stage's.
            replicas: those that are trained side by side.
        """

        def tables(epoch: int) -> EpochTargets:
            targets = {
                teacher: self._targets(stage, teacher, epoch, program, replicas)
                for teacher in program.banked
            }
            teachers = program.step.teachers if program.step.method.replays else ()
            recorded = {
                teacher: self._recorded(teacher, epoch, program, replicas)
                for teacher in teachers
            }
            return EpochTargets(targets, recorded)

        return tables

    def _targets(
        self,
        stage: str,
        teacher: str,
        epoch: int,
        program: Program,
        replicas: Sequence[Replica],
    ) -> Any:
        """Returns what the replicas read of one teacher, on the devices."""
        tables = tuple(self._plan.tables[stage, r.seed, teacher] for r in replicas)
        epoch = 0 if tables[0].stream is None else epoch
        if tables in self._held and self._held[tables][0] == epoch:
            return self._held[tables][1]
        self._held.pop(tables, None)
        structure = jax.tree.structure(program.step.target_specs[teacher])
        found: dict[BankEntry, Any] = {}  # replicas may share one
        for table, replica in zip(tables, replicas, strict=True):
            if table not in found:
                variables = replica.frozen[teacher]
                leaves = self._leaves(table, epoch, program, variables)
                found[table] = jax.tree.unflatten(structure, leaves)
        placed = program.stack_replicas([found[table] for table in tables])
        self._held[tables] = epoch, placed
        return placed

    def _recorded(
        self, teacher: str, epoch: int, program: Program, replicas: Sequence[Replica]
    ) -> jax.Array:
        """Returns what the replicas' teachers said in an epoch of their training."""
        shape = self._size, program.step.num_classes
        return program.stack_replicas(
            [
                recordings.read(self._store.folder(teacher, r.seed), epoch, shape)
                for r in replicas
            ]
        )

    def finished(self, stage: str, seed: int) -> None:
        """Forgets what nobody reads after a replica is done."""
        for table, waiting in list(self._waiting.items()):
            waiting.discard((stage, seed))
            if not waiting:
                del self._waiting[table]
                self._remove(table)
        self._held = {
            tables: held
            for tables, held in self._held.items()
            if all(table in self._waiting for table in tables)
        }

    def _remove(self, table: BankEntry) -> None:
        if parallel.is_first():
            shutil.rmtree(self._path(table), ignore_errors=True)

    def _path(self, table: BankEntry) -> Path:
        fingerprint = self._store.fingerprint(table.teacher, table.replica)
        stream = "plain" if table.stream is None else str(table.stream)
        return self._folder / f"{fingerprint}-{stream}-{table.read}"

    def _leaves(
        self, table: BankEntry, epoch: int, program: Program, variables: Variables
    ) -> list[np.ndarray]:
        """Returns a table's arrays `[N, ...]`, from the disk or the teacher."""
        shapes = program.step.target_specs[table.teacher]
        path = self._path(table) / f"epoch-{epoch:04d}.npz"
        found = self._read(table, path, shapes)
        last = len(self._waiting.get(table, ())) <= 1
        # What one process has to compute, all of them do.
        if parallel.agree(found is None):
            found = self._compute(table, epoch, program, variables)
            if (not last or table.stream is None) and parallel.is_first():
                self._write(table, path, found)
        assert found is not None
        if last and parallel.is_first():
            for earlier in sorted(path.parent.glob("epoch-*.npz")):
                if earlier < path:
                    earlier.unlink(missing_ok=True)
        return found

    def _compute(
        self, table: BankEntry, epoch: int, program: Program, variables: Variables
    ) -> list[np.ndarray]:
        read, size, stream = program.reader, self._size, table.stream or 0
        variables = parallel.place(variables, parallel.replicated(program.mesh))
        chunks = []
        for start in range(0, size, read.chunk):
            self._interrupt.raise_if_set()
            index = np.arange(start, start + read.chunk, dtype=np.int32) % size
            leaves = read(table.teacher, variables, index, stream, epoch)
            chunks.append([leaf[: size - start] for leaf in leaves])
        self.passes += 1
        return [np.concatenate(parts) for parts in zip(*chunks, strict=True)]

    def _about(self, table: BankEntry) -> dict[str, Any]:
        """Returns what the files of a table must have been made from."""
        return {
            "teacher": self._store.fingerprint(table.teacher, table.replica),
            "stream": table.stream,
            "read": table.read,
            "data": self._store.data,
        }

    def _read(
        self, table: BankEntry, path: Path, shapes: Any
    ) -> list[np.ndarray] | None:
        """Returns what a file holds, or None if there is no whole one."""
        if not path.exists():
            return None
        try:
            about = json.loads((path.parent / "bank.json").read_text())
        except (OSError, ValueError):
            return None
        for name, value in json.loads(json.dumps(self._about(table))).items():
            if about.get(name) != value:
                raise UserError(
                    f"{path.parent} is of another {name}: {about.get(name)!r}, not "
                    f"{value!r}; delete that folder"
                )
        expected = [(self._size, *leaf.shape[1:]) for leaf in jax.tree.leaves(shapes)]
        try:
            with np.load(path) as file:  # zip files carry checksums
                leaves = [file[f"arr_{i}"] for i in range(len(expected))]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None
        if [leaf.shape for leaf in leaves] != expected:
            return None
        return leaves

    def _write(self, table: BankEntry, path: Path, leaves: list[np.ndarray]) -> None:
        """Writes a table's epoch: whole, or not at all."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path.parent / "bank.json", self._about(table))
            with replace_whole(path) as temporary, open(temporary, "wb") as file:
                np.savez(file, *leaves)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise UserError(
                f"the bank cannot write {path}: {error.strerror}; "
                + ("free some space, or lower bank.max_gb" if full else "make it so")
            ) from error
