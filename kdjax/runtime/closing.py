"""A base class for objects that are closed at the end of a `with` block."""

import abc
from types import TracebackType
from typing import Self


class Closing(abc.ABC):
    """A context manager that closes itself at the end, also after an error."""

    @abc.abstractmethod
    def close(self) -> None:
        """Ends or releases what the object holds."""

    def __enter__(self) -> Self:
        """Returns itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes, also after an error."""
        self.close()
