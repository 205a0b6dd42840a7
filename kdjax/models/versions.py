"""Versions and identities of networks, for fingerprints, caches and reports."""

from collections.abc import Hashable

from kdjax.models import families, lookup, names, registered
from kdjax.models.function import Function
from kdjax.models.names import is_own
from kdjax.runtime.errors import UserError


def version(name: str) -> int:
    """Returns the version of a network's numbers, which is a part of fingerprints.

    One's own class may have an integer `VERSION`; the default is 1. The version of a
    network that is built from others is the sum of its own and all of theirs.

    Args:
        name: the network's.

    Raises:
        UserError: there is no such network, or its version is not an integer.
    """
    # 'simkd-2:resnet-8x4:resnet-32x4' names three.
    total = sum(version(part) for part in lookup.networks_inside(name))
    if not is_own(name):
        return total + families.family(name).VERSION
    value = registered.find(name)
    own_version = getattr(lookup.target(name) if value is None else value, "VERSION", 1)
    if type(own_version) is not int:
        raise UserError(f"model {name!r}: VERSION={own_version!r} is not an integer")
    return total + own_version


def written(name: str) -> str:
    """Returns the canonical spelling of an own network's name, for fingerprints.

    Args:
        name: such as 'nets:Net(width=3,x=1)'.

    Raises:
        UserError: the name is not of that form.
    """
    if names.is_object(name) or registered.find(name) is not None:
        return name
    return names.canonical(names.parse(name))


def packages(name: str) -> dict[str, str]:
    """Returns the packages that a network's code comes from, besides kdjax.

    Args:
        name: the network's.

    Returns:
        Installed versions by top-level package; 'unknown' for a module that belongs to
        no installed package.
    """
    versions: dict[str, str] = {}
    for part in lookup.networks_inside(name):
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
        module = families.family(name).__name__
    top, version = names.package(module)
    return versions if top == "kdjax" else {**versions, top: version}


def identity(name: str) -> Hashable:
    """Returns what a name refers to now: caches use it as a key beside the name.

    It changes when a class is defined again or another object is registered under the
    name, as happens in notebooks. None for networks of installed families.

    Args:
        name: the network's.
    """
    parts = tuple(identity(part) for part in lookup.networks_inside(name))
    if not is_own(name):
        return parts or None
    if generation := registered.generation(name):
        return generation
    registered.find(name)  # raises for an object that this process does not have
    return lookup.target(name), *parts
