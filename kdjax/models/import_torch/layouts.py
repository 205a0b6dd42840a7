"""All known layouts of every family."""

from kdjax.models.import_torch import compact, residual

LAYOUTS = (*residual.LAYOUTS, *compact.LAYOUTS)
