"""Weights of PyTorch's networks: from a file, or from the library's own download."""

import os
import socket
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from kdjax.models import names
from kdjax.models.base import Variables
from kdjax.models.foreign.torch import TorchNetwork
from kdjax.models.foreign.variables import variables_of
from kdjax.models.import_torch import files
from kdjax.runtime.errors import UserError

PRETRAINED = "pretrained"
"""What stands in the place of a file for the weights that a library downloads."""
_HUBS = {"timm": "huggingface.co", "torchvision": "download.pytorch.org"}
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
        tensors: Mapping[str, Any] = pretrained(network)
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


def pretrained(network: TorchNetwork) -> dict[str, np.ndarray]:
    """Returns the tensors that a library downloads for one of its networks.

    Raises:
        UserError: the network is no library's, has none, or the hub is not reached.
    """
    reference = names.parse(network.name)
    library, name = reference.module, reference.attribute
    if library not in _HUBS:
        raise UserError(
            f"model {network.name!r} has no weights to download: teacher_weights= "
            "names a file"
        )
    from kdjax.models.foreign import zoo

    make = zoo.pretrained(library, name, dict(reference.kwargs))
    module = _fetched(make, library, network.name)
    found = variables_of(module)
    return {**found["params"], **found["batch_stats"]}


def _fetched(make: Callable[[], Any], library: str, name: str) -> Any:
    """Calls what downloads weights; without a network only what is cached counts."""
    hub = _HUBS[library]
    offline = not _is_reached(hub)
    before = os.environ.get("HF_HUB_OFFLINE")
    if offline and library == "timm":
        os.environ["HF_HUB_OFFLINE"] = "1"  # or it tries for minutes
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(10)
    try:
        return make()
    except UserError:
        raise
    except Exception as error:
        reason = f"{hub} is not reached" if offline else names.brief(error)
        raise UserError(
            f"the weights of {name} cannot be downloaded ({reason[:120]}): "
            "teacher_weights= names a file that you have"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)
        if before is None:
            os.environ.pop("HF_HUB_OFFLINE", None)


def _is_reached(hub: str) -> bool:
    if os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy"):
        return True  # the proxy answers for it
    try:
        socket.create_connection((hub, 443), timeout=5).close()
    except OSError:
        return False
    return True
