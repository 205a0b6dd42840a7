"""Operations of PyTorch in forms of kdjax's own, for torchax.

Convolutions, pooling and BatchNorm compute with channels last; BatchNorm moves its
running statistics, which torchax's does not.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kdjax.models.foreign import functional


class Forms(NamedTuple):
    """What a form needs of its surroundings.

    Attributes:
        env: torchax's environment.
        aten: `torch.ops.aten`.
    """

    env: Any
    aten: Any


def install(env: Any, torch: Any) -> None:
    """Gives an environment of torchax the forms of this file.

    Args:
        env: the environment.
        torch: the library.
    """
    functions, forms = torch.nn.functional, Forms(env, torch.ops.aten)
    for operation, form in (
        (functions.adaptive_avg_pool2d, _adaptive_avg_pool2d),
        (functions.avg_pool2d, _avg_pool2d),
        (functions.batch_norm, _batch_norm),
        (functions.conv2d, _conv2d),
        (functions.max_pool2d, _max_pool2d),
        (torch.ops.aten.unbind, _unbind),  # of attention; torchax 0.0.13 has none
    ):
        env.override_op_definition(operation, functools.partial(form, forms))


Sides = int | Sequence[int]


def _pair(sides: Sides) -> tuple[int, int]:
    both = (sides,) if isinstance(sides, int) else tuple(sides)
    return both[0], both[-1]


def _pads(padding: Sides) -> functional.Pads:
    return [(side, side) for side in _pair(padding)]


def _conv2d(
    forms: "Forms",
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Sides = 1,
    padding: Sides | str = 0,
    dilation: Sides = 1,
    groups: int = 1,
) -> Any:
    """Is `torch.nn.functional.conv2d`."""
    steps, holes = _pair(stride), _pair(dilation)
    if padding == "same":
        sizes = zip(holes, weight.shape[2:], strict=True)
        totals = [hole * (size - 1) for hole, size in sizes]
        pads: functional.Pads = [(total // 2, total - total // 2) for total in totals]
    else:
        pads = _pads(0 if isinstance(padding, str) else padding)
    x, kernel, added = forms.env.t2j_iso((input, weight, bias))
    batched = x if x.ndim == 4 else x[None]
    y = functional.conv2d(batched, kernel, added, steps, pads, holes, groups)
    return forms.env.j2t_iso(y if x.ndim == 4 else y[0])


def _max_pool2d(
    forms: "Forms",
    input: Any,
    kernel_size: Sides,
    stride: Sides | None = None,
    padding: Sides = 0,
    dilation: Sides = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """Is `torch.nn.functional.max_pool2d`."""
    x, window = forms.env.t2j_iso(input), _pair(kernel_size)
    steps = _pair(stride or window)
    if x.ndim != 4 or _pair(dilation) != (1, 1) or ceil_mode or return_indices:
        # Seldom: torchax's own form, which finds the positions as well.
        found = forms.aten.max_pool2d_with_indices(
            input, window, steps, _pair(padding), _pair(dilation), ceil_mode
        )
        return found if return_indices else found[0]
    return forms.env.j2t_iso(functional.max_pool2d(x, window, steps, _pads(padding)))


def _avg_pool2d(
    forms: "Forms",
    input: Any,
    kernel_size: Sides,
    stride: Sides | None = None,
    padding: Sides = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Any:
    """Is `torch.nn.functional.avg_pool2d`."""
    x, window, pads = forms.env.t2j_iso(input), _pair(kernel_size), _pads(padding)
    steps = _pair(stride or window)
    plain = count_include_pad or not any(map(any, pads))
    if x.ndim != 4 or ceil_mode or divisor_override or not plain:
        arguments = ceil_mode, count_include_pad, divisor_override
        return forms.aten.avg_pool2d(input, window, steps, _pair(padding), *arguments)
    return forms.env.j2t_iso(functional.avg_pool2d(x, window, steps, pads))


def _adaptive_avg_pool2d(forms: "Forms", input: Any, output_size: Any) -> Any:
    """Is `torch.nn.functional.adaptive_avg_pool2d`."""
    x = forms.env.t2j_iso(input)
    wanted = (output_size,) * 2 if isinstance(output_size, int) else output_size
    height, width = (w or s for w, s in zip(wanted, x.shape[-2:], strict=True))
    batched = x if x.ndim == 4 else x[None]
    y = functional.adaptive_avg_pool2d(batched, (height, width))
    return forms.env.j2t_iso(y if x.ndim == 4 else y[0])


def _batch_norm(
    forms: "Forms",
    input: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    """Is `torch.nn.functional.batch_norm`; torchax's moves no running statistics."""
    x, scale, shift = forms.env.t2j_iso((input, weight, bias))
    running = running_mean, running_var
    statistics = None if training else forms.env.t2j_iso(running)
    y, *batch = functional.batch_norm(x, scale, shift, statistics, eps)
    if training and running_mean is not None:
        for tensor, new in zip(running, batch, strict=True):

            def moved(old: jax.Array, new: jax.Array = new) -> jax.Array:
                return (1 - momentum) * old + momentum * jax.lax.stop_gradient(new)

            tensor.apply_jax_(moved)
    return forms.env.j2t_iso(y)


def _unbind(forms: "Forms", input: Any, dim: int = 0) -> tuple[Any, ...]:
    """Is `torch.unbind`."""
    return forms.env.j2t_iso(tuple(jnp.moveaxis(forms.env.t2j_iso(input), dim, 0)))
