"""The networks: linen modules `model(x, train) -> Outputs(logits, features)`."""

import functools
from collections.abc import Callable
from types import ModuleType

import flax.linen as nn
import jax
import jax.numpy as jnp

from kdjax.models import (
    bottleneck_resnet,
    imagenet_resnet,
    mobilenetv2,
    plain,
    resnet,
    shufflenetv1,
    shufflenetv2,
    simkd,
    vgg,
    wrn,
)
from kdjax.models.base import Outputs, Variables
from kdjax.runtime import backend
from kdjax.runtime.errors import unknown
from kdjax.runtime.rng import fold

__all__ = [
    "MODELS",
    "Outputs",
    "Variables",
    "create",
    "init",
    "norms",
    "shapes",
    "version",
]

MODELS = {
    "bottleneck_resnet": bottleneck_resnet,
    "imagenet_resnet": imagenet_resnet,
    "mobilenetv2": mobilenetv2,
    "plain": plain,
    "resnet": resnet,
    "shufflenetv1": shufflenetv1,
    "shufflenetv2": shufflenetv2,
    "simkd": simkd,
    "vgg": vgg,
    "wrn": wrn,
}
"""Families by the first word of their names; each module has `create` and `VERSION`."""

_FORMS = (
    "bottleneck_resnet-DEPTH",
    "imagenet_resnet-DEPTH",
    "mobilenetv2-WIDTH",
    "plain-DEPTH",
    "resnet-DEPTH",
    "resnet-DEPTHx4",
    "shufflenetv1",
    "shufflenetv2",
    "simkd-FACTOR:MODEL:MODEL",
    "vgg-DEPTH",
    "wrn-DEPTH-WIDEN",
)


def _family(name: str) -> ModuleType:
    try:
        return MODELS[name.split("-")[0]]
    except KeyError:
        raise unknown("model", name, _FORMS) from None


def create(name: str, num_classes: int) -> nn.Module:
    """Returns a network by its name in the papers, such as 'wrn-16-1'.

    Raises:
        UserError: there is no such network.
    """
    return _family(name).create(name, num_classes)


def norms(name: str, num_classes: int) -> dict[str, tuple[str, ...]]:
    """Returns the path of the BatchNorm before a feature's activation, by feature.

    Where a block adds a shortcut, it is the last BatchNorm of the residual branch.
    Empty for families that do not declare theirs.
    """
    module = create(name, num_classes)
    return module.norms() if hasattr(module, "norms") else {}


def version(name: str) -> int:
    """Returns the version of a network's numbers, which goes into fingerprints.

    A network that is built from others has the sum of all their versions and its own.
    """
    # 'simkd-2:resnet-8x4:resnet-32x4' names three.
    return sum(_family(part).VERSION for part in name.split(":"))


def init(
    key: jax.Array,
    name: str,
    num_classes: int,
    image_shape: tuple[int, int, int],
    init_index: int = 0,
    dtype: jnp.dtype = jnp.float32,
) -> Variables:
    """Returns a network's initial variables.

    They depend on the replica's key, the model's name, the number of classes and
    `init_index` alone, not on the stage or role: CTKD's scratch teacher and expert of
    one seed start from the same weights, as in the paper's Figure 1.

    Args:
        key: the replica's root key.
        name: the model's name.
        num_classes: the number of classes.
        image_shape: height, width and channels of the images.
        init_index: networks with the same name and seed start from the same weights
            unless this number differs.
        dtype: of the parameters and statistics.
    """
    start = _start(name, num_classes, image_shape, dtype)
    return _compiled(start)(fold(key, name, num_classes, init_index))


@functools.cache
def _start(
    name: str, num_classes: int, image_shape: tuple[int, int, int], dtype: jnp.dtype
) -> Callable[[jax.Array], Variables]:
    """Returns the function from a network's own key to its initial variables."""

    def start(key: jax.Array) -> Variables:
        images = jnp.zeros((1, *image_shape), dtype)
        variables = create(name, num_classes).init(key, images, train=False)
        # One tree structure for all networks, also for those without BatchNorm.
        variables = {"batch_stats": {}, **variables}
        return jax.tree.map(lambda leaf: leaf.astype(dtype), variables)

    return start


@functools.cache
def _compiled(
    start: Callable[[jax.Array], Variables],
) -> Callable[[jax.Array], Variables]:
    # `start` is cached itself, so each network's initialisation is compiled once.
    return jax.jit(start, compiler_options=backend.start_options())


@functools.cache
def shapes(
    name: str,
    num_classes: int,
    image_shape: tuple[int, int, int],
    dtype: jnp.dtype = jnp.float32,
) -> Variables:
    """Returns the shapes and dtypes of a network's variables."""
    start = _start(name, num_classes, image_shape, dtype)
    return jax.eval_shape(start, jax.random.key(0))
