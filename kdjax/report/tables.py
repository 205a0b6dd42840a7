"""The papers' tables with a run's figures beside them."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from kdjax.report import papers
from kdjax.report.papers import Row, Table
from kdjax.report.runs import Network, Run, Stage
from kdjax.report.statistics import Spread, spread


@dataclasses.dataclass(frozen=True)
class Cell:
    """One network's figures in per cent, with where they come from.

    Attributes:
        figures: of all seeds.
        links: by seed, of the replica's folder; or of the file of results.
        anchor: of the stage on the page, where its settings are.
        stage: the stage's name.
        smaller: in words, where the run was smaller than the paper's.
    """

    figures: Spread
    links: tuple[str, ...]
    anchor: str
    stage: str
    smaller: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Line:
    """One number of a paper, and by run what stands beside it."""

    row: Row
    cells: tuple[tuple[Cell, ...], ...]


@dataclasses.dataclass(frozen=True)
class Filled:
    """A paper's table of which the runs have at least one row."""

    table: Table
    runs: tuple[Run, ...]
    lines: tuple[Line, ...]

    def smaller_throughout(self, column: int) -> tuple[str, ...]:
        """Returns where all figures of a run's column were smaller than the paper's.

        Empty where they differ in that: then every figure says it for itself.
        """
        marks = {cell.smaller for line in self.lines for cell in line.cells[column]}
        return marks.pop() if len(marks) == 1 else ()

    @property
    def smaller(self) -> bool:
        """Whether some run was smaller than the paper's."""
        cells = (cell for line in self.lines for cells in line.cells for cell in cells)
        return any(cell.smaller for cell in cells)


def fill(runs: Sequence[Run], out: Path) -> list[Filled]:
    """Returns the papers' tables that the runs cover, at least in part.

    Args:
        runs: in the order of the columns.
        out: the report's folder, from which links lead.
    """
    filled = []
    for table in papers.tables():
        columns = [
            run for run in runs if any(_stages(run, table, r) for r in table.rows)
        ]
        if not columns:
            continue
        lines = tuple(
            Line(
                row,
                tuple(
                    tuple(_cell(table, run, s, out) for s in _stages(run, table, row))
                    for run in columns
                ),
            )
            for row in table.rows
        )
        filled.append(Filled(table, tuple(columns), lines))
    return filled


def _stages(run: Run, table: Table, row: Row) -> list[Stage]:
    """Returns the stages of a run that belong into a row."""
    return [
        stage
        for stage in run.stages.values()
        if stage.dataset == table.dataset
        and (stage.kind, stage.path) == (row.kind, row.path)
    ]


def _cell(table: Table, run: Run, stage: Stage, out: Path) -> Cell:
    network = stage.student
    values = network.top5 if table.metric == "test_top5" else network.accuracy
    return Cell(
        figures=spread([100 * value for value in values]),
        links=links(run, stage, out),
        anchor=anchor(run, stage),
        stage=stage.name,
        smaller=smaller(table, stage),
    )


def smaller(table: Table, stage: Stage) -> tuple[str, ...]:
    """Returns in words where a run was smaller than the paper's."""
    found = []
    if stage.epochs < table.epochs:
        found.append(f"{stage.epochs} of {table.epochs} epochs")
    if stage.train_images < table.train_images:
        found.append(f"{stage.train_images:,} of {table.train_images:,} images")
    if len(stage.seeds) < table.seeds:
        count = len(stage.seeds)
        found.append(f"{count} of {table.seeds} seeds")
    return tuple(found)


def accuracy(run: Run, stage: Stage, network: Network, out: Path) -> Cell:
    """Returns the accuracy of one of a stage's networks.

    Args:
        run: the stage's.
        stage: which it is.
        network: one of its networks.
        out: the report's folder.
    """
    return Cell(
        figures=spread([100 * value for value in network.accuracy]),
        links=links(run, stage, out),
        anchor=anchor(run, stage),
        stage=stage.name,
    )


def anchor(run: Run, stage: Stage) -> str:
    """Returns the name by which the page links to a stage's settings."""
    words = "".join(c if c.isalnum() else "-" for c in f"{run.name}--{stage.name}")
    return f"stage-{words}"


def links(run: Run, stage: Stage, out: Path) -> tuple[str, ...]:
    """Returns links from the page to a stage's replicas."""
    if stage.folders:
        return tuple(f"{link(folder, out)}/" for folder in stage.folders)
    return (link(run.path, out),) * len(stage.seeds)


def link(path: Path, out: Path) -> str:
    """Returns the link from the report's folder to a file or folder."""
    return quote(Path(os.path.relpath(path.resolve(), out.resolve())).as_posix())
