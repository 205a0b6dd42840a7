"""Networks around one from elsewhere: images of its own size, a classifier anew."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from kdjax.models import construct, names, own, wrapped
from kdjax.runtime.errors import UserError, unknown

METHODS = {"bilinear": "linear", "bicubic": "cubic"}
"""Interpolations as PyTorch's libraries name them, and as JAX does."""


@dataclasses.dataclass(frozen=True)
class Resized(wrapped.Wrapped):
    """A network that sees images enlarged or made smaller.

    Attributes:
        size: height and width of what it sees.
        method: a key of `METHODS`.
    """

    _: dataclasses.KW_ONLY
    size: tuple[int, int]
    method: str = "bilinear"

    def __post_init__(self) -> None:
        """Checks the method.

        Raises:
            UserError: there is no such interpolation.
        """
        super().__post_init__()
        if self.method not in METHODS:
            raise unknown("interpolation", self.method, METHODS)

    def before(self, images: jax.Array) -> jax.Array:
        """Returns the images in the network's size."""
        shape = (len(images), *self.size, images.shape[-1])
        return jax.image.resize(images, shape, METHODS[self.method])


@dataclasses.dataclass(frozen=True)
class NewHead(wrapped.Wrapped):
    """A network of PyTorch with a classifier for the data set's classes.

    Unless all of it is trained, its features are those of evaluation mode and get no
    gradient: the classifier alone learns. Its recipe must have no weight decay then.

    Attributes:
        whole: whether all of it is trained.
    """

    _: dataclasses.KW_ONLY
    whole: bool = False

    @functools.cached_property
    def _inside(self) -> Any:
        from kdjax import models  # here: it imports this module

        network = construct.wrap(
            models.create(self.network, self.num_classes), self.network
        )
        if not construct.is_torch_network(network):
            raise UserError(
                f"model {self.network!r} is no network of PyTorch: it gets no new head"
            )
        return network.with_head(self.num_classes)  # type: ignore[attr-defined]

    @property
    def inner(self) -> own.Network:
        """The network inside, with its classifier."""
        return self._inside

    def run(self, variables: Mapping[str, Any], images: jax.Array, **how: Any) -> Any:
        """Runs the network inside; its features are fixed unless all is trained."""
        if self.whole or not how.get("train"):
            return super().run(variables, images, **how)
        head = f"{self._inside.head}."
        params = {
            name: leaf if name.startswith(head) else jax.lax.stop_gradient(leaf)
            for name, leaf in variables["params"].items()
        }
        how = {**how, "train": False, "rngs": None}
        return super().run({**variables, "params": params}, images, **how)


def resized(name: str, size: Sequence[int], method: str = "bilinear") -> str:
    """Returns the name of a network that sees images of its own size.

    Args:
        name: the network's.
        size: height and width.
        method: a key of `METHODS`.
    """
    height, width = size
    kwargs = {"network": name, "size": (height, width), "method": method}
    return names.canonical(names.Reference(__name__, "Resized", (), kwargs))


def with_new_head(name: str, whole: bool = False) -> str:
    """Returns the name of a PyTorch network with a classifier for the data's classes.

    Args:
        name: the network's.
        whole: whether all of it is trained.
    """
    kwargs: dict[str, Any] = {"network": name, **({"whole": True} if whole else {})}
    return names.canonical(names.Reference(__name__, "NewHead", (), kwargs))
