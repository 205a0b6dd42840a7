"""The arrays of a module of PyTorch, under the names of its state dict.

Parameters are trained; floating buffers, such as BatchNorm's running statistics, are
kept beside them. All other buffers are constants of the traced program.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from kdjax.runtime.files import digest

if TYPE_CHECKING:
    import torch

Arrays = dict[str, Any]


def variables_of(module: "torch.nn.Module") -> dict[str, Arrays]:
    """Returns a module's parameters and floating buffers as NumPy arrays, float32.

    Frozen parameters are kept as buffers are, unless all are frozen.
    """
    parameters = dict(module.named_parameters())
    frozen = {name for name, value in parameters.items() if not value.requires_grad}
    frozen = set() if len(frozen) == len(parameters) else frozen
    kept = {name: value for name, value in parameters.items() if name in frozen}
    trained = {name: value for name, value in parameters.items() if name not in frozen}
    fixed = {**kept, **_statistics(module)}
    return {"params": _arrays(trained), "batch_stats": _arrays(fixed)}


def _statistics(module: "torch.nn.Module") -> "dict[str, torch.Tensor]":
    """Returns the floating buffers that a state dict has."""
    saved = module.state_dict()
    return {
        name: value
        for name, value in module.named_buffers()
        if name in saved and value.is_floating_point()
    }


def _arrays(tensors: "Mapping[str, torch.Tensor]") -> Arrays:
    return {
        # A copy: the module's memory is its own.
        name: np.array(tensor.detach().cpu().float().numpy())
        for name, tensor in tensors.items()
    }


def constants_of(module: "torch.nn.Module") -> Arrays:
    """Returns the buffers that are no variables: the trace's constants."""
    known = _statistics(module)
    return {
        name: jnp.asarray(value.detach().cpu().numpy())
        for name, value in module.named_buffers()
        if name not in known
    }


def owners_of(module: "torch.nn.Module") -> dict[str, str]:
    """Returns, for the further names of a shared parameter, its first name."""
    first: dict[int, str] = {}
    found = {}
    for name, value in module.named_parameters(remove_duplicate=False):
        found[name] = first.setdefault(id(value), name)
    return found


def content(module: "torch.nn.Module") -> str:
    """Returns a hash of a module's structure and of its values."""
    return digest({**variables_of(module), repr(module): np.zeros(0)})
