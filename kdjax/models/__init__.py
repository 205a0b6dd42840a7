"""The networks: `init` and `apply(variables, x, train) -> Outputs(logits, features)`.

The package's own are linen modules, named as in the papers. One's own networks are
named `package.module:Class(width=32)`, or given as objects to `register`; installed
packages add families by the entry-point group `kdjax.models`.

Where to look: `families` has the table of families, `lookup` makes a network from its
name, `levels` and `variables` have a network's levels and parameters, `versions` what
fingerprints and caches know of it.
"""

from kdjax.models.base import Outputs, Variables
from kdjax.models.construct import as_function
from kdjax.models.families import MODELS
from kdjax.models.foreign.views import resized, with_new_head
from kdjax.models.function import Function
from kdjax.models.levels import norms, parts
from kdjax.models.lookup import create, inner, torch_network
from kdjax.models.names import is_own
from kdjax.models.registered import function_id, is_function, register
from kdjax.models.variables import init, needs_key, shapes, torch_variables
from kdjax.models.versions import identity, packages, version, written
from kdjax.models.wrapped import preprocessed, with_levels

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
