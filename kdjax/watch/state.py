"""How far an experiment is, read from its working folder alone."""

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdjax.report import history
from kdjax.runtime.errors import UserError
from kdjax.runtime.files import read_checked_json

SILENT = 600.0
"""Seconds without a sign of life after which a replica no longer counts as training."""


@dataclasses.dataclass(frozen=True)
class Replica:
    """How far one seed of a stage is.

    Attributes:
        state: 'finished', 'training', 'stopped' or 'waiting'.
        records: of its epochs so far.
        epochs: in all.
        silent: seconds since it last wrote something; None if it is not begun.
    """

    state: str
    records: Sequence[dict[str, Any]]
    epochs: int
    silent: float | None

    @property
    def done(self) -> int:
        """The epochs that are done."""
        if self.state == "finished":
            return self.epochs
        return int(self.records[-1]["epoch"]) if self.records else 0

    @property
    def seconds_per_epoch(self) -> float | None:
        """Of training, without compilation; None if no epoch is done."""
        if not self.records:
            return None
        return float(self.records[-1]["seconds"]) / float(self.records[-1]["epoch"])

    def curve(self, name: str) -> list[float]:
        """Returns a figure of all epochs that have it."""
        return [r[name] for r in self.records if r.get(name) is not None]


@dataclasses.dataclass(frozen=True)
class Stage:
    """How far a stage is.

    Attributes:
        name: the stage's.
        method: how it learns.
        model: what is trained.
        teachers: the stages that teach it.
        replicas: its seeds.
    """

    name: str
    method: str
    model: str
    teachers: tuple[str, ...]
    replicas: tuple[Replica, ...]

    def seconds_left(self) -> float | None:
        """Returns how long it still trains; None if no seed tells its speed."""
        speeds = [replica.seconds_per_epoch for replica in self.replicas]
        known = [speed for speed in speeds if speed is not None]
        left = 0.0
        for replica, own in zip(self.replicas, speeds, strict=True):
            missing = replica.epochs - replica.done
            speed = own if own is not None else max(known, default=None)
            if missing and speed is None:
                return None
            left += missing * (speed or 0.0)
        return left


def read(workdir: Path) -> list[Stage]:
    """Returns the stages of the experiment in a working folder, teachers first.

    Args:
        workdir: the folder.

    Raises:
        UserError: no such folder, or nothing has begun in it.
    """
    if not workdir.is_dir():
        raise UserError(f"{workdir} not found: no such working folder")
    plan = workdir / "experiment.json"
    if plan.exists():
        try:
            planned = json.loads(plan.read_text())["stages"]
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{plan} cannot be read: {error!r}") from error
        return [_planned(workdir, name, stage) for name, stage in planned.items()]
    stages = _begun(workdir)
    if not stages:
        raise UserError(f"nothing has begun in {workdir}; python -m kdjax.main runs it")
    return stages


def _planned(workdir: Path, name: str, stage: dict[str, Any]) -> Stage:
    folders = []
    for fingerprint in stage["fingerprint"]:
        # Another config may have given the replica another name.
        found = sorted((workdir / "stages").glob(f"*-{fingerprint}"))
        folders.append(found[0] if found else None)
    return Stage(
        name=name,
        method=stage["method"],
        model=stage["model"],
        teachers=tuple(stage["teachers"]),
        replicas=tuple(_replica(folder, stage["epochs"]) for folder in folders),
    )


def _begun(workdir: Path) -> list[Stage]:
    """Returns the stages that have a folder: of runs that left no plan behind."""
    groups: dict[str, list[tuple[Path, dict[str, Any]]]] = {}
    names: dict[str, str] = {}
    for path in sorted((workdir / "stages").glob("*/stage.json")):
        try:
            settings = read_checked_json(path)
        except (OSError, ValueError):
            continue  # it is being written
        name, _, fingerprint = path.parent.name.rpartition("-")
        names[fingerprint] = name
        groups.setdefault(name, []).append((path.parent, settings))
    stages = []
    for name, members in groups.items():
        settings = members[0][1]
        epochs = settings.get("recipe", {}).get("epochs", 0)
        stages.append(
            Stage(
                name=name,
                method=settings.get("method", {}).get("name", "given"),
                model=settings["roles"]["student"]["model"],
                teachers=tuple(names.get(t, t) for t in settings.get("teachers", ())),
                replicas=tuple(_replica(folder, epochs) for folder, _ in members),
            )
        )
    return _teachers_first(stages)


def _teachers_first(stages: Sequence[Stage]) -> list[Stage]:
    by_name = {stage.name: stage for stage in stages}
    ordered: dict[str, Stage] = {}

    def visit(stage: Stage) -> None:
        for teacher in stage.teachers:
            if teacher in by_name and teacher not in ordered and teacher != stage.name:
                visit(by_name[teacher])
        ordered[stage.name] = stage

    for stage in stages:
        if stage.name not in ordered:
            visit(stage)
    return list(ordered.values())


def _replica(folder: Path | None, epochs: int) -> Replica:
    if folder is None:
        return Replica("waiting", (), epochs, None)
    records = history.read(folder)
    if (folder / "result.json").exists():
        return Replica("finished", records, epochs, None)
    signs = [folder / "stage.json", folder / "metrics.jsonl", folder / "checkpoints"]
    times = [path.stat().st_mtime for path in signs if path.exists()]
    silent = max(0.0, time.time() - max(times, default=0.0))
    state = "training" if silent < SILENT else "stopped"
    return Replica(state, records, epochs, silent)
