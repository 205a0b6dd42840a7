"""Reads runs: working folders stage by stage, and files of results."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdjax.data.sources import SOURCES
from kdjax.report import lineage, method_table
from kdjax.report.runs import STUDENT, Network, Run, Stage
from kdjax.runtime.errors import UserError
from kdjax.runtime.files import read_checked_json

_FIGURES = {"accuracy": "test_accuracy", "top5": "test_top5", "loss": "test_loss"}


def read(paths: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """Returns the runs at some places, and lines about what was passed over.

    Args:
        paths: working folders, files such as `results.json`, or folders of such files.

    Raises:
        UserError: a path that is not there, or no finished stage at all.
    """
    runs: list[Run] = []
    notes: list[str] = []
    for path in paths:
        if not path.exists():
            raise UserError(f"{path} not found: no such working folder or file")
        for place in _places(path):
            run = _read(place, _name(place, paths, [run.name for run in runs]))
            if run is None:
                notes.append(f"{place} passed over: it holds no experiment's results")
            elif run.stages:
                runs.append(run)
            else:
                notes.append(f"{place} passed over: no stage is finished")
    if not runs:
        raise UserError(
            f"no finished stages in {', '.join(map(str, paths))}; python -m kdjax.main "
            "trains them"
        )
    return runs, notes


def _places(path: Path) -> list[Path]:
    """Returns a working folder or a file itself, or the files of a folder of them."""
    if path.is_file() or (path / "stages").is_dir():
        return [path]
    return sorted(path.rglob("*.json")) or [path]


def _name(path: Path, paths: Sequence[Path], taken: Sequence[str]) -> str:
    """Returns the end of a path: as much of it as tells it from the others."""
    name = path.stem if path.suffix == ".json" else path.resolve().name
    alike = [p for p in paths if p.name == path.name]
    several = len(alike) > 1 or path not in paths
    parent = path.resolve().parent.name
    full = f"{parent}/{name}" if several and parent else name
    return full if full not in taken else f"{full} ({len(taken) + 1})"


def _read(path: Path, name: str) -> Run | None:
    if path.is_dir():
        file = path / "results.json"
        found = _json(file) if file.exists() else {}
        return Run(name, path, _of_folders(path / "stages", found), found)
    results = _json(path)
    if method_table.is_one(results):
        results = method_table.as_results(results)
    stages, config = results.get("stages"), results.get("config")
    if not isinstance(stages, dict) or not isinstance(config, dict):
        return None
    if not all("test_accuracy" in stage for stage in stages.values()):
        return None
    return Run(name, path, _of_results(results), results)


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    return value if isinstance(value, dict) else {}


def _of_folders(folder: Path, results: Mapping[str, Any]) -> dict[str, Stage]:
    """Returns the finished stages of a working folder, of all its commands."""
    found: dict[str, tuple[Path, dict[str, Any], dict[str, Any]]] = {}
    for path in sorted(folder.glob("*/result.json")):
        try:
            settings = read_checked_json(path.parent / "stage.json")
            result = read_checked_json(path)
        except (OSError, ValueError) as error:
            raise UserError(f"{path.parent} cannot be read: {error}") from error
        if any(net["test_accuracy"] is None for net in result["networks"].values()):
            continue  # predictions alone were given: there is no network
        found[path.parent.name.rpartition("-")[2]] = path.parent, settings, result

    keys: dict[str, str] = {}

    def key(fingerprint: str) -> str:
        """Returns what a replica shares with those of other seeds."""
        if fingerprint not in found:
            return fingerprint
        if fingerprint not in keys:
            path, settings, _ = found[fingerprint]
            shared = {k: v for k, v in settings.items() if k not in ("seed", "kdjax")}
            shared["teachers"] = [key(one) for one in settings.get("teachers", ())]
            text = json.dumps([_stage_name(path), shared], sort_keys=True)
            keys[fingerprint] = hashlib.sha256(text.encode()).hexdigest()
        return keys[fingerprint]

    groups: dict[str, list[str]] = {}
    for fingerprint in found:
        groups.setdefault(key(fingerprint), []).append(fingerprint)
    order = _order(groups, found, key, list(results.get("stages", ())))
    names = _unique([_stage_name(found[groups[one][0]][0]) for one in order])
    named = dict(zip(order, names, strict=True))
    stages: dict[str, Stage] = {}
    for one, name in named.items():
        members = sorted(groups[one], key=lambda f: found[f][1].get("seed", 0))
        path, settings, first = found[members[0]]
        networks = {
            role: Network(
                model=net["model"],
                parameters=net["parameters"],
                **{
                    field: tuple(found[f][2]["networks"][role][k] for f in members)
                    for field, k in _FIGURES.items()
                },
            )
            for role, net in first["networks"].items()
        }
        method = dict(settings.get("method", {"name": "given"}))
        data = settings["data"]
        stages[name] = _stage(
            stages,
            name=name,
            method=method.pop("name"),
            options=method,
            teachers=tuple(
                named.get(key(one), one) for one in settings.get("teachers", ())
            ),
            networks=networks,
            seeds=tuple(found[f][1].get("seed", 0) for f in members),
            folders=tuple(found[f][0] for f in members),
            epochs=int(first.get("epochs", 0)),
            dataset=data["name"],
            train_images=data["train_size"],
            test_images=data["test_size"],
            settings=settings,
        )
    return stages


def _stage_name(folder: Path) -> str:
    return folder.name.rpartition("-")[0]


def _order(groups: Any, found: Any, key: Any, listed: list[str]) -> list[str]:
    """Returns the groups with teachers first, otherwise as `results.json` has them."""

    def rank(one: str) -> tuple[int, str]:
        name = _stage_name(found[groups[one][0]][0])
        return (listed.index(name) if name in listed else len(listed)), name

    order: list[str] = []

    def visit(one: str) -> None:
        if one in order:
            return
        for teacher in found[groups[one][0]][1].get("teachers", ()):
            if key(teacher) in groups:
                visit(key(teacher))
        order.append(one)

    for one in sorted(groups, key=rank):
        visit(one)
    return order


def _unique(names: Sequence[str]) -> list[str]:
    """Returns names with a number after those that came before."""
    return [
        name if (count := names[:i].count(name)) == 0 else f"{name} ({count + 1})"
        for i, name in enumerate(names)
    ]


def _of_results(results: Mapping[str, Any]) -> dict[str, Stage]:
    """Returns the stages of a file of results, whose networks are not at hand."""
    config = results["config"]
    data = {**config["data"], **results.get("data", {})}
    source = SOURCES.get(data["name"])
    stages: dict[str, Stage] = {}
    for name, stage in results["stages"].items():
        if None in stage["test_accuracy"]["final"]:
            continue  # predictions alone were given: there is no network
        settings = config["stages"].get(name, {})
        nets = {STUDENT: stage, **stage.get("others", {})}
        recipe = {**config["recipe"], **settings.get("recipe", {})}
        stages[name] = _stage(
            stages,
            name=name,
            method=stage["method"],
            options={k: v for k, v in settings.items() if isinstance(v, dict)},
            teachers=tuple(stage["teachers"]),
            networks={
                role: Network(
                    model=net["model"],
                    parameters=net["parameters"],
                    accuracy=tuple(net["test_accuracy"]["final"]),
                    top5=tuple(net["test_top5"]["final"]),
                    loss=tuple(net["test_loss"]),
                )
                for role, net in nets.items()
            },
            seeds=tuple(range(len(stage["test_accuracy"]["final"]))),
            folders=(),
            epochs=recipe["epochs"],
            dataset=data["name"],
            train_images=data["train_size"] or (source.train_size if source else 0),
            test_images=data["test_size"] or (source.test_size if source else 0),
            settings={**settings, "recipe": recipe, "data": data},
        )
    # Those without accuracies are known as teachers only.
    return {name: stage for name, stage in stages.items() if stage.student.accuracy}


def _stage(
    before: Mapping[str, Stage],
    *,
    method: str,
    options: Mapping[str, Mapping[str, Any]],
    teachers: tuple[str, ...],
    networks: Mapping[str, Network],
    **fields: Any,
) -> Stage:
    """Returns a stage with its lineage, from the stages before it."""
    known = [before[name] for name in teachers if name in before]
    ancestors = _ancestors(before, teachers)
    return Stage(
        kind=lineage.kind(method, options, any(stage.teachers for stage in known)),
        path=lineage.path(
            networks[STUDENT].model,
            [stage.path for stage in known],
            [before[name].student.model for name in ancestors],
        ),
        teachers=teachers,
        networks=networks,
        **fields,
    )


def _ancestors(before: Mapping[str, Stage], teachers: Iterable[str]) -> list[str]:
    wanted: set[str] = set()
    queue = list(teachers)
    while queue:
        name = queue.pop()
        if name in before and name not in wanted:
            wanted.add(name)
            queue += before[name].teachers
    return [name for name in before if name in wanted]
