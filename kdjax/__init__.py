"""kdjax: knowledge distillation of image classifiers in JAX and Flax."""

from typing import Any

__version__ = "0.2.0"

_API = ("Network", "Result", "UserError", "distill", "load", "open_data", "run")


def __getattr__(name: str) -> Any:
    # When they are asked for: `from kdjax import losses` needs jax and optax alone.
    if name in _API:
        from kdjax import api

        return getattr(api, name)
    raise AttributeError(f"module 'kdjax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted((*globals(), *_API))
