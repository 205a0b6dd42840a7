"""Folds BatchNorm into the convolution before it, in the traced form of a network.

It does not matter what the network is made of: what counts are the operations. Those
that follow a convolution and scale or shift channels by numbers that do not depend on
the images (BatchNorm in evaluation mode, a bias) become part of its weights. (When
networks are exported, where weights are constants, `kdjax.export.folding` does so.)
"""

import collections
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from kdjax.runtime import equations


def fold(traced: core.ClosedJaxpr) -> Callable[..., list[jax.Array]]:
    """Returns a function that computes the same with folded convolutions.

    In bfloat16 and float32 it differs by rounding.

    Args:
        traced: of variables and, as the last input, images; it calls no function.
    """
    jaxpr = traced.jaxpr
    kept = equations.needed(jaxpr)
    moving = _depending(kept, jaxpr.invars[-1])
    uses = collections.Counter(
        one
        for operands in (jaxpr.outvars, *(equation.invars for equation in kept))
        for one in equations.variables(operands)
    )

    def folded(*inputs: jax.Array) -> list[jax.Array]:
        values: dict[Any, Any] = dict(zip(jaxpr.constvars, traced.consts, strict=True))
        values |= dict(zip(jaxpr.invars, inputs, strict=True))
        precise: dict[Any, Any] = {}  # weights before they were rounded
        for equation in kept:
            operands = [equations.read(values, one) for one in equation.invars]
            moves = [
                not isinstance(one, core.Literal) and one in moving
                for one in equation.invars
            ]
            if equation.primitive.name == "convert_element_type" and not any(moves):
                precise[equation.outvars[0]] = operands[0]
            pending: _Convolution | None
            if _is_convolution(equation, moves):
                maps, kernel = map(_computed, operands)
                kernel = precise.get(equation.invars[1], kernel)
                pending = _Convolution(equation, maps, kernel)
            else:
                pending = _merged(equation, operands, moves)
            if pending is None:
                results = equations.bind(equation, list(map(_computed, operands)))
            else:
                # What several operations read is computed once.
                alone = uses[equation.outvars[0]] == 1
                results = [pending if alone else pending.compute()]
            values.update(zip(equation.outvars, results, strict=True))
        return [_computed(equations.read(values, one)) for one in jaxpr.outvars]

    return folded


def _depending(kept: Sequence[core.JaxprEqn], images: core.Var) -> set[core.Var]:
    """Returns what depends on the images."""
    moving = {images}
    for equation in kept:
        if moving.intersection(equations.variables(equation.invars)):
            moving.update(equation.outvars)
    return moving


@dataclasses.dataclass(frozen=True)
class _Convolution:
    """A convolution that is still to be computed, and what follows it.

    Attributes:
        equation: the convolution.
        maps: its first input.
        kernel: its second input, in any dtype.
        scale: by channel, or one for all; None: 1.
        shift: likewise; None: 0.
        dtype: of the result; None: the convolution's.
    """

    equation: core.JaxprEqn
    maps: jax.Array
    kernel: jax.Array
    scale: jax.Array | None = None
    shift: jax.Array | None = None
    dtype: jnp.dtype | None = None

    @property
    def axis(self) -> int:
        """The axis of the result's channels."""
        return int(self.equation.params["dimension_numbers"].out_spec[1])

    def scaled(self, factor: jax.Array) -> "_Convolution":
        """Returns the product with a number for each channel."""
        scale = factor if self.scale is None else self.scale * factor
        shift = None if self.shift is None else self.shift * factor
        return dataclasses.replace(self, scale=scale, shift=shift)

    def shifted(self, by: jax.Array) -> "_Convolution":
        """Returns the sum with a number for each channel."""
        shift = by if self.shift is None else self.shift + by
        return dataclasses.replace(self, shift=shift)

    def compute(self) -> jax.Array:
        """Returns the maps."""
        kernel = self.kernel
        if self.scale is not None:
            axis = self.equation.params["dimension_numbers"].rhs_spec[0]
            kernel = kernel * _along(axis, kernel.ndim, self.scale)
        kernel = kernel.astype(equations.spec(self.equation.invars[1]).dtype)
        (maps,) = equations.bind(self.equation, (self.maps, kernel))
        if self.shift is not None:
            # In the maps' dtype: cuDNN then adds it to the convolution's sums.
            maps += _along(self.axis, maps.ndim, self.shift).astype(maps.dtype)
        return maps.astype(self.dtype or maps.dtype)


def _along(axis: int, ndim: int, values: jax.Array) -> jax.Array:
    """Returns a vector with axes of length 1 around."""
    return jnp.expand_dims(values, [one for one in range(ndim) if one != axis])


def _computed(value: Any) -> Any:
    """Returns the array that an operand is."""
    return value.compute() if isinstance(value, _Convolution) else value


def _is_convolution(equation: core.JaxprEqn, moves: Sequence[bool]) -> bool:
    """Returns whether an operation convolves maps of the images by fixed weights."""
    return (
        equation.primitive.name == "conv_general_dilated"
        and equation.params["batch_group_count"] == 1
        and list(moves) == [True, False]
    )


def _merged(
    equation: core.JaxprEqn, operands: Sequence[Any], moves: Sequence[bool]
) -> _Convolution | None:
    """Returns a convolution together with an operation that follows it.

    None if the operation does more than to convert, scale or shift channels.
    """
    name, dtype = equation.primitive.name, equations.spec(equation.outvars[0]).dtype
    places = [i for i, one in enumerate(operands) if isinstance(one, _Convolution)]
    if len(places) != 1:
        return None
    (place,) = places
    convolution: _Convolution = operands[place]
    if name == "convert_element_type":
        if not jnp.issubdtype(dtype, jnp.floating):
            return None
        return dataclasses.replace(convolution, dtype=dtype)
    if name not in ("add", "sub", "mul", "div") or moves[1 - place]:
        return None
    if name == "div" and place == 1:
        return None
    other = jnp.asarray(operands[1 - place])
    sides = [side for axis, side in enumerate(other.shape) if axis != convolution.axis]
    if any(side != 1 for side in sides):
        return None
    # As BatchNorm computes: in float32 at the least.
    other = other.reshape(-1).astype(jnp.promote_types(dtype, jnp.float32))
    match name:
        case "mul":
            result = convolution.scaled(other)
        case "div":
            result = convolution.scaled(1 / other)
        case "sub" if place == 1:
            result = convolution.scaled(jnp.full(1, -1, other.dtype)).shifted(other)
        case "sub":
            result = convolution.shifted(-other)
        case _:
            result = convolution.shifted(other)
    return dataclasses.replace(result, dtype=dtype)
