"""What a command would do, without training: `--dry-run`."""

import contextlib
import itertools
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from rich.table import Table

from kdjax import models
from kdjax.data import sources
from kdjax.data.sources import Source
from kdjax.data.streaming.dataset import Images
from kdjax.experiment.bank_plan import without_bank
from kdjax.experiment.build import open_data
from kdjax.experiment.config import Experiment, ancestry
from kdjax.experiment.given_stages import with_images
from kdjax.experiment.run import show_note
from kdjax.experiment.stage import Stage
from kdjax.experiment.stage_programs import StagePrograms, shapes_of
from kdjax.experiment.store import Store
from kdjax.runtime.console import console
from kdjax.runtime.errors import UserError
from kdjax.runtime.files import check_folder


def show(experiment: Experiment, workdir: Path, only: Collection[str] = ()) -> None:
    """Prints the graph: what exists, what would run, parameters, passes, the bank.

    Args:
        experiment: what would run.
        workdir: looked into, but not written.
        only: as for `Run.run`.

    Raises:
        UserError: what a run would refuse before it trains.
    """
    check_folder(workdir, "workdir")
    stages = ancestry(experiment, only)
    images: Images | Source
    store = None
    try:
        images = open_data(experiment)
        store = Store(with_images(experiment, images), images, workdir)
    except UserError as error:
        images = sources.expected(**experiment.data)
        console.print(f"{error}; the sizes below are the published ones", markup=False)
    experiment = with_images(experiment, images)
    stages = ancestry(experiment, only)
    wide = experiment.precision == "float64"
    with jax.enable_x64(True) if wide else contextlib.nullcontext():
        programs = StagePrograms(experiment, images, shapes_of(images), store)
        programs.check(stages)
    show_note(experiment)
    steps, planned = programs.steps, programs.plan
    table = Table(title=f"{experiment.data['name']}, {images.train_size:,} images")
    for name in ("stage", "method", "network"):
        table.add_column(name)
    table.add_column("parameters", justify="right")
    table.add_column("taught by (* from the bank)")
    table.add_column("epochs", justify="right")
    table.add_column("seeds there", justify="right")
    table.add_column("to run", justify="right")
    for name, stage in stages.items():
        finished = sum(
            store is not None and store.result(name, seed) is not None
            for seed in range(stage.seeds)
        )
        for role, model in steps[name].roles.items():
            student = role == "student"
            leaves = jax.tree.leaves(steps[name].shapes()[role]["params"])
            taught = [t + "*" * (t in planned.banked[name]) for t in stage.teachers]
            row: list[Any] = [
                name if student else f"{name}/{role}",
                stage.method_name if student else "",
                models.inner(model),
                f"{sum(leaf.size for leaf in leaves):,}",
            ]
            if student:
                row += [" ".join(taught), stage.epochs, finished]
                row.append(stage.seeds - finished)
            table.add_row(*map(str, row))
    console.print(table)
    _show_levels(stages, images)
    with_bank, without = planned.passes(experiment), without_bank(experiment)
    console.print(
        f"teacher passes of the whole graph, in epochs: {with_bank:,}; "
        f"{without:,} with every teacher in every step",
        markup=False,
    )
    console.print(
        f"bank: {len(planned.epochs)} tables, {planned.size / 1e9:.3g} GB at the most "
        f"(bank.max_gb={experiment.bank.max_gb:g})"
        + "".join(f"; {name} would not fit" for name in planned.too_large),
        markup=False,
    )


def _show_levels(stages: Mapping[str, Stage], images: Images | Source) -> None:
    """Prints which parts of PyTorch's networks can be levels, by module path."""
    names = {
        models.inner(model): model
        for stage in stages.values()
        for model in stage.method.roles(stage.model).values()
    }
    for name, model in names.items():
        if models.torch_network(name, images.num_classes) is None:
            continue
        # As it sees the images: in a size of its own, perhaps.
        paths = models.parts(model, images.num_classes, images.image_shape)
        console.print(f"levels of {name}: {_outline(paths)}", markup=False)


def _outline(paths: Sequence[str]) -> str:
    """Returns the outermost of a network's parts, and how many are inside of them.

    Of a sequence, such as blocks, its numbered parts are listed too.
    """
    known = set(paths)
    outermost = {p for p in paths if not any(a in known for a in _ancestors(p))}
    outer = [p for p in paths if {p, _parent_of_numbered(p)} & outermost]
    words = []
    # Numbered neighbours, such as blocks.0 to blocks.15, take one word.
    for parent, group in itertools.groupby(outer, key=_parent_of_numbered):
        members = list(group)
        if parent and len(members) > 2:
            members = [f"{members[0]} to {members[-1]}"]
        words += members
    inner = [path for path in paths if path not in set(outer)]
    middle = inner[len(inner) // 2] if inner else ""
    more = f"; {len(inner)} inside them, such as {middle}" if inner else ""
    return ", ".join(words) + more


def _ancestors(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[:depth]) for depth in range(1, len(parts))]


def _parent_of_numbered(path: str) -> str:
    parent, _, last = path.rpartition(".")
    return parent if last.isdigit() else ""
