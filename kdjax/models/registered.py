"""Networks given as Python objects: each is registered under a name."""

import ast
import dataclasses
import functools
import hashlib
import inspect
import itertools
import re
import sys
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from kdjax.models import checks, construct, names
from kdjax.models.function import Function
from kdjax.runtime.computation import computation_id
from kdjax.runtime.errors import UserError
from kdjax.runtime.files import digest

_objects: dict[str, tuple[int, Any]] = {}
_counter = itertools.count(1)


def is_function(name: str) -> bool:
    """Returns whether a name is that of a `Function` registered in this process."""
    return isinstance(find(name), Function)


def function_id(name: str, image_shape: tuple[int, int, int]) -> str:
    """Returns a hash of a registered function's computation, without its variables.

    Args:
        name: what `register` returned for a `Function`.
        image_shape: height, width and channels.

    Raises:
        UserError: no function is registered under the name, or it fails.
    """
    function = find(name)
    if not isinstance(function, Function):
        raise UserError(f"model {name!r} is not a function")
    variables = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, function.variables))
    images = jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)
    with checks.user_errors(name, image_shape):
        return computation_id(function.apply, variables, images)


def register(module: Any) -> str:
    """Registers a network and returns its name.

    If an import path and literal arguments describe the object completely, they are its
    name, such as `nets:Net(width=32)`, which means the same in every process. Any other
    name contains a hash and is known in this process only: another process has to
    construct and register its object first. A second object with the same name
    replaces the first.

    Args:
        module: a module of linen, NNX or PyTorch, a class of such modules, a function
            that returns one, or a `Function`. An NNX or PyTorch module that is given as
            an object starts from its own values in every replica.

    Raises:
        UserError: it is none of these.
    """
    if isinstance(module, str):
        return module
    if isinstance(module, Function):
        word = re.sub(r"\W", "_", module.name)
        word = word if word[:1].isalpha() else f"f_{word}"
        return _keep(f"function:{word}(#{digest(module.variables)[:8]})", module)
    if isinstance(module, type) or inspect.isfunction(module):
        reference = names.Reference(module.__module__, module.__qualname__)
        if _leads_to(reference, module):
            return names.canonical(reference)
        return _keep(_hashed(module, _code(module)), module)
    if isinstance(module, nn.Module):
        if module.scope is not None:
            module = module.unbind()[0]
        cls, fields = type(module), _fields(module)
        reference = names.Reference(cls.__module__, cls.__qualname__, (), fields)
        if _leads_to(reference, cls) and all(map(_is_literal, fields.values())):
            return names.canonical(reference)
        return _keep(_hashed(cls, _code(fields)), module)
    if construct.is_nnx(module):
        from kdjax.models.foreign import nnx

        return _keep(_hashed(type(module), nnx.content(module)), module)
    if construct.is_torch(module):
        from kdjax.models.foreign import variables

        return _keep(_hashed(type(module), variables.content(module)), module)
    raise UserError(
        f"an object of type {type(module).__name__} is not a network; choices: modules "
        "of flax (linen or NNX) or PyTorch, their classes, kdjax.models.Function"
    )


def _keep(name: str, value: Any) -> str:
    if name not in _objects or _objects[name][1] is not value:
        _objects[name] = (next(_counter), value)
    return name


def find(name: str) -> Any:
    """Returns the object registered under a name; None if the name needs no object.

    Args:
        name: an own network's.

    Raises:
        UserError: the name is that of an object of another process.
    """
    if name in _objects:
        return _objects[name][1]
    if names.is_object(name):
        raise UserError(
            f"model {name!r} is an object that this process does not have: construct "
            "it and pass it to kdjax.models.register first"
        )
    return None


def generation(name: str) -> int:
    """Returns a number that changes when another object is registered under a name."""
    return _objects[name][0] if name in _objects else 0


def _leads_to(reference: names.Reference, target: Any) -> bool:
    """Returns whether a class or function is found under its module and name."""
    value: Any = sys.modules.get(reference.module)
    try:
        for part in reference.attribute.split("."):
            value = getattr(value, part)
    except AttributeError:
        return False
    return value is target


def _fields(module: nn.Module) -> dict[str, Any]:
    """Returns a module's settings that are not its class's defaults."""
    fields = {}
    for field in dataclasses.fields(module):
        if field.name in ("parent", "name") or not field.init:
            continue
        value = getattr(module, field.name)
        default = field.default
        if type(value) is not type(default) or not _equal(value, default):
            fields[field.name] = value
    return fields


def _equal(value: Any, other: Any) -> bool:
    return value is other or (_is_literal(value) and value == other)


def _is_literal(value: Any) -> bool:
    """Returns whether `repr` writes a value as a literal."""
    try:
        return repr(ast.literal_eval(repr(value))) == repr(value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return False


def _hashed(cls: Any, text: str) -> str:
    code = hashlib.sha256(text.encode()).hexdigest()[:8]
    word = cls.__name__ if cls.__name__.isidentifier() else "network"
    module = cls.__module__.replace("<", "").replace(">", "")
    return f"{module}:{word}(#{code})"


def _code(value: Any) -> str:
    """Returns a text that identifies an object and is the same in every process."""
    match value:
        case type():
            return f"{value.__module__}.{value.__qualname__}"
        case functools.partial():
            return f"partial({_code((value.func, value.args, value.keywords))})"
        case Mapping():
            return f"{{{', '.join(f'{k!r}: {_code(v)}' for k, v in value.items())}}}"
        case tuple() | list():
            return f"[{', '.join(map(_code, value))}]"
        case np.ndarray() | jax.Array():
            return digest(value)
        case nn.Module():
            return f"{_code(type(value))}({_code(_fields(value))})"
    if (code := getattr(value, "__code__", None)) is not None:
        inner = [c.co_code if hasattr(c, "co_code") else c for c in code.co_consts]
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        return (
            f"{value.__module__}.{value.__qualname__} {code.co_code!r} {inner!r} "
            f"{code.co_names!r} {_code(cells)}"
        )
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))
