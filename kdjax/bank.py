"""The bank: what frozen teachers say over the training stream, computed once.

The stream is a pure function, so a teacher's outputs over it are one of (teacher,
stream, epoch, index). They are kept in float16 in `<workdir>/bank`, a file for every
epoch, from the first stage that reads them to the last.
"""

import errno
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from kdjax.errors import UserError
from kdjax.files import write_json
from kdjax.interrupt import Interrupt
from kdjax.keys import fold
from kdjax.models import Variables
from kdjax.plan import Plan, Table
from kdjax.program import Program
from kdjax.store import Store


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
        self._held: dict[Table, tuple[int, list[jax.Array]]] = {}
        self._waiting: dict[Table, set[tuple[str, int]]] = {}
        for (stage, seed, _), table in plan.tables.items():
            if store.result(stage, seed) is None:
                self._waiting.setdefault(table, set()).add((stage, seed))
        for table in plan.epochs:
            if table not in self._waiting:
                shutil.rmtree(self._path(table), ignore_errors=True)
        self.passes = 0

    def reader(
        self, stage: str, seed: int, program: Program, frozen: Mapping[str, Variables]
    ) -> Callable[[int], dict[str, Any]]:
        """Returns the function from an epoch to the tables that a replica reads.

        Args:
            stage: of the replica.
            seed: of the replica.
            program: the stage's.
            frozen: the teachers' variables.
        """

        def tables(epoch: int) -> dict[str, Any]:
            found = {}
            for teacher in program.banked:
                table = self._plan.tables[stage, seed, teacher]
                leaves = self._leaves(table, epoch, program, frozen[teacher])
                shapes = program.step.target_shapes[teacher]
                found[teacher] = jax.tree.unflatten(jax.tree.structure(shapes), leaves)
            return found

        return tables

    def finished(self, stage: str, seed: int) -> None:
        """Forgets what nobody reads after a replica is done."""
        for table, waiting in list(self._waiting.items()):
            waiting.discard((stage, seed))
            if not waiting:
                del self._waiting[table]
                shutil.rmtree(self._path(table), ignore_errors=True)
        self._held = {t: held for t, held in self._held.items() if t in self._waiting}

    def _path(self, table: Table) -> Path:
        fingerprint = self._store.fingerprint(table.teacher, table.replica)
        stream = "plain" if table.stream is None else str(table.stream)
        return self._folder / f"{fingerprint}-{stream}-{table.read}"

    def _leaves(
        self, table: Table, epoch: int, program: Program, variables: Variables
    ) -> list[jax.Array]:
        """Returns a table's arrays `[N, ...]`, from memory, the disk or the teacher."""
        epoch = 0 if table.stream is None else epoch
        if table in self._held and self._held[table][0] == epoch:
            return self._held[table][1]
        self._held.pop(table, None)
        shapes = program.step.target_shapes[table.teacher]
        path = self._path(table) / f"epoch-{epoch:04d}.npz"
        found = self._read(table, path, shapes)
        last = len(self._waiting.get(table, ())) <= 1
        if found is None:
            found = self._compute(table, epoch, program, variables)
            if not last or table.stream is None:
                self._write(table, path, found)
        if last:
            for earlier in sorted(path.parent.glob("epoch-*.npz")):
                if earlier < path:
                    earlier.unlink(missing_ok=True)
        leaves = program.place(found)
        self._held[table] = epoch, leaves
        return leaves

    def _compute(
        self, table: Table, epoch: int, program: Program, variables: Variables
    ) -> list[np.ndarray]:
        size, chunk = program.stream.size, program.chunk
        key = fold(jax.random.key(table.stream or 0), "stream", epoch, "augment")
        key, variables = program.place((key, variables))
        chunks = []
        for start in range(0, size, chunk):
            self._interrupt.raise_if_set()
            index = np.arange(start, start + chunk, dtype=np.int32) % size
            leaves = program.read(table.teacher, variables, index, key)
            chunks.append([np.asarray(leaf)[: size - start] for leaf in leaves])
        self.passes += 1
        return [np.concatenate(parts) for parts in zip(*chunks, strict=True)]

    def _about(self, table: Table) -> dict[str, Any]:
        """Returns what the files of a table must have been made from."""
        return {
            "teacher": self._store.fingerprint(table.teacher, table.replica),
            "stream": table.stream,
            "read": table.read,
            "data": self._store.data,
        }

    def _read(self, table: Table, path: Path, shapes: Any) -> list[np.ndarray] | None:
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

    def _write(self, table: Table, path: Path, leaves: list[np.ndarray]) -> None:
        """Writes a table's epoch: whole, or not at all."""
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path.parent / "bank.json", self._about(table))
            with open(temporary, "wb") as file:
                np.savez(file, *leaves)
            os.replace(temporary, path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise UserError(
                f"the bank cannot write {path}: {error.strerror}; "
                + ("free some space, or lower bank.max_gb" if full else "make it so")
            ) from error
