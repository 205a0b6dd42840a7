"""The networks: `init` and `apply(variables, x, train) -> Outputs(logits, features)`.

The package's own are linen modules, named as in the papers. One's own networks are
named `package.module:Class(width=32)`, or given as objects to `register`; installed
packages add families by the entry-point group `kdjax.models`.
"""

import functools
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp

from kdjax.models import (
    bottleneck_resnet,
    capture,
    checks,
    cifar_resnet,
    construct,
    imagenet_resnet,
    mobilenetv2,
    names,
    own,
    padded_resnet,
    plain,
    registered,
    resnet,
    shufflenetv1,
    shufflenetv2,
    simkd,
    vgg,
    wrapped,
    wrn,
)
from kdjax.models.base import Outputs, Variables
from kdjax.models.foreign.views import resized, with_new_head
from kdjax.models.function import Function
from kdjax.models.names import is_own
from kdjax.models.registered import function_id, is_function, register
from kdjax.models.wrapped import preprocessed, with_levels
from kdjax.runtime import backend
from kdjax.runtime.entry_points import Registry
from kdjax.runtime.errors import UserError, unknown
from kdjax.runtime.rng import fold

__all__ = [
    "MODELS",
    "Function",
    "Outputs",
    "Variables",
    "as_function",
    "create",
    "function_id",
    "identity",
    "init",
    "inner",
    "is_function",
    "is_own",
    "needs_key",
    "norms",
    "packages",
    "parts",
    "preprocessed",
    "register",
    "resized",
    "shapes",
    "torch_network",
    "torch_variables",
    "version",
    "with_levels",
    "with_new_head",
    "written",
]

_BUILT_IN: dict[str, Any] = {
    "bottleneck_resnet": bottleneck_resnet,
    "cifar_resnet": cifar_resnet,
    "imagenet_resnet": imagenet_resnet,
    "mobilenetv2": mobilenetv2,
    "padded_resnet": padded_resnet,
    "plain": plain,
    "resnet": resnet,
    "shufflenetv1": shufflenetv1,
    "shufflenetv2": shufflenetv2,
    "simkd": simkd,
    "vgg": vgg,
    "wrn": wrn,
}


def _problem(name: str, module: Any) -> str | None:
    """Returns what an entry point's object lacks of a family, or None."""
    if "-" in name or ":" in name:
        return "has a name with '-' or ':', which a family's cannot have"
    if not callable(getattr(module, "create", None)):
        return "has no function create(name, num_classes)"
    if not isinstance(getattr(module, "VERSION", None), int):
        return "has no whole number VERSION"
    return None


MODELS: Registry[Any] = Registry("kdjax.models", _BUILT_IN, _problem)
"""Families by the first word of their names; each module has `create` and `VERSION`."""

# The usual ones first: of many choices a message has those that look like the name that
# was given, and the first ones.
_FORMS = (
    "resnet-DEPTH",
    "wrn-DEPTH-WIDEN",
    "vgg-DEPTH",
    names.FORM,
    "resnet-DEPTHx4",
    "cifar_resnet-DEPTH",
    "padded_resnet-DEPTH",
    "imagenet_resnet-DEPTH",
    "bottleneck_resnet-DEPTH",
    "mobilenetv2-WIDTH",
    "shufflenetv1",
    "shufflenetv2",
    "plain-DEPTH",
    "wrn-DEPTH-WIDEN-fan_out",
    "simkd-FACTOR:MODEL:MODEL",
)


def _family(name: str) -> Any:
    family = name.split("-")[0]
    if family not in MODELS:
        # First what the user has added: a long list is cut.
        raise unknown("model", name, (*MODELS.outside(), *_FORMS))
    return MODELS[family]


