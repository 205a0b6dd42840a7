"""Tables whose rows come from kdjax and, by entry points, from other packages."""

import functools
import importlib.metadata
import sys
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any, TypeVar

from kdjax.runtime.errors import UserError

T = TypeVar("T")


@functools.cache
def _declared(
    group: str, path: tuple[str, ...]
) -> dict[str, importlib.metadata.EntryPoint]:
    """Returns a group's entry points by name; `path` is where packages are found."""
    del path
    points = importlib.metadata.entry_points(group=group)
    return {point.name: point for point in sorted(points, key=lambda point: point.name)}


class Registry(MutableMapping[str, T]):
    """Rows by name: a package's own, and those of an entry-point group.

    An entry point is imported when its row is first looked up; listing the names
    imports nothing. An entry point cannot replace one of the package's own rows.
    """

    def __init__(
        self,
        group: str,
        rows: Mapping[str, T],
        problem: Callable[[str, Any], str | None],
    ):
        """Makes the table.

        Args:
            group: of entry points, such as 'kdjax.methods'.
            rows: the package's own.
            problem: called with the name and the object of a loaded entry point;
                returns what is wrong with it, or None.
        """
        self._group, self._problem = group, problem
        self._rows: dict[str, T] = dict(rows)
        self._outside: dict[importlib.metadata.EntryPoint, T] = {}

    def _points(self) -> dict[str, importlib.metadata.EntryPoint]:
        return _declared(self._group, tuple(sys.path))

    def __getitem__(self, name: str) -> T:
        """Returns a row.

        Raises:
            KeyError: there is no row of that name.
            UserError: the row is an entry point that cannot be loaded.
        """
        if name in self._rows:
            return self._rows[name]
        point = self._points()[name]
        if point not in self._outside:
            self._outside[point] = self._load(point)
        return self._outside[point]

    def _load(self, point: importlib.metadata.EntryPoint) -> T:
        where = f"entry point {point.name!r} of {self._group} ({point.value})"
        try:
            value = point.load()
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise UserError(f"{where} cannot be loaded: {reason}") from error
        if problem := self._problem(point.name, value):
            raise UserError(f"{where} {problem}")
        return value

    def loaded(self) -> dict[str, T]:
        """Returns the package's own rows and those that were looked up so far."""
        outside = {point.name: row for point, row in self._outside.items()}
        return {**outside, **self._rows}

    def outside(self) -> list[str]:
        """Returns the names of the rows that other packages add."""
        return [name for name in self._points() if name not in self._rows]

    def __setitem__(self, name: str, row: T) -> None:
        self._rows[name] = row

    def __delitem__(self, name: str) -> None:
        del self._rows[name]

    def __contains__(self, name: object) -> bool:
        return name in self._rows or name in self._points()

    def __iter__(self) -> Iterator[str]:
        yield from self._rows
        yield from self.outside()

    def __len__(self) -> int:
        return len(self._rows) + len(self.outside())
