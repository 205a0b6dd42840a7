"""Checks whether one's own network can be used, by its shapes alone."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import flax.errors
import jax
import jax.numpy as jnp

from kdjax.models.base import Variables
from kdjax.models.names import brief
from kdjax.models.own import Network
from kdjax.runtime.errors import UserError


@contextlib.contextmanager
def user_errors(
    name: str,
    image_shape: tuple[int, ...],
    advice: Callable[[], str] = lambda: "",
) -> Iterator[None]:
    """Turns every error of one's own network into a UserError of one line.

    Args:
        name: the network's.
        image_shape: height, width and channels.
        advice: returns text to add to the line.

    Raises:
        UserError: in place of any other error.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        size = "x".join(map(str, image_shape))
        raise UserError(
            f"model {name!r} fails on images of {size}: {brief(error)}{advice()}"
        ) from error


def _taken(network: Network, image_shape: tuple[int, ...]) -> Callable[[], str]:
    """Returns a function that finds a larger image size that a network accepts."""

    def advice() -> str:
        for factor in (2, 4, 8, 16, 32):
            height, width = (side * factor for side in image_shape[:2])
            images = jax.ShapeDtypeStruct(
                (2, height, width, *image_shape[2:]), jnp.float32
            )
            with contextlib.suppress(Exception):
                jax.eval_shape(network.init_with_output, jax.random.key(0), images)
                return f" (it accepts {height}x{width}: set image_size)"
        return ""

    return advice


def check(
    network: Network, name: str, num_classes: int, image_shape: tuple[int, int, int]
) -> None:
    """Checks a network by its shapes: nothing is computed.

    Args:
        network: the network.
        name: its name, for error messages.
        num_classes: the data set's.
        image_shape: height, width and channels.

    Raises:
        UserError: the network fails, keeps variables in unknown collections, returns a
            wrong number of logits, or has a feature map of size 0.
    """
    images = jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)
    with user_errors(name, image_shape, _taken(network, image_shape)):
        variables = jax.eval_shape(network.init, jax.random.key(0), images)
        if others := sorted(
            key
            for key, part in variables.items()
            if key not in ("params", "batch_stats") and jax.tree.leaves(part)
        ):
            raise UserError(
                f"model {name!r} has variables in the collections {', '.join(others)}; "
                "choices: params, batch_stats"
            )
        outputs = jax.eval_shape(network.apply, variables, images)
    if (given := outputs.logits.shape[-1]) != num_classes:
        raise UserError(
            f"model {name!r} returns {given} logits; the data set has {num_classes} "
            "classes"
        )
    for feature, value in outputs.features.items():
        if not value.size:
            raise UserError(
                f"model {name!r}: images of {image_shape[0]}x{image_shape[1]} are too "
                f"small: feature {feature!r} is empty, {list(value.shape)}"
            )


def needs_key(network: Network, image_shape: tuple[int, ...]) -> bool:
    """Returns whether a network uses random numbers in training mode.

    Args:
        network: the network.
        image_shape: height, width and channels.

    Raises:
        UserError: the network fails in training mode.
    """
    images = jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)
    variables: Variables = jax.eval_shape(network.init, jax.random.key(0), images)

    def train(variables: Variables, images: jax.Array) -> Any:
        return network.apply(variables, images, True, mutable=["batch_stats"])

    with user_errors(network.name, image_shape):
        try:
            jax.eval_shape(train, variables, images)
        except flax.errors.InvalidRngError:
            return True
    return False
