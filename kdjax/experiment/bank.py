"""The bank: frozen teachers' targets over the training stream, computed once.

The stream is a pure function, so a teacher's outputs over it are one of (teacher,
stream, epoch, position). They are kept in `<workdir>/bank`, a file for every epoch,
from the first stage that reads them to the last; in float16, but those of float64 runs.
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
from kdjax.runtime import parallel
from kdjax.runtime.errors import UserError
from kdjax.runtime.files import replace_whole, write_json
from kdjax.train import rounding

Compute = Callable[[int, int], list[np.ndarray]]
"""Returns a teacher's targets from the seed of a stream and an epoch: arrays `[N, ...]`
as they are stored, on the host."""


class Bank:
    """The teachers' targets of one run: it stores what others compute and place.

    Attributes:
        passes: how many epochs of a teacher have been computed.
    """

    def __init__(self, folder: Path, plan: Plan, store: Store):
        """Removes what no unfinished replica reads; makes nothing yet.

        Args:
            folder: for the files.
            plan: who reads what.
            store: knows finished replicas and the teachers' fingerprints.
        """
        self._folder, self._plan, self._store = folder, plan, store
        self._waiting: dict[BankEntry, set[tuple[str, int]]] = {}
        for (stage, seed, _), entry in plan.entries.items():
            if store.result(stage, seed) is None:
                self._waiting.setdefault(entry, set()).add((stage, seed))
        for entry in plan.epochs:
            waits = entry in self._waiting
            self._remove(entry, keep=self._path(entry) if waits else None)
        self.passes = 0

    def entry(self, stage: str, seed: int, teacher: str) -> BankEntry:
        """Returns what a replica of a stage reads of a teacher."""
        return self._plan.entries[stage, seed, teacher]

    def load(
        self,
        entry: BankEntry,
        epoch: int,
        specs: Sequence[jax.ShapeDtypeStruct],
        compute: Compute,
    ) -> list[np.ndarray]:
        """Returns an entry's targets in an epoch, from the disk or computed now.

        Args:
            entry: whose targets.
            epoch: counted from 0.
            specs: shapes and dtypes of the arrays.
            compute: called where there is no whole file.

        Raises:
            UserError: the folder is another entry's, or the disk is full.
        """
        epoch = entry.stored_epoch(epoch)
        path = self._path(entry) / f"epoch-{epoch:04d}.npz"
        leaves = self._read(entry, path, specs)
        last = len(self._waiting.get(entry, ())) <= 1
        # What one process has to compute, all of them do.
        if parallel.agree(leaves is None):
            leaves = compute(entry.stream or 0, epoch)
            self.passes += 1
            # The last reader needs no file, unless it reads the same one every epoch.
            if (not last or entry.stream is None) and parallel.is_first():
                self._write(entry, path, leaves)
        assert leaves is not None
        if last and parallel.is_first():
            for earlier in sorted(path.parent.glob("epoch-*.npz")):
                if earlier < path:
                    _discard(earlier)
        return leaves

    def finished(self, stage: str, seed: int) -> None:
        """Removes what no replica reads any more once this one is done."""
        for entry, waiting in list(self._waiting.items()):
            waiting.discard((stage, seed))
            if not waiting:
                del self._waiting[entry]
                self._remove(entry)

    def _remove(self, entry: BankEntry, keep: Path | None = None) -> None:
        """Removes an entry, also as other versions of the library stored it.

        Args:
            entry: whose files.
            keep: a folder that stays.
        """
        if not parallel.is_first():
            return
        name, _, _ = self._path(entry).name.rpartition("-")
        for folder in self._folder.glob(f"{name}*"):
            if folder != keep:
                shutil.rmtree(folder, ignore_errors=True)

    def _path(self, entry: BankEntry) -> Path:
        fingerprint = self._store.fingerprint(entry.teacher, entry.replica)
        stream = "plain" if entry.stream is None else str(entry.stream)
        name = f"{fingerprint}-{stream}-{entry.target_id}-{rounding.VERSION}"
        return self._folder / name

    def _about(self, entry: BankEntry) -> dict[str, Any]:
        """Returns what the files of an entry must have been made from: 'bank.json'."""
        return {
            "teacher": self._store.fingerprint(entry.teacher, entry.replica),
            "stream": entry.stream,
            "read": entry.target_id,
            "data": self._store.data,
        }

    def _read(
        self, entry: BankEntry, path: Path, specs: Sequence[jax.ShapeDtypeStruct]
    ) -> list[np.ndarray] | None:
        """Returns what a file holds, or None if there is no whole one."""
        if not path.exists():
            return None
        try:
            about = json.loads((path.parent / "bank.json").read_text())
        except (OSError, ValueError):
            return None
        if not isinstance(about, dict):
            return None
        for name, value in json.loads(json.dumps(self._about(entry))).items():
            if about.get(name) != value:
                raise UserError(
                    f"{path.parent} is of another {name}: {about.get(name)!r}, not "
                    f"{value!r}; delete that folder"
                )
        try:
            with np.load(path) as file:  # zip files carry checksums
                leaves = [file[f"arr_{i}"] for i in range(len(specs))]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None
        for leaf, spec in zip(leaves, specs, strict=True):
            # Earlier versions stored float64 runs' in float16.
            if (leaf.shape, leaf.dtype) != (spec.shape, spec.dtype):
                return None
        return leaves

    def _write(self, entry: BankEntry, path: Path, leaves: list[np.ndarray]) -> None:
        """Writes an entry's epoch: whole, or not at all."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            about = path.parent / "bank.json"
            for place in (about, path):
                if place.is_dir():
                    _discard(place)
            write_json(about, self._about(entry))
            with replace_whole(path) as temporary, open(temporary, "wb") as file:
                np.savez(file, *leaves)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise UserError(
                f"the bank cannot write {path}: {error.strerror}; "
                + ("free some space, or lower bank.max_gb" if full else "make it so")
            ) from error


def _discard(path: Path) -> None:
    """Removes a file of the bank, or the folder that stands in its place."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
