"""Names of networks from outside the package: `package.module:Class(width=32)`."""

import ast
import difflib
import functools
import importlib
import importlib.metadata
import inspect
import os
import re
import sys
import types
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from kdjax.runtime.errors import UserError, unknown

FORM = "package.module:Class(argument=value)"
"""How one's own networks are named."""

LIBRARIES = ("timm", "torchvision")
"""Libraries whose networks have names of their own: `timm:resnet18`."""

_MODULE = r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*"
_NAME = re.compile(rf"({_MODULE}):({_MODULE})(\(.*\))?", re.DOTALL)
_OBJECT = re.compile(r"\(#[0-9a-f]{8}\)")


class Reference(NamedTuple):
    """The parts of a name such as `package.module:Class(width=32)`.

    Attributes:
        module: where the class or function is defined, such as 'package.module'.
        attribute: the class or function; dotted if it is nested in a class.
        args: positional arguments.
        kwargs: arguments by name.
    """

    module: str
    attribute: str
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = types.MappingProxyType({})


def is_own(name: str) -> bool:
    """Returns whether a name has the form `module:attribute`: one's own network."""
    return re.match(rf"{_MODULE}:[A-Za-z_]", name) is not None


def is_object(name: str) -> bool:
    """Returns whether a name refers to an object that only its own process has."""
    match = _NAME.fullmatch(name)
    return bool(match and match[3] and _OBJECT.fullmatch(match[3]))


def parse(name: str) -> Reference:
    """Returns the parts of a name; nothing is imported.

    Args:
        name: such as 'package.module:Class(width=32)'.

    Raises:
        UserError: the name has another form, or an argument is not a literal.
    """
    match = _NAME.fullmatch(name)
    if not match:
        raise UserError(f"model {name!r} is not of the form {FORM}")
    module, attribute, call = match.groups()
    if call is None:
        return Reference(module, attribute)
    try:
        parsed = ast.parse(f"f{call}", mode="eval").body
    except SyntaxError:
        raise UserError(f"model {name!r} is not of the form {FORM}") from None
    if not isinstance(parsed, ast.Call) or not isinstance(parsed.func, ast.Name):
        raise UserError(f"model {name!r} is not of the form {FORM}")
    kwargs = {}
    try:
        args = tuple(ast.literal_eval(arg) for arg in parsed.args)
        for keyword in parsed.keywords:
            kwargs[str(keyword.arg)] = ast.literal_eval(keyword.value)
    except ValueError:
        raise UserError(
            f"model {name!r}: arguments must be numbers, strings, True, False, None or "
            "tuples, lists and dicts of these; for others, write a function without "
            "arguments that returns the network"
        ) from None
    return Reference(module, attribute, args, kwargs)


def canonical(reference: Reference) -> str:
    """Returns the canonical spelling of a name, from its parts."""
    values = [repr(value) for value in reference.args]
    values += [f"{key}={value!r}" for key, value in reference.kwargs.items()]
    call = f"({', '.join(values)})" if values else ""
    return f"{reference.module}:{reference.attribute}{call}"


def first(names: str, families: Collection[str]) -> tuple[str, str]:
    """Splits names joined by ':' into the first and the rest.

    Args:
        names: such as 'resnet-8:nets:Net(width=3)'.
        families: names of the families: 'shufflenetv1:...' is not a module's name.
    """
    head, _, rest = names.partition(":")
    if head in families or not re.fullmatch(_MODULE, head):
        return head, rest
    match = re.match(_MODULE, rest)
    if not match:
        return head, rest
    end = match.end()
    if rest[end : end + 1] == "(":
        end = _closing(rest, end)
    if rest[end:] and rest[end] != ":":
        return head, rest
    return f"{head}:{rest[:end]}", rest[end + 1 :]


def _closing(text: str, start: int) -> int:
    """Returns the position after the bracket that closes the one at `start`."""
    depth, quote, escaped = 0, "", False
    for i, char in enumerate(text[start:], start):
        if quote:
            if char == quote and not escaped:
                quote = ""
            escaped = char == "\\" and not escaped
        elif char in "'\"":
            quote = char
        elif char in "([{":
            depth += 1
        elif char in ")]}":
            depth -= 1
            if not depth:
                return i + 1
    return len(text)


