"""Traced functions (jaxprs) as lists of operations that can be rewritten."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
from jax.extend import core


def called(equation: core.JaxprEqn) -> core.ClosedJaxpr | None:
    """Returns the function that an operation only calls, or None.

    Of a function with its own derivative it is the one that computes the values.
    """
    keys = ("jaxpr", "call_jaxpr", "fun_jaxpr")
    known = ("jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint")
    name = equation.primitive.name
    if name not in known and not name.startswith(("custom_jvp", "custom_vjp")):
        return None
    (inside,) = [equation.params[key] for key in keys if key in equation.params]
    return inside if hasattr(inside, "consts") else core.ClosedJaxpr(inside, ())


def read(values: Mapping[core.Var, Any], operand: Any) -> Any:
    """Returns an operand's value: of a variable, or a literal number."""
    return operand.val if isinstance(operand, core.Literal) else values[operand]


def variables(operands: Iterable[Any]) -> list[core.Var]:
    """Returns the operands that are not literal numbers."""
    return [one for one in operands if not isinstance(one, core.Literal)]


def spec(operand: Any) -> jax.ShapeDtypeStruct:
    """Returns an operand's shape and dtype."""
    return jax.ShapeDtypeStruct(operand.aval.shape, operand.aval.dtype)


def bind(equation: core.JaxprEqn, inputs: Sequence[Any]) -> Sequence[Any]:
    """Computes an operation that calls no function.

    Args:
        equation: the operation.
        inputs: arrays, also traced ones.
    """
    results = equation.primitive.bind(*inputs, **equation.params)
    return results if equation.primitive.multiple_results else [results]


def evaluate(traced: core.ClosedJaxpr, inputs: Sequence[Any]) -> list[Any]:
    """Computes a traced function's results, with the functions that it calls inlined.

    Derivatives are those of the operations: what a function defines as its own is lost.

    Args:
        traced: the function.
        inputs: arrays, also traced ones.
    """
    jaxpr = traced.jaxpr
    values = dict(zip(jaxpr.constvars, traced.consts, strict=True))
    values |= dict(zip(jaxpr.invars, inputs, strict=True))
    for equation in jaxpr.eqns:
        operands = [read(values, one) for one in equation.invars]
        inside = called(equation)
        results = (
            bind(equation, operands) if inside is None else evaluate(inside, operands)
        )
        values.update(zip(equation.outvars, results, strict=True))
    return [read(values, one) for one in jaxpr.outvars]


def inlined(function: Callable[..., Any], *args: Any) -> tuple[core.ClosedJaxpr, Any]:
    """Traces a function into operations that call no function.

    Args:
        function: takes trees of arrays and returns one.
        *args: arrays or their shapes and dtypes.

    Returns:
        The traced function of the arguments' leaves, and the shapes of its result.
    """
    traced, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
    leaves = jax.tree.leaves(args)
    return jax.make_jaxpr(lambda *inputs: evaluate(traced, inputs))(*leaves), shapes


def needed(jaxpr: core.Jaxpr) -> list[core.JaxprEqn]:
    """Returns the operations on which a traced function's results depend."""
    wanted = set(variables(jaxpr.outvars))
    kept = []
    for equation in reversed(jaxpr.eqns):
        if wanted.intersection(equation.outvars):
            wanted.update(variables(equation.invars))
            kept.append(equation)
    return kept[::-1]
