"""A hash of a function's computation, from its traced form (jaxpr)."""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from kdjax.runtime.files import digest


def computation_id(function: Callable, *args: Any) -> str:
    """Returns a hash of a traced function: equal hashes for equal computations.

    The text of a jaxpr contains scalars, but of arrays only shapes and dtypes, so the
    arrays' bits are hashed as well. Python callbacks are not hashed.

    Args:
        function: a function that JAX can trace.
        *args: arrays or their shapes and dtypes.
    """
    traced = jax.make_jaxpr(function)(*args)
    text = str(traced)
    # Without arrays the text alone is hashed, as in banks written by earlier versions.
    if arrays := [_comparable(array) for array in _arrays_in(traced)]:
        text += digest(arrays)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


_CALLS = ("jit", "pjit", "checkpoint", "remat2")
"""Operations that call a function unchanged; loops and branches use all inputs."""


def used_inputs(function: Callable, tree: Any) -> Any:
    """Returns which leaves of a tree the results of a function depend on.

    Args:
        function: takes the tree; JAX can trace it.
        tree: arrays or their shapes and dtypes.

    Returns:
        The tree with a bool in place of every array.
    """
    traced = jax.make_jaxpr(function)(tree).jaxpr
    used = _used(traced, [True] * len(traced.outvars))
    return jax.tree.unflatten(jax.tree.structure(tree), used)


def _used(traced: Jaxpr, wanted: list[bool]) -> list[bool]:
    """Returns which inputs the given results of a traced function depend on."""
    outputs = zip(traced.outvars, wanted, strict=True)
    needed = {id(var) for var, want in outputs if want}
    for equation in reversed(traced.eqns):
        want = [id(var) in needed for var in equation.outvars]
        if not any(want):
            continue
        used = [True] * len(equation.invars)
        if equation.primitive.name in _CALLS:
            inside = equation.params["jaxpr"]
            used = _used(getattr(inside, "jaxpr", inside), want)
        inputs = zip(equation.invars, used, strict=True)
        needed |= {id(var) for var, use in inputs if use}
    return [id(var) in needed for var in traced.invars]


def _arrays_in(part: Any) -> Iterator[Any]:
    """Yields the constant arrays of a traced function, in a fixed order.

    Depending on where a function closes over an array, JAX holds it as a constant of
    the traced function, as one of a function called inside (`jit`), as an operand, or
    among an operation's parameters.
    """
    match part:
        # From jax 0.12 on these are one class; before, the second has no constants.
        case ClosedJaxpr() | Jaxpr():
            yield from getattr(part, "consts", ())
            for equation in part.eqns:
                for operand in equation.invars:
                    # The text contains a scalar with all of its digits.
                    if isinstance(operand, Literal) and np.ndim(operand.val):
                        yield operand.val
                for _, value in sorted(equation.params.items()):
                    yield from _arrays_in(value)
        case tuple() | list():
            for inner in part:
                yield from _arrays_in(inner)
        case dict():
            for _, inner in sorted(part.items(), key=lambda item: str(item[0])):
                yield from _arrays_in(inner)
        case _ if hasattr(part, "__array__") and np.ndim(part):
            yield part


def _comparable(array: Any) -> Any:
    """Returns an array in a form that can be hashed, also if it holds random keys."""
    if jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
        return str(jax.random.key_impl(array)), np.asarray(jax.random.key_data(array))
    return np.asarray(array)
