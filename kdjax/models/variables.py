"""A network's parameters and BatchNorm statistics: initial values and shapes."""

import functools
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp

from kdjax.models import checks, construct, lookup
from kdjax.models.base import Variables
from kdjax.models.names import is_own
from kdjax.models.versions import identity as identity_of
from kdjax.runtime import backend
from kdjax.runtime.rng import fold


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
    start = _start(identity_of(name), name, num_classes, image_shape, dtype)
    if is_own(name) and lookup.network(name, num_classes).given:
        return start(key)  # if compiled, the program would hold them as constants
    return _compiled(start)(fold(key, name, num_classes, init_index))


@functools.cache
def _start(
    identity: Hashable,
    name: str,
    num_classes: int,
    image_shape: tuple[int, int, int],
    dtype: jnp.dtype,
) -> Callable[[jax.Array], Variables]:
    """Returns the function from a network's own key to its initial variables."""

    def start(key: jax.Array) -> Variables:
        images = jnp.zeros((1, *image_shape), dtype)
        variables = lookup.create(name, num_classes).init(key, images, train=False)
        # One tree structure for all networks, also for those without BatchNorm.
        variables = {"params": {}, "batch_stats": {}, **variables}
        return jax.tree.map(lambda leaf: leaf.astype(dtype), variables)

    return start


@functools.cache
def _compiled(
    start: Callable[[jax.Array], Variables],
) -> Callable[[jax.Array], Variables]:
    # `start` is cached itself, so each network's initialisation is compiled once.
    return jax.jit(start, compiler_options=backend.start_options())


def shapes(
    name: str,
    num_classes: int,
    image_shape: tuple[int, int, int],
    dtype: jnp.dtype = jnp.float32,
) -> Variables:
    """Returns the shapes and dtypes of a network's variables.

    Args:
        name: the network's.
        num_classes: the number of classes.
        image_shape: height, width and channels of the images.
        dtype: of the parameters and statistics.

    Raises:
        UserError: the network is one's own and fails on such images, or its number of
            logits is not the number of classes.
    """
    return _shapes(identity_of(name), name, num_classes, image_shape, dtype)


@functools.cache
def _shapes(
    identity: Hashable,
    name: str,
    num_classes: int,
    image_shape: tuple[int, int, int],
    dtype: jnp.dtype,
) -> Variables:
    if any(map(is_own, (name, *lookup.networks_inside(name)))):
        network = lookup.network(name, num_classes)
        checks.check(network, name, num_classes, image_shape)
    start = _start(identity, name, num_classes, image_shape, dtype)
    return jax.eval_shape(start, jax.random.key(0))


def needs_key(name: str, num_classes: int, image_shape: tuple[int, ...]) -> bool:
    """Returns whether a network uses random numbers ('dropout') in training mode.

    Args:
        name: the network's.
        num_classes: the number of classes.
        image_shape: height, width and channels.

    Raises:
        UserError: the network is one's own and fails in training mode.
    """
    return _needs_key(identity_of(name), name, num_classes, image_shape)


@functools.cache
def _needs_key(
    identity: Hashable, name: str, num_classes: int, image_shape: tuple[int, ...]
) -> bool:
    if not any(map(is_own, (name, *lookup.networks_inside(name)))):
        return False
    return checks.needs_key(lookup.network(name, num_classes), image_shape)


def torch_variables(module: Any) -> Variables | None:
    """Returns the variables of a PyTorch module; None for anything else.

    Args:
        module: any object; a class has no variables.
    """
    if isinstance(module, type) or not construct.is_torch(module):
        return None
    from kdjax.models.foreign.variables import variables_of

    return variables_of(module)
