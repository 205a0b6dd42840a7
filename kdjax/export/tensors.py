"""Networks as named tensors: safetensors, and PyTorch's state dicts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from kdjax import models
from kdjax.export.deployed import Deployed
from kdjax.models import Variables, import_torch
from kdjax.models.import_torch import LAYOUTS
from kdjax.runtime.errors import UserError, unknown


def write_safetensors(
    network: Deployed, path: Path, about: Mapping[str, str] | None = None
) -> None:
    """Writes tensors such as 'params/stem/conv/kernel', and verifies every bit.

    A PyTorch network has the names of its state dict.

    Args:
        network: the network to write.
        path: of the file.
        about: the file's metadata.

    Raises:
        UserError: the tensors read back differ.
    """
    from safetensors.numpy import load_file, save_file

    foreign = models.torch_network(network.model, network.num_classes)
    if foreign is None:
        tensors = flat(network.variables)
    else:
        state = foreign.state_dict(network.variables)
        tensors = {name: tensor.numpy() for name, tensor in state.items()}
    save_file(tensors, path, dict(about or {}))
    _check_equal(tensors, load_file(path), path)


def state_dict(network: Deployed, model: str, layout: str) -> dict[str, Any]:
    """Returns a network as a state dict of PyTorch: tensors by name.

    Args:
        network: the network.
        model: its name without wrappers.
        layout: the repository whose tensor names are used: the name of one of
            `LAYOUTS`, or '' for the first of the network's family. A PyTorch network
            keeps its own names.

    Raises:
        UserError: there is no such layout for the network's family.
    """
    import torch

    if (
        foreign := models.torch_network(network.model, network.num_classes)
    ) is not None:
        return foreign.state_dict(network.variables)
    layout = layout or layout_of(model, network.image_shape, network.num_classes, ())
    state = import_torch.to_state_dict(
        network.variables, model, layout, network.image_shape
    )
    return {key: torch.tensor(array) for key, array in state.items()}


def write_torch(network: Deployed, model: str, path: Path, layout: str) -> None:
    """Writes a PyTorch state dict, imports it again and verifies every bit.

    Args:
        network: the network to write.
        model: its name without wrappers.
        path: of the file.
        layout: as for `state_dict`.

    Raises:
        UserError: there is no such layout for the network's family, or the tensors read
            back differ.
    """
    import torch

    torch.save(state_dict(network, model, layout), path)
    foreign = models.torch_network(network.model, network.num_classes)
    if foreign is not None:
        from kdjax.models.foreign import weights

        read = weights.load(str(path), foreign)
    else:
        read = import_torch.load(path, model, network.num_classes, network.image_shape)
    _check_equal(flat(network.variables), flat(read), path)


def layout_of(
    model: str, shape: tuple[int, int, int], classes: int, files: Sequence[str]
) -> str:
    """Returns the repository whose tensor names a network has in PyTorch.

    Args:
        model: the network's name.
        shape: of its images.
        classes: their number.
        files: the files that it may have been imported from.

    Raises:
        UserError: no layout is known for its family.
    """
    family = model.split("-")[0]
    layouts = [layout.name for layout in LAYOUTS if layout.family == family]
    if not layouts:
        families = dict.fromkeys(layout.family for layout in LAYOUTS)
        raise unknown("family with a form in PyTorch", model, families)
    for file in files:
        try:
            layout, _ = import_torch.rows_of(file, model, classes, shape)
        except UserError:  # deleted since, or not a file
            continue
        return layout.name
    return layouts[0]


def flat(variables: Variables) -> dict[str, np.ndarray]:
    """Returns a network's arrays by their paths, joined by '/'."""
    return {
        "/".join(path): np.ascontiguousarray(leaf)
        for path, leaf in flatten_dict(dict(variables)).items()
    }


def _check_equal(
    tensors: Mapping[str, np.ndarray], read: Mapping[str, np.ndarray], path: Path
) -> None:
    for name in dict.fromkeys((*tensors, *read)):
        same = (
            name in tensors
            and name in read
            and tensors[name].dtype == read[name].dtype
            and np.array_equal(tensors[name], read[name], equal_nan=True)
        )
        if not same:
            raise UserError(
                f"{path.name} is not exported: {name} differs when it is read back"
            )