def load(name: str, reference: Reference) -> Any:
    """Returns the class or function that a name refers to.

    Args:
        name: the network's, for error messages.
        reference: the parts of the name.

    Raises:
        UserError: there is no such module, it cannot be imported, or it has no such
            class or function.
    """
    if reference.module in LIBRARIES:
        from kdjax.models.foreign import zoo

        return zoo.factory(reference.module, reference.attribute)
    value = _module(name, reference.module)
    for i, part in enumerate(reference.attribute.split(".")):
        if not hasattr(value, part):
            where = ".".join([reference.module, *reference.attribute.split(".")[:i]])
            choices = _callables(value)
            close = difflib.get_close_matches(part, choices, 5, 0.5)
            raise unknown(f"network of module {where!r}:", part, close or choices)
        value = getattr(value, part)
    if not callable(value):
        raise UserError(
            f"model {name!r}: {reference.attribute} is of type {type(value).__name__}, "
            "not a class or function"
        )
    return value


def _callables(module: Any) -> list[str]:
    """Returns the names of the classes and functions that a module defines."""
    return [
        name
        for name, value in vars(module).items()
        if callable(value)
        and not name.startswith("_")
        and getattr(value, "__module__", None)
        == getattr(module, "__name__", getattr(module, "__module__", None))
    ]


def _module(name: str, module: str) -> Any:
    if module in sys.modules:
        return sys.modules[module]
    # As with `python -m`; at the end of the path, so that it hides no other module.
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.append(os.getcwd())
    importlib.invalidate_caches()  # the file may be newer than this process
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = str(error.name)
        if module == missing or module.startswith(f"{missing}."):
            raise UserError(
                f"model {name!r}: there is no module {missing!r} in the current "
                "directory or among the installed packages"
            ) from error
        extra = ": pip install 'kdjax[torch]'" if missing == "torch" else ""
        raise UserError(
            f"model {name!r}: module {module!r} cannot be imported: it needs "
            f"{missing!r}, which is not installed{extra}"
        ) from error
    except Exception as error:
        raise UserError(
            f"model {name!r}: module {module!r} cannot be imported: {brief(error)}"
        ) from error


def brief(error: BaseException) -> str:
    """Returns an error that another library or the user's code raised as one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else ""
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


def with_classes(target: Any, reference: Reference, num_classes: int) -> dict[str, Any]:
    """Returns a call's arguments by name, with the number of classes if it takes that.

    Args:
        target: the class or function.
        reference: with the arguments in the name.
        num_classes: the data set's.
    """
    kwargs, taken = dict(reference.kwargs), signature(target)
    try:
        bound = taken.bind_partial(*reference.args, **kwargs).arguments
    except TypeError:  # the call itself will report it
        bound = kwargs
    if "num_classes" in taken.parameters and "num_classes" not in bound:
        kwargs["num_classes"] = num_classes
    return kwargs


def signature(target: Any) -> inspect.Signature:
    """Returns the signature of a class or function; empty if it has none."""
    try:
        if not isinstance(target, type):
            return inspect.signature(target)
        # Not `signature(target)`: NNX's metaclass has a signature of its own.
        method = inspect.signature(target.__init__)  # type: ignore[misc]
    except (TypeError, ValueError):
        return inspect.Signature()
    return method.replace(parameters=list(method.parameters.values())[1:])


def package(module: str) -> tuple[str, str]:
    """Returns a module's top-level package and its installed version, or 'unknown'."""
    top = module.partition(".")[0]
    # The distribution's name may differ from the package's.
    names = _distributions(tuple(sys.path)).get(top, [])
    return top, importlib.metadata.version(names[0]) if names else "unknown"


@functools.cache
def _distributions(path: tuple[str, ...]) -> Mapping[str, list[str]]:
    """Returns the distributions by package; cached, as reading them is slow."""
    del path  # a key of the cache: distributions are searched there
    return importlib.metadata.packages_distributions()
