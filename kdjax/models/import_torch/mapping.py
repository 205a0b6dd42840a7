"""Maps the names and axes of PyTorch's tensors to those of Flax, and back.

A mapping is data: one row for every array of a network. It is made from the network's
own shapes and a layout's names of its modules, so that it is complete by construction.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping

import flax.linen as nn
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from kdjax import models
from kdjax.models import Variables
from kdjax.models.plain import Plain

Path = tuple[str, ...]
Prefix = Callable[[nn.Module, str], str]

# PyTorch's names of the leaves of flax's layers.
_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}


@dataclasses.dataclass(frozen=True)
class Transform:
    """The order of an array's axes in PyTorch and in Flax.

    Attributes:
        axes: of PyTorch's array, split by `split`, in Flax's order.
        split: PyTorch's second axis is split into these sizes first, and the axes that
            they become are joined in Flax: a flattened map is [C, H, W] there and
            [H, W, C] here.
    """

    axes: tuple[int, ...]
    split: tuple[int, ...] = ()

    def to_flax(self, array: np.ndarray) -> np.ndarray:
        """Returns PyTorch's array in Flax's order."""
        if self.split:
            array = array.reshape(len(array), *self.split)
        array = array.transpose(self.axes)
        if self.split:
            array = array.reshape(-1, array.shape[-1])
        return np.ascontiguousarray(array)

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        """Returns Flax's array in PyTorch's order."""
        if self.split:
            sizes = [self.split[axis - 1] for axis in self.axes[:-1]]
            array = array.reshape(*sizes, array.shape[-1])
        array = array.transpose(np.argsort(self.axes))
        if self.split:
            array = array.reshape(len(array), -1)
        return np.ascontiguousarray(array)

    def torch_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape that Flax's array of `shape` has in PyTorch."""
        if self.split:
            return shape[-1], math.prod(self.split)
        return tuple(shape[axis] for axis in np.argsort(self.axes))


VECTOR = Transform((0,))
DENSE = Transform((1, 0))  # [out, in] -> [in, out]
CONV = Transform((2, 3, 1, 0))  # [out, in, H, W] -> [H, W, in, out]; grouped ones too
_BY_RANK = {1: VECTOR, 2: DENSE, 4: CONV}


def flattened(height: int, width: int, channels: int) -> Transform:
    """Returns the transform of a dense layer's kernel on flattened maps."""
    return Transform((2, 3, 1, 0), (channels, height, width))


@dataclasses.dataclass(frozen=True)
class Row:
    """One array of a network.

    Attributes:
        key: in PyTorch's state dict.
        path: in Flax's variables: 'params' or 'batch_stats', the modules, the leaf.
        transform: of the axes.
        shape: in PyTorch.
    """

    key: str
    path: Path
    transform: Transform
    shape: tuple[int, ...]


def table(
    prefix: Prefix, name: str, num_classes: int, image_shape: tuple[int, int, int]
) -> tuple[Row, ...]:
    """Returns the mapping of a network.

    Args:
        prefix: PyTorch's name of a module, from the network and the path of the module
            in Flax, joined by '/'.
        name: of the network.
        num_classes: the number of classes.
        image_shape: height, width and channels.

    Raises:
        UserError: there is no such network, or the images are too small for it.
    """
    module = models.create(name, num_classes)
    special = _flattened_kernels(module, image_shape)
    rows = []
    for path, leaf in flatten_dict(
        models.shapes(name, num_classes, image_shape)
    ).items():
        where = "/".join(path[1:-1])
        transform = special.get(path[1:]) or _BY_RANK[len(leaf.shape)]
        rows.append(
            Row(
                key=f"{prefix(module, where)}.{_LEAVES[path[-1]]}",
                path=path,
                transform=transform,
                shape=transform.torch_shape(leaf.shape),
            )
        )
    return tuple(rows)


def to_variables(rows: tuple[Row, ...], tensors: Mapping[str, np.ndarray]) -> Variables:
    """Returns Flax's variables, float32, from a state dict that has every row's key."""
    flat = {
        row.path: row.transform.to_flax(tensors[row.key].astype(np.float32))
        for row in rows
    }
    return {"params": {}, "batch_stats": {}, **unflatten_dict(flat)}


def to_tensors(rows: tuple[Row, ...], variables: Variables) -> dict[str, np.ndarray]:
    """Returns PyTorch's state dict of a network's variables."""
    flat = flatten_dict(variables)
    return {row.key: row.transform.to_torch(np.asarray(flat[row.path])) for row in rows}


def _flattened_kernels(
    module: nn.Module, image_shape: tuple[int, int, int]
) -> dict[Path, Transform]:
    """Returns the transforms of dense layers on flattened maps, by path.

    All other networks average the maps first.
    """
    if not isinstance(module, Plain):
        return {}
    height, width, channels = image_shape
    layer = "head"
    for kind, size in module.layers:
        if kind == "C":
            channels = size
        elif kind == "P":
            height, width = height // 2, width // 2
        else:
            layer = "dense"
    return {(layer, "kernel"): flattened(height, width, channels)}
