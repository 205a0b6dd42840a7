"""The two papers' tables, from the file that holds every number."""

import dataclasses
import functools
import tomllib
from importlib import resources
from typing import Any


@dataclasses.dataclass(frozen=True)
class Row:
    """One number of a table.

    Attributes:
        row: its row, in the paper's words.
        column: its column, likewise.
        value: the accuracy in per cent.
        kind: how the network is taught, see `lineage.kind`.
        path: by whom, see `lineage.path`.
        params: the paper's number of parameters, in millions; empty: not given.
    """

    row: str
    column: str
    value: float
    kind: str
    path: str
    params: str = ""


@dataclasses.dataclass(frozen=True)
class Table:
    """One table of a paper, or the part of it that one data set fills.

    Attributes:
        paper: CTKD or DGKD.
        name: such as 'Table I'.
        title: what it compares.
        dataset: the data set's name.
        epochs: of training.
        train_images: how many there are.
        seeds: the number of runs of which it reports the median; 0: not stated.
        rows: the numbers, in the paper's order.
        metric: which of a network's figures it reports.
        note: what a reader must know of it.
    """

    paper: str
    name: str
    title: str
    dataset: str
    epochs: int
    train_images: int
    seeds: int
    rows: tuple[Row, ...]
    metric: str = "test_accuracy"
    note: str = ""


@functools.cache
def tables() -> tuple[Table, ...]:
    """Returns all tables of both papers, in order."""
    text = (resources.files("kdjax.report") / "papers.toml").read_text("utf-8")
    return tuple(_table(entry) for entry in tomllib.loads(text)["table"])


def _table(entry: dict[str, Any]) -> Table:
    rows = tuple(Row(**row) for row in entry.pop("rows"))
    return Table(rows=rows, **entry)
