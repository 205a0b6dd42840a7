"""Makes dataclasses from settings, with checks of names and types."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, TypeVar

from kdjax.runtime.errors import UserError, unknown

T = TypeVar("T")


def build(cls: type[T], kind: str, settings: Mapping[str, Any]) -> T:
    """Returns `cls(**settings)`, where every field's default fixes its type.

    Args:
        cls: a dataclass.
        kind: its name in error messages.
        settings: values by field name; lists become tuples, and ints become floats
            where the default is one.

    Raises:
        UserError: a name is not a field, or a value has another type.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    values = {}
    for name, value in settings.items():
        if name not in fields:
            raise unknown(f"option of {kind}", name, fields)
        values[name] = _cast(f"{kind}.{name}", value, fields[name].default)
    return cls(**values)


def _cast(name: str, value: Any, default: Any) -> Any:
    if isinstance(value, list):
        value = tuple(value)
    # Not isinstance: True is an int, but no number here.
    if isinstance(default, float) and type(value) is int:
        value = float(value)
    known = default is not None and default is not dataclasses.MISSING
    if known and type(value) is not type(default):
        raise UserError(f"{name}={value!r} is not of type {type(default).__name__}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{name}={value} is not a finite number")
    if isinstance(default, tuple) and default:
        # The first item of the default fixes the type of all.
        value = tuple(_cast(f"{name}[{i}]", v, default[0]) for i, v in enumerate(value))
    return value


def check_keys(
    kind: str,
    settings: Mapping[str, Any],
    known: tuple[str, ...],
    required: tuple[str, ...],
) -> None:
    """Raises UserError if a key is unknown or missing.

    Args:
        kind: the keys' name in error messages.
        settings: values by key.
        known: the permitted keys.
        required: the keys that must be present.
    """
    for key in settings:
        if key not in known:
            raise unknown(kind, key, known)
    for key in required:
        if key not in settings:
            raise UserError(f"{kind} {key!r} is missing")
