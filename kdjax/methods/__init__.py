"""The methods: how a stage learns."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from kdjax.errors import UserError, unknown
from kdjax.fields import build
from kdjax.methods.base import Beginning, Context, Method, Phase, Term
from kdjax.methods.boundary import BSS
from kdjax.methods.collaborative import CTKD, Rocket
from kdjax.methods.combined import Combined
from kdjax.methods.contrastive import CRD
from kdjax.methods.dense import DGKD, Ensemble
from kdjax.methods.features import AT, FitNet
from kdjax.methods.logits import DIST, DKD, KD, LabelSmoothing
from kdjax.methods.maps import KDSVD, NST
from kdjax.methods.overhaul import OFD
from kdjax.methods.peers import DML, ONE
from kdjax.methods.preparing import AB, FSP, FT
from kdjax.methods.relations import CC, PKT, RKD, SP
from kdjax.methods.reuse import SimKD
from kdjax.methods.review import ReviewKD
from kdjax.methods.self_supervised import SSKD
from kdjax.methods.variational import VID

__all__ = [
    "METHODS",
    "Beginning",
    "Context",
    "Method",
    "Phase",
    "Term",
    "create",
    "options",
]

METHODS: dict[str, type[Method]] = {
    "supervised": Method,
    "label_smoothing": LabelSmoothing,
    "kd": KD,
    "dkd": DKD,
    "dist": DIST,
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
"""Methods by name; a name like 'rocket+kd' combines several."""


def create(name: str, options: Mapping[str, Mapping[str, Any]]) -> Method:
    """Returns a method with its hyper-parameters.

    Args:
        name: a row of `METHODS`, or several joined by '+': the first one's
            cross-entropy counts, the others add their terms.
        options: hyper-parameters by method name; what is not given keeps its default.

    Raises:
        UserError: an unknown method or option, or a value out of range.
    """
    parts = {}
    for part in name.split("+"):
        if part not in METHODS:
            raise unknown("method", part, METHODS)
        if part in parts:
            raise UserError(f"method {name!r} names {part!r} twice")
        parts[part] = build(METHODS[part], part, options.get(part, {}))
    for part in options:
        if part not in parts:
            raise UserError(f"options for {part!r}, but the method is {name!r}")
    return parts[name] if name in parts else Combined(parts)


def options(method: Method) -> dict[str, dict[str, Any]]:
    """Returns every part's hyper-parameters and version by name: for fingerprints."""
    names = {cls: name for name, cls in METHODS.items()}
    parts = method.parts.values() if isinstance(method, Combined) else (method,)
    return {
        names[type(part)]: {"version": part.VERSION, **dataclasses.asdict(part)}
        for part in parts
    }
