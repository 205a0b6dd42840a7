"""A network that does not learn: what of it can be computed before it sees images."""

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import jax
from jax.extend import core

from kdjax.runtime import equations
from kdjax.train import folding

Result = TypeVar("Result")
"""A tree of arrays."""


class Frozen(Generic[Result]):
    """A function of fixed variables and many batches of images, in two parts.

    `prepare` computes what depends on the variables alone, once: weights in the dtype
    that they are used in, with BatchNorm folded into the convolution before it. Calls
    then compute the rest. They are not to be differentiated: derivatives that the
    function defines itself, such as ReLU's at 0, are lost.
    """

    def __init__(
        self, function: Callable[[Any, jax.Array], Result], variables: Any, images: Any
    ):
        """Traces the function.

        Args:
            function: of variables and images.
            variables: a tree of arrays, or of their shapes and dtypes.
            images: an array, or its shape and dtype.
        """
        traced, shapes = equations.inlined(function, variables, images)
        self._structure = jax.tree.structure(shapes)
        folded = folding.fold(traced)
        traced = jax.make_jaxpr(folded)(*jax.tree.leaves(variables), images)
        jaxpr = traced.jaxpr
        self._constants = dict(zip(jaxpr.constvars, traced.consts, strict=True))
        *self._variables, self._images = jaxpr.invars
        self._outputs = jaxpr.outvars
        self._early: list[core.JaxprEqn] = []
        self._late: list[core.JaxprEqn] = []
        early, constant = set(self._variables), set(self._constants)
        for equation in equations.needed(jaxpr):
            operands = equations.variables(equation.invars)
            if constant.issuperset(operands):
                # In both: constants are known to the compiler only where they are made.
                self._early.append(equation)
                self._late.append(equation)
                constant.update(equation.outvars)
            elif (early | constant).issuperset(operands) and not _inflates(equation):
                self._early.append(equation)
                early.update(equation.outvars)
            else:
                self._late.append(equation)
        read = [*(equation.invars for equation in self._late), self._outputs]
        used = [one for operands in read for one in equations.variables(operands)]
        self._prepared = [one for one in dict.fromkeys(used) if one in early]

    def prepare(self, variables: Any) -> list[jax.Array]:
        """Returns what calls need of the variables."""
        leaves = jax.tree.leaves(variables)
        values = dict(zip(self._variables, leaves, strict=True))
        self._compute(self._early, values)
        return [values[one] for one in self._prepared]

    def __call__(self, prepared: Sequence[jax.Array], images: jax.Array) -> Result:
        """Returns the function's result.

        Args:
            prepared: what `prepare` returns.
            images: of the shape and dtype that it was traced for.
        """
        values = dict(zip(self._prepared, prepared, strict=True))
        values[self._images] = images
        self._compute(self._late, values)
        results = [equations.read(values, one) for one in self._outputs]
        return jax.tree.unflatten(self._structure, results)

    def _compute(
        self, steps: Sequence[core.JaxprEqn], values: dict[core.Var, Any]
    ) -> None:
        """Computes operations and adds their results to the values."""
        values |= self._constants
        for equation in steps:
            operands = [equations.read(values, one) for one in equation.invars]
            results = equations.bind(equation, operands)
            values.update(zip(equation.outvars, results, strict=True))


def _inflates(equation: core.JaxprEqn) -> bool:
    """Returns whether the results are larger than the inputs together.

    Such results cost less to be made where they are used than to be read there.
    """

    def size(operands: Sequence[Any]) -> int:
        return sum(equations.spec(one).size for one in operands)

    return size(equation.outvars) > size(equations.variables(equation.invars))
