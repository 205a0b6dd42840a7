"""Wrappers around a network: other inputs, another order of classes, levels.

Their variables are those of the network inside, at the same paths.
"""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Unpack

import jax
import jax.numpy as jnp

from kdjax.models import capture, construct, names, own
from kdjax.models.base import Outputs
from kdjax.runtime.errors import UserError, unknown

_SHOWN = 120  # characters of an error's choices
_MAX_LEVELS = 9  # 'stage1' to 'stage9': names sort as their numbers


@dataclasses.dataclass(frozen=True)
class Wrapped(own.Network):
    """A wrapper around a network.

    Attributes:
        network: the name of the network inside.
        num_classes: the data set's.
        name: the wrapper's, for error messages.
    """

    VERSION: ClassVar[int] = 1
    network: str
    _: dataclasses.KW_ONLY
    num_classes: int
    name: str = ""

    def __post_init__(self) -> None:
        """Checks that the network inside can be made.

        Raises:
            UserError: it cannot.
        """
        assert self.inner is not None

    @property
    def inner(self) -> own.Network:
        """The network inside."""
        from kdjax import models  # here: it imports this module

        network = models.create(self.network, self.num_classes)
        return construct.wrap(network, self.network)

    def init(
        self, key: jax.Array, images: jax.Array, train: bool = False
    ) -> dict[str, Any]:
        """Returns initial variables of the network inside."""
        return self.inner.init(key, self.before(images), train=train)

    def apply(
        self,
        variables: Mapping[str, Any],
        images: jax.Array,
        train: bool = False,
        **options: Unpack[own.ApplyOptions],
    ) -> Any:
        """Returns the outputs, changed by `after`."""
        result = self.run(variables, self.before(images), train=train, **options)
        if isinstance(result, Outputs):
            return self.after(result)
        return self.after(result[0]), result[1]

    def run(self, variables: Mapping[str, Any], images: jax.Array, **how: Any) -> Any:
        """Runs the network inside."""
        return self.inner.apply(variables, images, **how)

    def before(self, images: jax.Array) -> jax.Array:
        """Returns the images that the network inside receives."""
        return images

    def after(self, outputs: Outputs) -> Outputs:
        """Returns the outputs from those of the network inside."""
        return outputs

    def norms(self) -> dict[str, tuple[str, ...]]:
        """Returns those of the network inside."""
        return self.inner.norms()

    @property
    def reorders(self) -> bool:
        """Whether its classes are in another order than its classifier's outputs."""
        return self.inner.reorders

    @property
    def given(self) -> bool:
        """Whether its initial variables are given, whatever the key."""
        return self.inner.given


@dataclasses.dataclass(frozen=True)
class Preprocessed(Wrapped):
    """A network with inputs `images * scale + shift` and reordered classes.

    Attributes:
        scale: one number per channel, or one for all; empty: 1.
        shift: one number per channel, or one for all; empty: 0.
        order: for class 0, 1, ... of the data set the network's class; empty: the same.
    """

    _: dataclasses.KW_ONLY
    scale: tuple[float, ...] = ()
    shift: tuple[float, ...] = ()
    order: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Checks the order.

        Raises:
            UserError: it is not a permutation of the classes.
        """
        super().__post_init__()
        if sorted(self.order) != list(range(len(self.order))):
            raise UserError(
                f"model {self.name!r}: order={self.order} does not name each class "
                "once, starting from 0"
            )

    def before(self, images: jax.Array) -> jax.Array:
        """Returns the images scaled and shifted as the network expects them."""
        for values in (self.scale, self.shift):
            if len(values) not in (0, 1, images.shape[-1]):
                raise UserError(
                    f"model {self.name!r}: {values} has {len(values)} numbers, but the "
                    f"images have {images.shape[-1]} channels; choices: one number for "
                    "all channels, or one for each"
                )
        if self.scale:
            images = images * _by_channel(self.scale, images)
        if self.shift:
            images = images + _by_channel(self.shift, images)
        return images

    def after(self, outputs: Outputs) -> Outputs:
        """Returns the logits in the data set's order."""
        if not self.order:
            return outputs
        if len(self.order) != outputs.logits.shape[-1]:
            raise UserError(
                f"model {self.name!r}: order= names {len(self.order)} classes, but "
                f"{self.network!r} returns {outputs.logits.shape[-1]} logits"
            )
        order = jnp.asarray(self.order)
        return Outputs(outputs.logits[..., order], outputs.features)

    @property
    def reorders(self) -> bool:
        """Whether its classes are in another order than its classifier's outputs."""
        return bool(self.order) or super().reorders


