"""What a name stands for: from a name to its network."""

from typing import Any

from kdjax.models import construct, families, names, own, registered, wrapped
from kdjax.models.names import is_own

_WRAPPERS = "kdjax.models.wrapped", "kdjax.models.foreign.views"
"""Modules whose classes are wrappers around the network that their `network` names."""


def create(name: str, num_classes: int) -> Any:
    """Returns a network by its name in the papers, such as 'wrn-16-1', or one's own.

    The result has `init(key, images, train=False)` and
    `apply(variables, images, train=..., mutable=...) -> Outputs`: it is a linen module,
    or, for one's own network, an object around the user's module.

    Args:
        name: 'wrn-16-1', or 'package.module:Class(width=32)': a class, or a function
            that returns a module. Modules in the current directory are found as well.
            It is called with the arguments in the name, which must be literals, and
            with `num_classes` if it takes that.
        num_classes: the number of classes.

    Raises:
        UserError: there is no such network, or it cannot be made.
    """
    if not is_own(name):
        return families.family(name).create(name, num_classes)
    if (value := registered.find(name)) is not None:
        return construct.of_object(value, name, num_classes)
    reference, made_by = names.parse(name), target(name)
    if is_wrapped(made_by):
        kwargs = {**reference.kwargs, "name": name}
        reference = names.Reference(*reference[:3], kwargs)
    return construct.called(made_by, reference, name, num_classes)


def network(name: str, num_classes: int) -> own.Network:
    """Returns a network as `own.Network`, which knows its name for error messages.

    Args:
        name: the network's.
        num_classes: the number of classes.

    Raises:
        UserError: as `create`.
    """
    return construct.wrap(create(name, num_classes), name)


def torch_network(name: str, num_classes: int) -> Any:
    """Returns the PyTorch network of a name, without the wrappers around it.

    Wrappers are what `preprocessed`, `with_levels` and others put around a network.

    Args:
        name: the network's.
        num_classes: the number of classes.

    Returns:
        A `foreign.torch.TorchNetwork`; None if the network is not PyTorch's.
    """
    if not is_own(name):
        return None
    network = create(name, num_classes)
    while isinstance(network, wrapped.Wrapped):
        network = network.inner
    return network if construct.is_torch_network(network) else None


def inner(name: str) -> str:
    """Returns the name without the wrappers `preprocessed`, `with_levels` and others.

    The variables are those of the network inside, at the same paths. Nothing is
    imported: the network itself need not be there any more.

    Args:
        name: the network's.
    """
    if not names.is_own(name) or names.is_object(name):
        return name
    reference = names.parse(name)
    inside = reference.kwargs.get("network")
    if reference.module in _WRAPPERS and isinstance(inside, str):
        return inner(inside)
    return name


def networks_inside(name: str) -> tuple[str, ...]:
    """Returns the names of the networks that a network is built from.

    Args:
        name: such as 'simkd-2:resnet-8:resnet-32', which is built from two.
    """
    if not is_own(name):
        family = families.family(name)
        return family.parts(name) if hasattr(family, "parts") else ()
    if registered.find(name) is None and is_wrapped(target(name)):
        # `create` reports a missing argument, like any other mistake in the arguments.
        network = names.parse(name).kwargs.get("network")
        return (network,) if isinstance(network, str) else ()
    return ()


def target(name: str) -> Any:
    """Returns the class or function that an own network's name refers to.

    Args:
        name: the network's; not that of a registered object.

    Raises:
        UserError: it cannot be imported.
    """
    return names.load(name, names.parse(name))


def is_wrapped(target: Any) -> bool:
    """Returns whether a class is one of the wrappers around another network."""
    return isinstance(target, type) and issubclass(target, wrapped.Wrapped)
