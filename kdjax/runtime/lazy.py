"""Mappings whose values are made when they are first asked for."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

Value = TypeVar("Value")


class Lazy(Mapping[str, Value]):
    """Values by name, each of which is made when it is first asked for."""

    def __init__(self, names: Iterable[str], make: Callable[[str], Value]):
        self._names, self._make = tuple(names), functools.cache(make)

    def __getitem__(self, name: str) -> Value:
        if name not in self._names:
            raise KeyError(name)
        return self._make(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