def create(name: str, num_classes: int) -> Any:
    """Returns a network by its name in the papers, such as 'wrn-16-1', or one's own.

    What it returns has `init(key, images, train=False)` and
    `apply(variables, images, train=..., mutable=...) -> Outputs`: a linen module, or
    for one's own networks an object around the user's module.

    Args:
        name: 'wrn-16-1', or 'package.module:Class(width=32)': the class or a function
            that returns a module, found from the current directory as well and called
            with literal arguments, and with `num_classes` if it takes that.
        num_classes: the number of classes.

    Raises:
        UserError: there is no such network, or it cannot be made.
    """
    if not is_own(name):
        return _family(name).create(name, num_classes)
    if (value := registered.find(name)) is not None:
        return construct.of_object(value, name, num_classes)
    reference, target = names.parse(name), _target(name)
    if _is_wrapped(target):
        kwargs = {**reference.kwargs, "name": name}
        reference = names.Reference(*reference[:3], kwargs)
    return construct.called(target, reference, name, num_classes)


def _target(name: str) -> Any:
    """Returns the class or function behind a name: of no object's."""
    return names.load(name, names.parse(name))


def _is_wrapped(target: Any) -> bool:
    return isinstance(target, type) and issubclass(target, wrapped.Wrapped)


def _parts(name: str) -> tuple[str, ...]:
    """Returns the names of the networks that a network is built from."""
    if not is_own(name):
        family = _family(name)
        return family.parts(name) if hasattr(family, "parts") else ()
    if registered.find(name) is None and _is_wrapped(_target(name)):
        # As any mistake in the arguments, a missing one is told when it is created.
        network = names.parse(name).kwargs.get("network")
        return (network,) if isinstance(network, str) else ()
    return ()


def written(name: str) -> str:
    """Returns an own network's name in one way of writing: it is part of fingerprints.

    Args:
        name: such as 'nets:Net(width=3,x=1)'.

    Raises:
        UserError: it is of another form.
    """
    if names.is_object(name) or registered.find(name) is not None:
        return name
    return names.canonical(names.parse(name))


def inner(name: str) -> str:
    """Returns the network inside of `preprocessed` and `with_levels`, or the name.

    The variables of both are the same.

    Args:
        name: the network's.
    """
    if is_own(name) and registered.find(name) is None and _is_wrapped(_target(name)):
        return inner(*_parts(name))
    return name


def identity(name: str) -> Hashable:
    """Returns what a name stands for at this time: a key for caches beside the name.

    It changes where a class was defined anew or an object took another's place, as
    happens in notebooks. None for networks of installed families.

    Args:
        name: the network's.
    """
    parts = tuple(identity(part) for part in _parts(name))
    if not is_own(name):
        return parts or None
    if generation := registered.generation(name):
        return generation
    registered.find(name)  # an object that this process does not have is told
    return _target(name), *parts


def torch_network(name: str, num_classes: int) -> Any:
    """Returns a network of PyTorch, a `foreign.torch.TorchNetwork`, or None for others.

    What `preprocessed`, `with_levels` and others have put around it is left out.

    Args:
        name: the network's.
        num_classes: the number of classes.
    """
    if not is_own(name):
        return None
    network = create(name, num_classes)
    while isinstance(network, wrapped.Wrapped):
        network = network.inner
    return network if construct.is_torch_network(network) else None


def as_function(model: Any) -> Function | None:
    """Returns a model of Keras or Equinox as a frozen teacher, or None for others.

    Args:
        model: in question; of Equinox also `(module, state)`.
    """
    return construct.as_function(model)


def torch_variables(module: Any) -> Variables | None:
    """Returns the variables of a module of PyTorch, or None for anything else.

    Args:
        module: in question; a class has none.
    """
    if isinstance(module, type) or not construct.is_torch(module):
        return None
    from kdjax.models.foreign.variables import variables_of

    return variables_of(module)


