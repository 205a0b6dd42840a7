"""Adapters from one's own networks to the interface of the package's networks.

The user's module is called unchanged, so its variables are the same trees with and
without the adapter.
"""

import abc
import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, Unpack

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from kdjax.models import capture
from kdjax.models.base import Outputs
from kdjax.runtime.errors import UserError

# Names of `__call__` arguments for the mode, and their value in training mode.
_MODES = {
    "train": True,
    "training": True,
    "is_training": True,
    "deterministic": False,
    "use_running_average": False,
    "inference": False,
}


class ApplyOptions(TypedDict, total=False):
    """Options of `Network.apply`, with the meaning and defaults of linen's.

    Attributes:
        mutable: collections that may change; False: none.
        rngs: random keys by name, such as 'dropout'.
    """

    mutable: Sequence[str] | bool
    rngs: Mapping[str, jax.Array] | None


class Network(abc.ABC):
    """A network from outside of the package, with the `init` and `apply` of a module.

    Attributes:
        name: the network's, for error messages.
    """

    name: str

    @abc.abstractmethod
    def init(
        self, key: jax.Array, images: jax.Array, train: bool = False
    ) -> dict[str, Any]:
        """Returns initial variables, by collection."""

    @abc.abstractmethod
    def apply(
        self,
        variables: Mapping[str, Any],
        images: jax.Array,
        train: bool = False,
        **options: Unpack[ApplyOptions],
    ) -> Any:
        """Returns `Outputs`; if collections are mutable, also their new values.

        Args:
            variables: by collection.
            images: `[batch, height, width, channels]`.
            train: whether it runs in training mode.
            **options: as linen's `apply` takes them.
        """

    def init_with_output(
        self, key: jax.Array, images: jax.Array, train: bool = False
    ) -> tuple[Outputs, dict[str, Any]]:
        """Returns outputs in evaluation mode, and the initial variables."""
        variables = self.init(key, images, train)
        return self.apply(variables, images), variables

    def norms(self) -> dict[str, tuple[str, ...]]:
        """Returns the path of the BatchNorm before a feature's activation, if known."""
        return {}

    @property
    def reorders(self) -> bool:
        """Whether its classes are in another order than its classifier's outputs."""
        return False

    @property
    def given(self) -> bool:
        """Whether its initial variables are given, whatever the key."""
        return False


@dataclasses.dataclass(frozen=True)
class LinenNetwork(Network):
    """A linen module of the user's.

    Attributes:
        module: called with images and, if its signature has it, the mode.
        name: for error messages.
    """

    module: nn.Module
    name: str

    def __post_init__(self) -> None:
        """Checks that the module can be called with images and a mode.

        Raises:
            UserError: it requires any other argument.
        """
        mode(type(self.module), False, self.name)

    def init(
        self, key: jax.Array, images: jax.Array, train: bool = False
    ) -> dict[str, Any]:
        """Returns the module's own initial variables."""
        kwargs = mode(type(self.module), train, self.name)
        variables = self.module.init(key, images, **kwargs)  # type: ignore[arg-type]
        return dict(nn.meta.unbox(variables))

    def apply(
        self,
        variables: Mapping[str, Any],
        images: jax.Array,
        train: bool = False,
        **options: Unpack[ApplyOptions],
    ) -> Any:
        """Returns the module's outputs."""
        kwargs = mode(type(self.module), train, self.name)
        captured = capture.current()
        mutable = options.get("mutable", False)
        changing = () if mutable is False else tuple(mutable)  # type: ignore[arg-type]
        result, new = self.module.apply(
            variables,
            images,
            **kwargs,  # type: ignore[arg-type]
            mutable=(*changing, "intermediates"),
            capture_intermediates=captured.asks if captured else False,
            rngs=options.get("rngs"),  # type: ignore[arg-type]
        )
        new = dict(new)
        parts = flatten_dict(new.pop("intermediates", {}))
        for path, values in parts.items():
            if captured and path[-1] == "__call__":
                captured.add(path[:-1], values[-1])  # the last of several calls
        outputs = as_outputs(result, self.name)
        return outputs if mutable is False else (outputs, new)

    def norms(self) -> dict[str, tuple[str, ...]]:
        """Returns the paths that the module declares."""
        return self.module.norms() if hasattr(self.module, "norms") else {}


class Embedded(nn.Module):
    """A network as a submodule of a linen module.

    Attributes:
        network: its variables are this module's.
    """

    network: Network

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> Outputs:
        """Classifies images `[batch, height, width, channels]`."""
        if self.is_initializing():
            variables = self.network.init(self.make_rng("params"), x, train)
            self._put(variables)
            return self.network.apply(variables, x)
        variables = {name: dict(part) for name, part in self.variables.items()}
        rngs = {"dropout": self.make_rng("dropout")} if self.has_rng("dropout") else {}
        if not self.is_mutable_collection("batch_stats"):
            return self.network.apply(variables, x, train, rngs=rngs)
        outputs, new = self.network.apply(
            variables, x, train, mutable=["batch_stats"], rngs=rngs
        )
        self._put(new)
        return outputs

    def _put(self, variables: Mapping[str, Any]) -> None:
        for collection, part in variables.items():
            for name, value in part.items():
                self.put_variable(collection, name, value)


def mode(cls: type, train: bool, name: str) -> dict[str, bool]:
    """Returns the keyword arguments that set the mode of a module's `__call__`.

    Args:
        cls: the module's class.
        train: whether it runs in training mode.
        name: the network's, for error messages.

    Raises:
        UserError: the module requires an argument that is neither images nor the mode.
    """
    # The module itself and the images come first.
    parameters = list(inspect.signature(cls.__call__).parameters.values())[2:]
    kwargs = {}
    for parameter in parameters:
        if parameter.name in _MODES:
            kwargs[parameter.name] = train == _MODES[parameter.name]
        elif parameter.default is parameter.empty and parameter.kind not in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        ):
            raise UserError(
                f"model {name!r}: {cls.__name__}.__call__ requires {parameter.name!r}; "
                f"choices: images and one of {', '.join(_MODES)}"
            )
    return kwargs


def as_outputs(result: Any, name: str) -> Outputs:
    """Returns the result of a module as `Outputs`.

    Args:
        result: logits, logits with a dictionary of features, or `Outputs`.
        name: the network's, for error messages.

    Raises:
        UserError: the result is none of these.
    """
    match result:
        case Outputs():
            logits, features = result.logits, result.features
        case (logits, Mapping() as features):
            pass
        case _:
            logits, features = result, {}
    if not _is_array(logits) or logits.ndim != 2:
        raise UserError(
            f"model {name!r} returns {_describe(result)}; it must return logits "
            "[batch, classes], (logits, features by name) or kdjax.models.Outputs"
        )
    for key, value in features.items():
        if not _is_array(value) or value.ndim not in (2, 4):
            raise UserError(
                f"model {name!r}: feature {key!r} is {_describe(value)}; features are "
                "[batch, height, width, channels] or [batch, channels]"
            )
    return Outputs(logits, dict(features))


def _is_array(value: Any) -> bool:
    return hasattr(value, "dtype") and jnp.issubdtype(value.dtype, jnp.floating)


def _describe(value: Any) -> str:
    if hasattr(value, "dtype"):
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, tuple):
        return f"({', '.join(map(_describe, value))})"
    return f"an object of type {type(value).__name__}"
