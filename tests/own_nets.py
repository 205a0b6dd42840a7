"""Networks as users write them: nothing of kdjax in them."""

import flax.linen as nn
import jax.numpy as jnp
from flax import nnx


class Tiny(nn.Module):
    """BatchNorm and dropout in linen; the classifier is 'head'."""

    width: int = 4
    num_classes: int = 10
    rate: float = 0.0
    layers: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Conv(self.width, (3, 3), use_bias=False, name="conv")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, name="bn")(x))
        for i, width in enumerate(self.layers):
            x = nn.relu(nn.Conv(width, (3, 3), 2, name=f"layer{i}")(x))
        x = nn.Dropout(self.rate, deterministic=not train)(x.mean((1, 2)))
        return nn.Dense(self.num_classes, name="head")(x)


class Block(nn.Module):
    """A convolution, twice the same."""

    @nn.compact
    def __call__(self, x):
        conv = nn.Conv(3, (3, 3), name="conv")
        return conv(conv(x))


class Trunk(nn.Module):
    """Two layers of maps, and two dense ones after them, of other names."""

    num_classes: int = 10

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(3, (3, 3), name="first")(x))
        x = nn.relu(nn.Conv(4, (3, 3), 2, name="second")(x))
        x = nn.relu(nn.Dense(5, name="fc1")(x.mean((1, 2))))
        return nn.Dense(self.num_classes, name="fc2")(x)


class Transformed(nn.Module):
    """Has a part that is computed again for its gradient, and a repeated one."""

    @nn.compact
    def __call__(self, x):
        def repeat(block, x, _):
            return block(x), None

        x = nn.remat(Block)(name="block")(x)
        scan = nn.scan(repeat, {"params": 0}, split_rngs={"params": True}, length=2)
        x, _ = scan(Block(name="repeated"), x, None)
        return nn.Dense(4)(x.mean((1, 2)))


class Versioned(nn.Module):
    """Named features, and a version of its numbers."""

    VERSION = 3

    @nn.compact
    def __call__(self, x, deterministic=True):
        assert isinstance(deterministic, bool)
        x = nn.Conv(3, (3, 3))(x)
        features = {"stage1": x, "pooled": x.mean((1, 2))}
        x = nn.Dropout(0.5, deterministic=deterministic)(features["pooled"])
        return nn.Dense(4)(x), features


class TinyNNX(nnx.Module):
    """BatchNorm, dropout and a list of layers in NNX."""

    def __init__(self, width, num_classes, channels=3, *, rngs):
        self.conv = nnx.Conv(channels, width, (3, 3), use_bias=False, rngs=rngs)
        self.bn = nnx.BatchNorm(width, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.mlp = nnx.Sequential(
            nnx.Linear(width, 5, rngs=rngs), nnx.Linear(5, num_classes, rngs=rngs)
        )

    def __call__(self, x):
        x = nnx.relu(self.bn(self.conv(x)))
        return self.mlp(self.dropout(x.mean((1, 2))))


def small(num_classes):
    """A function that returns a network."""
    return Tiny(2, num_classes)


def nothing():
    """A function that returns none."""
    return "resnet-8"


class Pooling(nn.Module):
    """Wants images of some size."""

    @nn.compact
    def __call__(self, x):
        for _ in range(3):
            x = nn.max_pool(nn.Conv(3, (3, 3))(x), (4, 4), (4, 4))
        return nn.Dense(4)(x.reshape(len(x), -1))


class Returns(nn.Module):
    """Returns what is no network's output."""

    what: str

    @nn.compact
    def __call__(self, x):
        logits = nn.Dense(4)(x.reshape(len(x), -1))
        return {
            "map": nn.Conv(4, (3, 3))(x),
            "dict": {"logits": logits},
            "three": (logits, {}, logits),
            "integers": logits.argmax(-1),
            "feature": (logits, {"stage1": logits[0]}),
        }[self.what]


class Asks(nn.Module):
    """Wants an argument that nobody has."""

    @nn.compact
    def __call__(self, x, mask):
        return nn.Dense(4)(x.reshape(len(x), -1) * mask)


class Caches(nn.Module):
    """Keeps variables of another kind."""

    @nn.compact
    def __call__(self, x):
        self.variable("cache", "count", jnp.zeros, ())
        return nn.Dense(4)(x.reshape(len(x), -1))


class AlwaysDrops(nn.Module):
    """Drops out in evaluation as well: it has no mode."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dropout(0.5, deterministic=False)(x.reshape(len(x), -1))
        return nn.Dense(4)(x)


class AlwaysMoves(nn.Module):
    """Moves its statistics in evaluation as well."""

    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=False)(x.reshape(len(x), -1))
        return nn.Dense(4)(x)


number = 3
