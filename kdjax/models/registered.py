"""Networks given as objects in Python: each gets a name, and stands behind it."""

import ast
import dataclasses
import functools
import hashlib
import inspect
import itertools
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from kdjax.models import names, own
from kdjax.runtime.computation import computation_id
from kdjax.runtime.errors import UserError
from kdjax.runtime.files import digest

_objects: dict[str, tuple[int, Any]] = {}
_counter = itertools.count(1)


@dataclasses.dataclass(frozen=True, eq=False)
class Function:
    """A function of JAX as a frozen teacher.

    Attributes:
        apply: `(variables, images) -> logits`, or logits with a dictionary of features,
            or `Outputs`; in evaluation mode.
        variables: a tree of arrays.
        name: for people.
    """

    apply: Callable[[Any, jax.Array], Any]
    variables: Any
    name: str = "function"


@dataclasses.dataclass(frozen=True)
class FunctionNetwork(own.Network):
    """A frozen teacher that is a function.

    Its 'params' are the function's variables, or their 'params' where they have
    'params' and 'batch_stats' alone.

    Attributes:
        function: what it runs.
        name: for errors.
    """

    function: Function
    name: str

    @property
    def given(self) -> bool:
        """Whether its initial variables are given: they depend on no key."""
        return True

    def _is_split(self) -> bool:
        variables = self.function.variables
        return (
            isinstance(variables, Mapping)
            and "params" in variables
            and set(variables) <= {"params", "batch_stats"}
        )

    def init(
        self, key: jax.Array, images: jax.Array, train: bool = False
    ) -> dict[str, Any]:
        """Returns the function's variables: they are given."""
        del key, images, train
        variables = self.function.variables
        return jax.tree.map(
            jnp.asarray, dict(variables) if self._is_split() else {"params": variables}
        )

    def apply(
        self,
        variables: Mapping[str, Any],
        images: jax.Array,
        train: bool = False,
        mutable: Sequence[str] | bool = False,
        rngs: Mapping[str, jax.Array] | None = None,
    ) -> Any:
        """Returns the function's outputs.

        Raises:
            UserError: it is asked to train.
        """
        del rngs
        if train:
            raise UserError(
                f"model {self.name!r} is a function: it can teach, but not be trained"
            )
        given: Any = dict(variables)
        if not self._is_split():
            given = given["params"]
        elif "batch_stats" not in self.function.variables:
            given.pop("batch_stats", None)

        # Numbers that count something came back as floats, as all parameters do.
        def restored(leaf: Any, own: Any) -> Any:
            dtype = jnp.asarray(own).dtype
            return leaf if jnp.issubdtype(dtype, jnp.floating) else leaf.astype(dtype)

        given = jax.tree.map(restored, given, self.function.variables)
        outputs = own.as_outputs(self.function.apply(given, images), self.name)
        return outputs if mutable is False else (outputs, {})


def function_id(name: str, image_shape: tuple[int, int, int]) -> str:
    """Returns a hash of what a registered function computes, without its variables.

    Args:
        name: what `register` returned for a `Function`.
        image_shape: height, width and channels.

    Raises:
        UserError: the name is no function's of this process, or it fails.
    """
    function = find(name)
    if not isinstance(function, Function):
        raise UserError(f"model {name!r} is not a function")
    variables = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, function.variables))
    images = jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)
    with own.told(name, image_shape):
        return computation_id(function.apply, variables, images)


def register(module: Any) -> str:
    """Returns the name by which a network is known from here on.

    Where the name says all that the object is, as `nets:Net(width=32)` does, it means
    the same in every process. Others, with a hash in the name, are known to this
    process: another has to construct and register its object first. A second object
    with the same name takes the first one's place.

    Args:
        module: a linen module, its class, an NNX module or its class, a function that
            returns one of these, or a `Function`. An NNX module that is given as an
            object starts from its own values in every replica.

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
    if _is_nnx(module):
        from kdjax.models.foreign import nnx

        return _keep(_hashed(type(module), nnx.content(module)), module)
    raise UserError(
        f"a network of type {type(module).__name__} is not known; choices: linen and "
        "NNX modules of flax, their classes, kdjax.models.Function"
    )


def _keep(name: str, value: Any) -> str:
    if name not in _objects or _objects[name][1] is not value:
        _objects[name] = (next(_counter), value)
    return name


def find(name: str) -> Any:
    """Returns the object behind a name, or None where the name says all itself.

    Raises:
        UserError: the name is of another process's object.
    """
    if name in _objects:
        return _objects[name][1]
    if names.is_object(name):
        raise UserError(
            f"model {name!r} is an object that this process does not have: construct "
            "it and give it to kdjax.models.register first"
        )
    return None


def generation(name: str) -> int:
    """Returns a number that tells apart the objects that one name stood for."""
    return _objects[name][0] if name in _objects else 0


def network(value: Any, name: str, num_classes: int) -> own.Network:
    """Returns a registered object as a network of the package.

    Raises:
        UserError: it is no module.
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
        num_classes: given to it if it takes that.

    Raises:
        UserError: it refuses its arguments, or returns no module.
    """
    kwargs = names.with_classes(target, reference, num_classes)
    seeded = "rngs" in names.signature(target).parameters
    if seeded or _is_nnx(target):
        return _nnx_network(target, reference, kwargs, name, seeded)
    try:
        value = target(*reference.args, **kwargs)
    except UserError:
        raise
    except Exception as error:
        raise _refusal(target, reference, name, error) from error
    return wrap(value, name)


def wrap(value: Any, name: str) -> own.Network:
    """Returns an object as a network of the package.

    Raises:
        UserError: it is no module.
    """
    if isinstance(value, own.Network):
        return value
    if isinstance(value, nn.Module):
        return own.LinenNetwork(value, name)
    if _is_nnx(value):
        from kdjax.models.foreign import nnx

        return nnx.NNXNetwork(nnx.from_instance(value), name)
    raise UserError(
        f"model {name!r} is of type {type(value).__name__}, not a module of flax "
        "(linen or NNX)"
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


def _is_nnx(value: Any) -> bool:
    """Returns whether something is an NNX module or its class."""
    nnx = sys.modules.get("flax.nnx")  # not imported: nobody can have made one
    cls = value if isinstance(value, type) else type(value)
    return nnx is not None and issubclass(cls, nnx.Module)


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
    """Returns whether a value is written as it is read."""
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
    """Returns a text that tells objects apart and is the same in every process."""
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
