"""BatchNorm on made-up inputs, and flax's, for the tests of its own gradient."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from kdjax.runtime import backend

SHAPE = (4, 3, 2, 5)
OWN = ("own", "own, joint sums")
FORMS = (*OWN, "autodiff")
EXACT = {"rtol": 1e-12, "atol": 1e-12}


def choose(monkeypatch, form):
    """Makes the backend choose one of `FORMS`."""
    monkeypatch.setattr(backend, "own_batch_norm_gradient", lambda: form != "autodiff")
    monkeypatch.setattr(backend, "joint_sums", lambda: form == "own, joint sums")


def flax_norm(train, **options):
    return nn.BatchNorm(not train, momentum=0.9, epsilon=1e-5, **options)


def draw(rng, shape=SHAPE, dtype=np.float64):
    """Returns variables and an input with another mean in every channel."""
    size = shape[-1]
    variables = {
        "params": {"scale": rng.uniform(0.5, 2, size), "bias": rng.normal(size=size)},
        "batch_stats": {"mean": rng.normal(size=size), "var": rng.uniform(1, 2, size)},
    }
    x = rng.normal(size=shape) * rng.uniform(0.5, 2, size) + rng.normal(size=size)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), (variables, x))


def values(module, variables, x, weights, activations=(lambda y: y, nn.relu)):
    """Returns outputs, new statistics, and gradients of what depends on all of them."""

    def loss(variables, x):
        y, new = module.apply(variables, x, mutable=["batch_stats"])
        total = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(new))
        for i, activation in enumerate(activations):
            total += jnp.sum(activation(y) * jnp.roll(weights, i))
        return total, (y, new)

    grads, out = jax.grad(loss, argnums=(0, 1), has_aux=True)(variables, x)
    return {"out": out, "grads": grads}


def assert_close(found, expected, **tolerance):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **tolerance), found, expected
    )
