"""Networks around another network: other inputs, another order of classes, levels.

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
    """A network around another one.

    Attributes:
        network: the name of the one inside.
        num_classes: the data set's.
        name: for errors.
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
        """Returns what the network inside is shown."""
        return images

    def after(self, outputs: Outputs) -> Outputs:
        """Returns the outputs from those of the network inside."""
        return outputs

    def norms(self) -> dict[str, tuple[str, ...]]:
        """Returns those of the network inside."""
        return self.inner.norms()

    @property
    def reorders(self) -> bool:
        """Whether its classes are in another order than its classifier's."""
        return self.inner.reorders

    @property
    def given(self) -> bool:
        """Whether its initial variables are given: they depend on no key."""
        return self.inner.given


@dataclasses.dataclass(frozen=True)
class Preprocessed(Wrapped):
    """A network that sees `images * scale + shift` and has its own order of classes.

    Attributes:
        scale: by channel, or one for all; empty: 1.
        shift: by channel, or one for all; empty: 0.
        order: the network's class that is class 0, class 1, ...; empty: as it is.
    """

    _: dataclasses.KW_ONLY
    scale: tuple[float, ...] = ()
    shift: tuple[float, ...] = ()
    order: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Checks the order.

        Raises:
            UserError: it is not one of the classes' orders.
        """
        super().__post_init__()
        if sorted(self.order) != list(range(len(self.order))):
            raise UserError(
                f"model {self.name!r}: order={self.order} does not name each class "
                "from 0 on once"
            )

    def before(self, images: jax.Array) -> jax.Array:
        """Returns the images as the network is used to them."""
        for values in (self.scale, self.shift):
            if len(values) not in (0, 1, images.shape[-1]):
                raise UserError(
                    f"model {self.name!r}: {len(values)} numbers for images of "
                    f"{images.shape[-1]} channels: {values}"
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
                f"model {self.name!r}: an order of {len(self.order)} classes, but "
                f"{self.network!r} gives {outputs.logits.shape[-1]} logits"
            )
        order = jnp.asarray(self.order)
        return Outputs(outputs.logits[..., order], outputs.features)

    @property
    def reorders(self) -> bool:
        """Whether its classes are in another order than its classifier's."""
        return bool(self.order) or super().reorders


def _by_channel(values: tuple[float, ...], images: jax.Array) -> jax.Array:
    return jnp.asarray(values, images.dtype).reshape(1, 1, 1, -1)


@dataclasses.dataclass(frozen=True)
class Levels(Wrapped):
    """A network whose parts' outputs are the features 'stage1', 'stage2', ...

    A part that returns a vector is 'pooled'. They take the place of the stages that the
    network names itself.

    Attributes:
        levels: paths of parts, such as 'block2/conv', from the first to the deepest.
    """

    _: dataclasses.KW_ONLY
    levels: tuple[str, ...]

    def __post_init__(self) -> None:
        """Checks the number of levels.

        Raises:
            UserError: none, too many, or one twice.
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
                    f"model {self.network!r}: what {level!r} returns cannot be seen, "
                    "as within nn.scan; choices: modules around it"
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
        """Returns the error for a path that no part has; of many paths near ones."""
        kind = f"level of {self.network!r}:"
        if len(", ".join(paths)) <= _SHOWN:
            return unknown(kind, level, paths)
        near = difflib.get_close_matches(level, paths, 5, 0.3)
        outer = [path for path in paths if "." not in path and "/" not in path]
        some = list(dict.fromkeys((*near, *outer)))[:_MAX_LEVELS]
        more = f"and {len(paths) - len(some)} more, which --dry-run lists"
        return unknown(kind, level, (*some, more))


def with_levels(name: str, levels: Sequence[str]) -> str:
    """Returns the name of a network whose named parts are its levels.

    Args:
        name: the network's.
        levels: paths of its modules, such as 'block2/conv', from the first to the
            deepest: features 'stage1', 'stage2', ...; one that gives a vector is
            'pooled'.
    """
    return _name(Levels, name, {"levels": tuple(levels)})


def preprocessed(
    name: str,
    scale: Sequence[float] = (),
    shift: Sequence[float] = (),
    order: Sequence[int] = (),
) -> str:
    """Returns the name of a network that sees `images * scale + shift`.

    Args:
        name: the network's, whose variables fit as they are.
        scale: by channel, or one number for all; empty: 1.
        shift: by channel, or one number for all; empty: 0.
        order: the network's class that is class 0, class 1, ... of the data; empty: as
            they are.
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
