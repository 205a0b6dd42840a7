"""Makes networks of the package from the user's classes, functions and objects."""

import inspect
import sys
from collections.abc import Callable
from typing import Any

import flax.linen as nn

from kdjax.models import names, own
from kdjax.models.function import Function, FunctionNetwork
from kdjax.runtime.errors import UserError


def of_object(value: Any, name: str, num_classes: int) -> own.Network:
    """Returns a registered object as a network of the package.

    Args:
        value: a module, a class, a function that returns a module, or a `Function`.
        name: the network's.
        num_classes: passed to a class or function that takes it.

    Raises:
        UserError: the object is not a module.
    """
    if isinstance(value, Function):
        return FunctionNetwork(value, name)
    if isinstance(value, type) or inspect.isfunction(value):
        return called(value, names.Reference("", value.__qualname__), name, num_classes)
    return wrap(value, name)


def called(
    target: Callable, reference: names.Reference, name: str, num_classes: int
) -> own.Network:
    """Returns the network that a class or function makes.

    Args:
        target: the class or function.
        reference: with the arguments to call it with.
        name: the network's.
        num_classes: passed to the class or function if it takes it.

    Raises:
        UserError: the call fails, or does not return a module.
    """
    kwargs = names.with_classes(target, reference, num_classes)
    seeded = "rngs" in names.signature(target).parameters
    if seeded or is_nnx(target):
        return _nnx_network(target, reference, kwargs, name, seeded)

    def make() -> Any:
        try:
            return target(*reference.args, **kwargs)
        except UserError:
            raise
        except Exception as error:
            raise _refusal(target, reference, name, error) from error

    if is_torch(target):
        return _torch_network(target, name, num_classes, make)
    value = make()
    if is_torch(value):
        return _torch_network(target, name, num_classes, make)
    return wrap(value, name)


def _torch_network(
    target: Callable, name: str, num_classes: int, make: Callable[[], Any]
) -> own.Network:
    """Returns a PyTorch network; it is made once for all traces, as that is slow."""
    from kdjax.models.foreign import torch

    key = target, name, num_classes
    if key not in _made:
        _made[key] = torch.TorchNetwork(torch.seeded(make, 0), name, make)
    return _made[key]


_made: dict[Any, own.Network] = {}


def wrap(value: Any, name: str) -> own.Network:
    """Returns an object as a network of the package.

    Args:
        value: a module of flax or PyTorch, or a network of the package.
        name: the network's, for error messages.

    Raises:
        UserError: the object is not a module.
    """
    if isinstance(value, own.Network):
        return value
    if isinstance(value, nn.Module):
        return own.LinenNetwork(value, name)
    if is_nnx(value):
        from kdjax.models.foreign import nnx

        return nnx.NNXNetwork(nnx.from_instance(value), name)
    if is_torch(value):
        from kdjax.models.foreign import torch

        return torch.TorchNetwork(value, name)
    raise UserError(
        f"model {name!r} is of type {type(value).__name__}, not a module of flax "
        "(linen or NNX) or PyTorch"
    )


def _nnx_network(
    target: Callable,
    reference: names.Reference,
    kwargs: dict[str, Any],
    name: str,
    seeded: bool,
) -> own.Network:
    from kdjax.models.foreign import nnx

    try:
        rngs = {"rngs": None} if seeded else {}
        names.signature(target).bind(*reference.args, **kwargs, **rngs)
    except TypeError as error:
        raise _refusal(target, reference, name, error) from error

    def make(rngs: Any) -> Any:
        streams = {"rngs": rngs} if seeded else {}
        try:
            return target(*reference.args, **kwargs, **streams)
        except UserError:
            raise
        except Exception as error:
            raise _refusal(target, reference, name, error) from error

    return nnx.NNXNetwork(make, name)


def _refusal(
    target: Callable, reference: names.Reference, name: str, error: Exception
) -> UserError:
    hidden = ("parent", "name", "rngs")
    arguments = [
        str(parameter)
        for parameter in names.signature(target).parameters.values()
        if parameter.name not in hidden
    ]
    takes = f"; it takes ({', '.join(arguments)})" if arguments else ""
    return UserError(
        f"model {name!r}: {reference.attribute} refuses its arguments: "
        f"{names.brief(error)}{takes}"
    )


def is_nnx(value: Any) -> bool:
    """Returns whether an object is an NNX module or a class of NNX modules."""
    nnx = sys.modules.get("flax.nnx")  # if it is not imported, the value cannot be one
    cls = value if isinstance(value, type) else type(value)
    return nnx is not None and issubclass(cls, nnx.Module)


def is_torch(value: Any) -> bool:
    """Returns whether an object is a PyTorch module or a class of PyTorch modules."""
    torch = sys.modules.get("torch")  # if it is not imported, the value cannot be one
    cls = value if isinstance(value, type) else type(value)
    return torch is not None and issubclass(cls, torch.nn.Module)


def is_torch_network(network: own.Network) -> bool:
    """Returns whether a network of the package wraps a PyTorch module."""
    if "torch" not in sys.modules:
        return False
    from kdjax.models.foreign import torch

    return isinstance(network, torch.TorchNetwork)


def as_function(value: Any) -> Function | None:
    """Returns a Keras or Equinox model as a frozen teacher; None for other objects.

    Args:
        value: any object; an Equinox model may be a pair `(module, state)`.
    """
    # If a library is not imported, the value cannot be a model of it.
    if "keras" in sys.modules:
        from kdjax.models.foreign import keras

        if keras.is_model(value):
            return keras.function(value)
    if "equinox" in sys.modules:
        from kdjax.models.foreign import equinox

        if equinox.is_model(value):
            return equinox.function(value)
    return None
