"""Networks of flax's NNX, through its bridge to linen."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.errors import InvalidRngError
from flax.nnx import bridge

from kdjax.models import capture, own
from kdjax.models.base import Outputs
from kdjax.runtime.errors import UserError
from kdjax.runtime.files import digest

Make = Callable[[nnx.Rngs], Any]
"""Returns a new module whose random numbers come from the given streams."""


@dataclasses.dataclass(frozen=True)
class NNXNetwork(own.Network):
    """An NNX module of the user's.

    The module is made anew for every trace: `params` holds its `nnx.Param`, at the
    attributes' paths (numbers in lists are texts), `batch_stats` its `nnx.BatchStat`.

    Attributes:
        make: makes the module.
        name: for errors.
    """

    make: Make
    name: str

    def _linen(self) -> bridge.ToLinen:
        return bridge.ToLinen(self._module, metadata_fn=None)

    def _module(self, *, rngs: nnx.Rngs) -> nnx.Module:
        # One stream for all names: the key of initialisation, or the step's. In
        # evaluation no random number counts: parameters are replaced.
        key = rngs[
            next(name for name in ("dropout", "params", "default") if name in rngs)
        ]
        module = self.make(nnx.Rngs(key()))
        if not isinstance(module, nnx.Module):
            raise UserError(
                f"model {self.name!r} is of type {type(module).__name__}, not a module "
                "of flax (linen or NNX)"
            )
        return module

    def _call(
        self, module: nnx.Module, images: jax.Array, *, train: bool, keyed: bool
    ) -> Outputs:
        """Runs a module in a mode, as the method that the bridge calls."""
        kwargs = own.mode(type(module), train, self.name)
        module.train() if train else module.eval()
        if train and not keyed and jax.tree.leaves(nnx.state(module, nnx.RngState)):
            # The bridge would give every step the same numbers.
            raise InvalidRngError(f"{type(module).__name__} asks for random numbers")
        with _recording(module):
            result = module(images, **kwargs)
        return own.as_outputs(result, self.name)

    def init(
        self, key: jax.Array, images: jax.Array, train: bool = False
    ) -> dict[str, Any]:
        """Returns the variables that a module made from the key has."""
        method = functools.partial(self._call, train=train, keyed=True)
        return _texts(self._linen().init(key, images, nnx_method=method))

    def apply(
        self,
        variables: Mapping[str, Any],
        images: jax.Array,
        train: bool = False,
        mutable: Sequence[str] | bool = False,
        rngs: Mapping[str, jax.Array] | None = None,
    ) -> Any:
        """Returns the module's outputs."""
        method = functools.partial(self._call, train=train, keyed=bool(rngs))
        result: Any = self._linen().apply(
            _numbers(variables),
            images,
            nnx_method=method,
            mutable=mutable,
            rngs=rngs,  # type: ignore[arg-type]
        )
        return result if mutable is False else (result[0], _texts(result[1]))


def from_instance(module: nnx.Module) -> Make:
    """Returns what makes copies of a module, with its values as the start."""
    graph, state = nnx.split(module)

    def make(rngs: nnx.Rngs) -> nnx.Module:
        # New variables: those of the module belong to no trace of ours.
        copy = nnx.merge(graph, jax.tree.map(jnp.asarray, state))
        streams = {
            variable.tag
            for _, variable in nnx.to_flat_state(nnx.state(copy, nnx.RngKey))
        }
        nnx.reseed(copy, **{name: rngs() for name in sorted(streams)})
        return copy

    return make


def content(module: nnx.Module) -> str:
    """Returns a hash of a module's structure and of its variables' values."""
    graph, state = nnx.split(module, nnx.Not(nnx.RngState), ...)[:2]
    del graph
    values = {
        "/".join(map(str, path)): variable.get_value()
        for path, variable in nnx.to_flat_state(state)
    }
    return digest(values)


@contextlib.contextmanager
def _recording(module: nnx.Module) -> Iterator[None]:
    """Records what the parts of a module return, where somebody asks for it."""
    captured = capture.current()
    if captured is None:
        yield
        return
    paths = {
        id(part): tuple(map(str, path))
        for path, part in nnx.iter_graph(module)
        if isinstance(part, nnx.Module) and callable(part)
    }
    classes = {type(part) for _, part in nnx.iter_graph(module) if id(part) in paths}
    calls = {cls: cls.__call__ for cls in classes}

    def recorded(call: Callable) -> Callable:
        @functools.wraps(call)
        def method(part: nnx.Module, *args: Any, **kwargs: Any) -> Any:
            value = call(part, *args, **kwargs)
            if id(part) in paths and captured.sees(paths[id(part)]):
                captured.add(paths[id(part)], value)
            return value

        return method

    for cls, call in calls.items():
        cls.__call__ = recorded(call)
    try:
        yield
    finally:
        for cls, call in calls.items():
            cls.__call__ = call


def _texts(tree: Mapping) -> dict[str, Any]:
    """Returns nested dictionaries with the numbers of lists as texts."""
    return {
        str(key): _texts(value) if isinstance(value, Mapping) else value
        for key, value in tree.items()
    }


def _numbers(tree: Mapping) -> dict[Any, Any]:
    """Returns nested dictionaries with texts of digits as numbers."""
    return {
        int(key) if key.isdecimal() else key: (
            _numbers(value) if isinstance(value, Mapping) else value
        )
        for key, value in tree.items()
    }
