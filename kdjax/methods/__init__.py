"""The methods: how a stage learns."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from kdjax.methods.ab import AB
from kdjax.methods.at import AT
from kdjax.methods.base import Context, MemoryInit, Method, Phase, Term, weighted_sum
from kdjax.methods.bss import BSS
from kdjax.methods.combined import Combined
from kdjax.methods.crd import CRD
from kdjax.methods.ctkd import CTKD
from kdjax.methods.dgkd import DGKD
from kdjax.methods.dml import DML
from kdjax.methods.ensemble import Ensemble
from kdjax.methods.fitnet import FitNet
from kdjax.methods.fsp import FSP
from kdjax.methods.ft import FT
from kdjax.methods.kdsvd import KDSVD
from kdjax.methods.logits import DIST, DKD, KD, NKD, WTTM, LabelSmoothing
from kdjax.methods.nst import NST
from kdjax.methods.ofd import OFD
from kdjax.methods.one import ONE
from kdjax.methods.relations import CC, PKT, RKD, SP
from kdjax.methods.reviewkd import ReviewKD
from kdjax.methods.rocket import Rocket
from kdjax.methods.simkd import SimKD
from kdjax.methods.sskd import SSKD
from kdjax.methods.vid import VID
from kdjax.runtime.entry_points import Registry
from kdjax.runtime.errors import UserError, unknown
from kdjax.runtime.settings import build

__all__ = [
    "METHODS",
    "Context",
    "MemoryInit",
    "Method",
    "Phase",
    "Term",
    "create",
    "options",
    "parts",
    "weighted_sum",
]

_BUILT_IN: dict[str, type[Method]] = {
    "supervised": Method,
    "label_smoothing": LabelSmoothing,
    "kd": KD,
    "dkd": DKD,
    "dist": DIST,
    "nkd": NKD,
    "wttm": WTTM,
    "at": AT,
    "fitnet": FitNet,
    "sp": SP,
    "cc": CC,
    "rkd": RKD,
    "pkt": PKT,
    "rocket": Rocket,
    "ctkd": CTKD,
    "dgkd": DGKD,
    "ensemble": Ensemble,
    "nst": NST,
    "kdsvd": KDSVD,
    "vid": VID,
    "reviewkd": ReviewKD,
    "dml": DML,
    "one": ONE,
    "ofd": OFD,
    "simkd": SimKD,
    "crd": CRD,
    "sskd": SSKD,
    "bss": BSS,
    "ab": AB,
    "ft": FT,
    "fsp": FSP,
}


def _problem(name: str, method: Any) -> str | None:
    """Returns why an entry point's object cannot be a row, or None."""
    if not (isinstance(method, type) and issubclass(method, Method)):
        return "is not a subclass of kdjax.methods.Method"
    if not dataclasses.is_dataclass(method):
        return "is not a dataclass"
    if name != method.NAME:
        return f"has the NAME {method.NAME!r}, which must be the entry point's"
    return None


METHODS: Registry[type[Method]] = Registry("kdjax.methods", _BUILT_IN, _problem)
"""Methods by name; a name like 'rocket+kd' combines several.

Installed packages add rows by entry points of the group `kdjax.methods`: a frozen
dataclass, a subclass of `Method`, under its NAME.
"""


def create(name: str, options: Mapping[str, Mapping[str, Any]]) -> Method:
    """Returns a method with its hyper-parameters.

    Args:
        name: a row of `METHODS`, or several joined by '+': the first one's
            cross-entropy counts, the others add their terms.
        options: hyper-parameters by method name; others keep their defaults, which for
            an added method may be those of `Method.AS_PART`.

    Raises:
        UserError: an unknown method or option, or a value out of range.
    """
    made: dict[str, Method] = {}
    for part in name.split("+"):
        if part not in METHODS:
            raise unknown("method", part, METHODS)
        if part in made:
            raise UserError(f"method {name!r} names {part!r} twice")
        defaults = METHODS[part].AS_PART if made else {}
        settings = {**defaults, **options.get(part, {})}
        made[part] = build(METHODS[part], part, settings)
    for part in options:
        if part not in made:
            raise UserError(
                f"there are options for {part!r}, but the method is {name!r}"
            )
    return made[name] if name in made else Combined(made)


def parts(method: Method) -> dict[str, Method]:
    """Returns the parts of a combined method, or the method itself, by name."""
    # Only loaded rows: entry points that are not used may fail to load.
    names = {cls: name for name, cls in METHODS.loaded().items()}
    several = method.methods.values() if isinstance(method, Combined) else (method,)
    return {names[type(part)]: part for part in several}


def options(method: Method) -> dict[str, dict[str, Any]]:
    """Returns every part's hyper-parameters and version by name, for fingerprints.

    Args:
        method: after `Method.fit`, so that no option depends on the networks.
    """
    return {
        name: {"version": part.VERSION, **_settings(part)}
        for name, part in parts(method).items()
    }


def _settings(method: Method) -> dict[str, Any]:
    """Returns the fields of a method that are hashed."""
    defaults = {field.name: field.default for field in dataclasses.fields(method)}
    return {
        name: value
        for name, value in dataclasses.asdict(method).items()
        if name not in method.ADDED or value != defaults[name]
    }
