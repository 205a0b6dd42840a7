"""Which parts of a network can be levels, and which BatchNorm belongs to a level."""

import jax
import jax.numpy as jnp

from kdjax.models import capture, checks, lookup


def parts(name: str, num_classes: int, image_shape: tuple[int, ...]) -> list[str]:
    """Returns the paths of a network's submodules, in the order in which they run.

    Each can be a level (`with_levels`).

    Args:
        name: the network's.
        num_classes: the number of classes.
        image_shape: height, width and channels.

    Raises:
        UserError: the network fails on such images.
    """
    network = lookup.create(name, num_classes)
    images = jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)
    with checks.user_errors(name, image_shape), capture.capturing(()) as captured:
        jax.eval_shape(network.init_with_output, jax.random.key(0), images)
    return captured.seen


def norms(name: str, num_classes: int) -> dict[str, tuple[str, ...]]:
    """Returns the path of the BatchNorm before a feature's activation, by feature.

    Where a block adds a shortcut, it is the last BatchNorm of the residual branch.
    Empty for families that do not declare these paths.

    Args:
        name: the network's.
        num_classes: the number of classes.
    """
    module = lookup.create(name, num_classes)
    return module.norms() if hasattr(module, "norms") else {}
