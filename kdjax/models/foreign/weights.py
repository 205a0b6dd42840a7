"""Weights of PyTorch's networks: from a file, or from the library's own download."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from kdjax.models.base import Variables
from kdjax.models.foreign import downloads
from kdjax.models.foreign.torch import TorchNetwork
from kdjax.models.foreign.variables import variables_of
from kdjax.models.import_torch import files
from kdjax.runtime.errors import UserError

PRETRAINED = "pretrained"
"""What stands in the place of a file for the weights that a library downloads."""
_SHOWN = 3


def load(source: str, network: TorchNetwork, head: bool = False) -> Variables:
    """Returns the variables that a file or a library holds for a network.

    Args:
        source: a file of `torch.save` or .safetensors, or `PRETRAINED`.
        network: whose they are.
        head: whether the classifier may be one of another number of classes: it is
            returned as it is.

    Raises:
        UserError: there is no such file; it is of another network: the first differing
            names are told; or the library's hub cannot be reached.
    """
    own = variables_of(network.module)
    if source == PRETRAINED:
        tensors: Mapping[str, Any] = downloads.pretrained(network)
    else:
        tensors = _read(source, {**own["params"], **own["batch_stats"]})
    classifier = network.head if head else ""
    wrong = []
    found: Variables = {"params": {}, "batch_stats": {}}
    for part, arrays in own.items():
        for name, array in arrays.items():
            if name not in tensors:
                wrong.append(f"{name} is missing")
                continue
            there = np.asarray(tensors[name], np.float32)
            inside = classifier and name.startswith(f"{classifier}.")
            if there.shape != array.shape and not inside:
                wrong.append(f"{name} is {list(there.shape)}, not {list(array.shape)}")
            found[part][name] = there
    known = network.module.state_dict()
    wrong += [f"{name} is extra" for name in tensors if name not in known]
    if wrong:
        more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise UserError(
            f"{source} is of another network than {network.name}: "
            f"{'; '.join(wrong[:_SHOWN])}{more}"
        )
    return found


def num_classes(source: str, network: TorchNetwork) -> int:
    """Returns for how many classes a file or a library has a network's classifier.

    Args:
        source: as for `load`.
        network: whose they are, with any number of classes.
    """
    weight = f"{network.head}.weight"
    found = load(source, network, head=True)["params"]
    return len(found[weight]) if weight in found else 0


def _read(path: str, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a file's tensors; a prefix that the module itself has is kept."""
    state = files.read(path)
    whole = {f"{state.prefix}{key}": value for key, value in state.tensors.items()}
    return max(
        (whole, dict(state.tensors)), key=lambda tensors: len(wanted.keys() & tensors)
    )