def _by_channel(values: tuple[float, ...], images: jax.Array) -> jax.Array:
    return jnp.asarray(values, images.dtype).reshape(1, 1, 1, -1)


@dataclasses.dataclass(frozen=True)
class Levels(Wrapped):
    """A network with the outputs of some submodules as features 'stage1', 'stage2', ...

    The output of a submodule that returns a vector is the feature 'pooled'. These
    features replace the stages that the network itself names.

    Attributes:
        levels: paths of submodules, such as 'block2/conv', from the first to the
            deepest.
    """

    _: dataclasses.KW_ONLY
    levels: tuple[str, ...]

    def __post_init__(self) -> None:
        """Checks the number of levels.

        Raises:
            UserError: there are none or too many, or one occurs twice.
        """
        super().__post_init__()
        count = len(self.levels)
        if not 0 < count <= _MAX_LEVELS or len(set(self.levels)) < count:
            raise UserError(
                f"model {self.name!r}: levels={self.levels}; choices: 1 to "
                f"{_MAX_LEVELS} paths of modules, each once"
            )

    def run(self, variables: Mapping[str, Any], images: jax.Array, **how: Any) -> Any:
        """Runs the network inside, with the levels as its features."""
        with capture.capturing(self.levels) as captured:
            result = super().run(variables, images, **how)
        outputs = result if isinstance(result, Outputs) else result[0]
        kept = {
            key: value
            for key, value in outputs.features.items()
            if not key.startswith("stage")
        }
        outputs = Outputs(outputs.logits, {**kept, **self._features(captured)})
        return outputs if isinstance(result, Outputs) else (outputs, result[1])

    def _features(self, captured: capture.Captured) -> dict[str, jax.Array]:
        features: dict[str, jax.Array] = {}
        number = 0
        for level in self.levels:
            if level not in captured.seen:
                raise self._unknown(level, captured.seen)
            if level not in captured.values:
                raise UserError(
                    f"model {self.network!r}: {level!r} has no accessible output "
                    "(for example inside nn.scan); choices: the modules around it"
                )
            value = captured.values[level]
            if getattr(value, "ndim", 0) == 2:
                key = "pooled"
            else:
                number += 1
                key = f"stage{number}"
            if getattr(value, "ndim", 0) not in (2, 4) or key in features:
                shape = getattr(value, "shape", type(value).__name__)
                raise UserError(
                    f"model {self.network!r}: level {level!r} is {shape}; levels are "
                    "[batch, height, width, channels], and one may be [batch, channels]"
                )
            features[key] = value
        return features

    def _unknown(self, level: str, paths: list[str]) -> UserError:
        """Returns the error for an unknown path, with the paths most similar to it."""
        kind = f"level of {self.network!r}:"
        if len(", ".join(paths)) <= _SHOWN:
            return unknown(kind, level, paths)
        near = difflib.get_close_matches(level, paths, 5, 0.3)
        outer = [path for path in paths if "." not in path and "/" not in path]
        some = list(dict.fromkeys((*near, *outer)))[:_MAX_LEVELS]
        more = f"and {len(paths) - len(some)} more, which --dry-run lists"
        return unknown(kind, level, (*some, more))


def with_levels(name: str, levels: Sequence[str]) -> str:
    """Returns the name of a network whose levels are the outputs of named submodules.

    Args:
        name: the network's.
        levels: paths of its modules, such as 'block2/conv', from the first to the
            deepest: they become the features 'stage1', 'stage2', ...; the output of a
            module that returns a vector becomes 'pooled'.
    """
    return _name(Levels, name, {"levels": tuple(levels)})


def preprocessed(
    name: str,
    scale: Sequence[float] = (),
    shift: Sequence[float] = (),
    order: Sequence[int] = (),
) -> str:
    """Returns the name of a network with inputs `images * scale + shift`.

    Args:
        name: the network's; its variables are used unchanged.
        scale: one number per channel, or one for all; empty: 1.
        shift: one number per channel, or one for all; empty: 0.
        order: for class 0, 1, ... of the data set the network's class; empty: the same.
    """
    kwargs = {
        "scale": tuple(map(float, scale)),
        "shift": tuple(map(float, shift)),
        "order": tuple(map(int, order)),
    }
    return _name(
        Preprocessed, name, {key: value for key, value in kwargs.items() if value}
    )


def _name(cls: type[Wrapped], name: str, kwargs: dict[str, Any]) -> str:
    return names.canonical(
        names.Reference(cls.__module__, cls.__name__, (), {"network": name, **kwargs})
    )
