"""What the parts of a network return while it runs, for levels by module path."""

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn


@dataclasses.dataclass
class Captured:
    """What the parts of a network return while it runs.

    Attributes:
        wanted: paths of the parts whose outputs are kept.
        seen: paths of all parts that ran.
        values: outputs by path; of a part that ran several times, the last.
    """

    wanted: tuple[str, ...]
    seen: list[str] = dataclasses.field(default_factory=list)
    values: dict[str, Any] = dataclasses.field(default_factory=dict)

    def sees(self, path: Sequence[str]) -> bool:
        """Returns whether the output of a path's part is wanted; lists the part."""
        text = "/".join(path)
        if text and text not in self.seen:
            self.seen.append(text)
        return text in self.wanted

    def asks(self, module: nn.Module, method: str) -> bool:
        """Returns whether a linen module's method returns what is wanted."""
        return method == "__call__" and self.sees(module.path)

    def add(self, path: Sequence[str], value: Any) -> None:
        """Takes what the part at a path returned."""
        self.values["/".join(path)] = value


_captured: contextvars.ContextVar[Captured | None] = contextvars.ContextVar(
    "captured", default=None
)


def current() -> Captured | None:
    """Returns where a network puts its parts' outputs, if somebody asks for them."""
    return _captured.get()


@contextlib.contextmanager
def capturing(wanted: tuple[str, ...]) -> Iterator[Captured]:
    """Keeps the outputs of some parts of the network that runs inside.

    Where two are open the outer one lists the parts that run in the inner one as well.

    Args:
        wanted: the parts' paths, such as 'block2/conv'.
    """
    captured, outer = Captured(wanted), _captured.get()
    token = _captured.set(captured)
    try:
        yield captured
    finally:
        _captured.reset(token)
        if outer is not None:
            outer.seen += [path for path in captured.seen if path not in outer.seen]
