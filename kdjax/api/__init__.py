"""kdjax from Python: distill, run a config, load a network."""

from kdjax.api.distillation import distill, open_data, run
from kdjax.api.network import Network, load
from kdjax.api.result import Result
from kdjax.runtime.errors import UserError

__all__ = ["Network", "Result", "UserError", "distill", "load", "open_data", "run"]
