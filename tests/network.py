"""Networks in NumPy, for comparison."""

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from kdjax import models

# Even sides: only there does 'SAME' pad stride-2 convolutions on one side alone.
SMALL = (8, 12, 3)
CLASSES = 7


def convolve(x, kernel, stride=1):
    """As PyTorch pads it: by half the kernel's size on every side."""
    size = kernel.shape[0]
    border = size // 2
    x = np.pad(x, ((0, 0), (border, border), (border, border), (0, 0)))
    height, width = (side - size + 1 for side in x.shape[1:3])
    taps = [
        x[:, i : i + height : stride, j : j + width : stride] @ kernel[i, j]
        for i in range(size)
        for j in range(size)
    ]
    return sum(taps)


class Network:
    """The layers of a network; `stats` collects the new statistics."""

    def __init__(self, variables, train):
        self.params = flatten_dict(variables["params"], sep="/")
        self.old = flatten_dict(variables["batch_stats"], sep="/")
        self.train, self.stats = train, {}

    def conv(self, name, x, stride=1):
        x = convolve(x, self.params[f"{name}/kernel"], stride)
        return x + self.params.get(f"{name}/bias", 0)

    def normalise(self, name, x):
        mean, var = self.old[f"{name}/mean"], self.old[f"{name}/var"]
        if self.train:
            self.stats[f"{name}/mean"] = 0.9 * mean + 0.1 * x.mean((0, 1, 2))
            self.stats[f"{name}/var"] = 0.9 * var + 0.1 * x.var((0, 1, 2))
            mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
        scale, bias = self.params[f"{name}/scale"], self.params[f"{name}/bias"]
        return (x - mean) / np.sqrt(var + 1e-5) * scale + bias


def random_variables(name, rng):
    """Returns variables for a network by its name; see `drawn`."""
    return drawn(models.shapes(name, CLASSES, SMALL, jnp.float64), rng)


def drawn(shapes, rng):
    """Not the initial ones: there, scales of 1 and means of 0 would hide mistakes."""

    def draw(path, leaf):
        if path[-1].key in ("var", "scale"):
            return rng.uniform(0.5, 1.5, leaf.shape)
        fan_in = np.prod(leaf.shape[:-1])
        return rng.normal(size=leaf.shape) / np.sqrt(fan_in)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def assert_close(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(
            found[name], expected[name], rtol=1e-9, atol=1e-11, err_msg=name
        )