def parts(name: str, num_classes: int, image_shape: tuple[int, ...]) -> list[str]:
    """Returns the paths of a network's parts that can be levels, as they first run.

    Args:
        name: the network's.
        num_classes: the number of classes.
        image_shape: height, width and channels.

    Raises:
        UserError: it fails on such images.
    """
    network = create(name, num_classes)
    images = jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)
    with checks.told(name, image_shape), capture.capturing(()) as captured:
        jax.eval_shape(network.init_with_output, jax.random.key(0), images)
    return captured.seen


def needs_key(name: str, num_classes: int, image_shape: tuple[int, ...]) -> bool:
    """Returns whether a network asks for random numbers ('dropout') in training mode.

    Args:
        name: the network's.
        num_classes: the number of classes.
        image_shape: height, width and channels.

    Raises:
        UserError: it is one's own and fails in training mode.
    """
    return _needs_key(identity(name), name, num_classes, image_shape)


@functools.cache
def _needs_key(
    identity: Hashable, name: str, num_classes: int, image_shape: tuple[int, ...]
) -> bool:
    if not any(map(is_own, (name, *_parts(name)))):
        return False
    return checks.needs_key(_network(name, num_classes), image_shape)


def _network(name: str, num_classes: int) -> own.Network:
    """Returns any network with a name to tell of in errors."""
    return construct.wrap(create(name, num_classes), name)


def packages(name: str) -> dict[str, str]:
    """Returns the packages that a network's code comes from, besides kdjax.

    Args:
        name: the network's.

    Returns:
        Installed versions by top-level package; 'unknown' for a module that belongs to
        no installed package.
    """
    versions: dict[str, str] = {}
    for part in _parts(name):
        versions |= packages(part)
    value = registered.find(name) if is_own(name) else None
    if isinstance(value, Function):
        module = getattr(value.apply, "__module__", None) or "__main__"
    elif value is not None:
        cls = value if hasattr(value, "__qualname__") else type(value)
        module = cls.__module__
    elif is_own(name):
        module = names.parse(name).module
    else:
        module = _family(name).__name__
    top, version = names.package(module)
    return versions if top == "kdjax" else {**versions, top: version}


def norms(name: str, num_classes: int) -> dict[str, tuple[str, ...]]:
    """Returns the path of the BatchNorm before a feature's activation, by feature.

    Where a block adds a shortcut, it is the last BatchNorm of the residual branch.
    Empty for families that do not declare theirs.
    """
    module = create(name, num_classes)
    return module.norms() if hasattr(module, "norms") else {}


def version(name: str) -> int:
    """Returns the version of a network's numbers, which goes into fingerprints.

    One's own class may have a whole number `VERSION`; without it is 1. A network that
    is built from others has the sum of all their versions and its own.

    Raises:
        UserError: there is no such network, or its version is no whole number.
    """
    # 'simkd-2:resnet-8x4:resnet-32x4' names three.
    total = sum(version(part) for part in _parts(name))
    if not is_own(name):
        return total + _family(name).VERSION
    value = registered.find(name)
    own_version = getattr(_target(name) if value is None else value, "VERSION", 1)
    if type(own_version) is not int:
        raise UserError(f"model {name!r}: VERSION={own_version!r} is no whole number")
    return total + own_version


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
    start = _start(identity(name), name, num_classes, image_shape, dtype)
    if is_own(name) and _network(name, num_classes).given:
        return start(key)  # compiled, a program would hold them as constants
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
        variables = create(name, num_classes).init(key, images, train=False)
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
        UserError: the network is one's own and fails on such images, or its logits are
            not of that number.
    """
    return _shapes(identity(name), name, num_classes, image_shape, dtype)


@functools.cache
def _shapes(
    identity: Hashable,
    name: str,
    num_classes: int,
    image_shape: tuple[int, int, int],
    dtype: jnp.dtype,
) -> Variables:
    if any(map(is_own, (name, *_parts(name)))):
        network = _network(name, num_classes)
        checks.check(network, name, num_classes, image_shape)
    start = _start(identity, name, num_classes, image_shape, dtype)
    return jax.eval_shape(start, jax.random.key(0))
