"""Modules of Equinox as frozen teachers."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from kdjax.models.function import Function


def function(model: Any) -> Function:
    """Returns a module as a function of its arrays and of images `[N, H, W, C]`.

    Equinox's modules see one image, channels first; they run in inference mode.

    Args:
        model: the module, or with a state, as BatchNorm needs one, `(module, state)`.
    """
    module, state = model if isinstance(model, tuple) else (model, None)
    parts = (eqx.nn.inference_mode(module), state)
    arrays, static = eqx.partition(parts, eqx.is_array)
    leaves, structure = jax.tree_util.tree_flatten_with_path(arrays)
    names = [f"{i}{jax.tree_util.keystr(path)}" for i, (path, _) in enumerate(leaves)]
    variables = {name: leaf for name, (_, leaf) in zip(names, leaves, strict=True)}

    def apply(variables: dict[str, jax.Array], images: jax.Array) -> Any:
        values = [variables[name] for name in names]
        arrays = jax.tree_util.tree_unflatten(structure, values)
        module, state = eqx.combine(arrays, static)
        x = jnp.transpose(images, (0, 3, 1, 2))
        if state is None:
            return jax.vmap(module, axis_name="batch")(x)
        run = jax.vmap(module, (0, None), (0, None), axis_name="batch")
        return run(x, state)[0]

    return Function(apply, variables, type(module).__name__)


def is_model(value: Any) -> bool:
    """Returns whether something is a module of Equinox, or one with its state."""
    if isinstance(value, tuple):
        return len(value) == 2 and isinstance(value[1], eqx.nn.State)
    return isinstance(value, eqx.Module)
