"""Captures the outputs of a network's submodules, for levels by module path."""

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn


@dataclasses.dataclass
class Captured:
    """Outputs of a network's submodules, captured while it runs.

    Attributes:
        wanted: paths of the submodules whose outputs are kept.
        seen: paths of all submodules that ran.
        values: outputs by path; of a submodule that ran several times, the last.
    """

    wanted: tuple[str, ...]
    seen: list[str] = dataclasses.field(default_factory=list)
    values: dict[str, Any] = dataclasses.field(default_factory=dict)

    def sees(self, path: Sequence[str]) -> bool:
        """Notes that a path's submodule runs; returns whether to keep its output."""
        text = "/".join(path)
        if text and text not in self.seen:
            self.seen.append(text)
        return text in self.wanted

    def asks(self, module: nn.Module, method: str) -> bool:
        """Returns whether to keep the output of a linen module's method."""
        return method == "__call__" and self.sees(module.path)

    def add(self, path: Sequence[str], value: Any) -> None:
        """Keeps the output of the submodule at a path."""
        self.values["/".join(path)] = value


_captured: contextvars.ContextVar[Captured | None] = contextvars.ContextVar(
    "captured", default=None
)


def current() -> Captured | None:
    """Returns the `Captured` of the innermost `capturing` block, or None."""
    return _captured.get()


@contextlib.contextmanager
def capturing(wanted: tuple[str, ...]) -> Iterator[Captured]:
    """Captures outputs of submodules of the network that runs inside the block.

    Where two are open the outer one lists the parts that run in the inner one as well.

    Args:
        wanted: the submodules' paths, such as 'block2/conv'.
    """
    captured, outer = Captured(wanted), _captured.get()
    token = _captured.set(captured)
    try:
        yield captured
    finally:
        _captured.reset(token)
        if outer is not None:
            outer.seen += [path for path in captured.seen if path not in outer.seen]
