"""Networks from outside of the package: by import path, as objects, wrapped."""

import sys

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import models
from kdjax.runtime.errors import UserError
from kdjax.runtime.rng import fold

SHAPE = (8, 8, 3)
NETS = """
import flax.linen as nn
from flax import nnx


class Tiny(nn.Module):
    width: int = 4
    num_classes: int = 10
    rate: float = 0.0
    layers: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Conv(self.width, (3, 3), name="conv")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, name="bn")(x))
        x = x.mean((1, 2))
        x = nn.Dropout(self.rate, deterministic=not train)(x)
        return nn.Dense(self.num_classes, name="head")(x)


def small(num_classes):
    return Tiny(2, num_classes)
"""


@pytest.fixture
def nets(tmp_path, monkeypatch):
    """A module of one's own in the current directory."""
    (tmp_path / "my_nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    yield "my_nets"
    sys.modules.pop("my_nets", None)


def images(count=2, shape=SHAPE):
    return jnp.asarray(np.random.default_rng(0).normal(size=(count, *shape)))


def test_a_class_by_import_path_is_itself(nets):
    name = f"{nets}:Tiny(width=3)"
    network = models.create(name, 7)
    module = sys.modules[nets].Tiny(3, 7)
    key, x = jax.random.key(3), images()

    variables = models.init(key, name, 7, SHAPE)
    alone = module.init(fold(key, name, 7, 0), x)
    # Compiled with and without optimisation.
    chex.assert_trees_all_close(variables, alone, rtol=1e-5)
    assert jax.tree.map(jnp.shape, models.shapes(name, 7, SHAPE)) == jax.tree.map(
        jnp.shape, alone
    )

    outputs = network.apply(alone, x, train=False)
    np.testing.assert_array_equal(outputs.logits, module.apply(alone, x))
    outputs, new = network.apply(alone, x, train=True, mutable=["batch_stats"])
    logits, stats = module.apply(alone, x, train=True, mutable=["batch_stats"])
    np.testing.assert_array_equal(outputs.logits, logits)
    chex.assert_trees_all_equal(new, stats)
    assert outputs.features == {}


def test_objects_are_named_by_what_they_are(nets):
    models.create(f"{nets}:Tiny", 2)  # imports it
    module = sys.modules[nets]
    name = models.register(module.Tiny(8, layers=(1, 2)))
    assert name == f"{nets}:Tiny(width=8, layers=(1, 2))"
    assert models.create(name, 10).module == module.Tiny(8, 10, layers=(1, 2))
    assert models.register(module.Tiny) == f"{nets}:Tiny"
    assert models.register(module.small) == f"{nets}:small"
    assert models.create(f"{nets}:small", 5).module == module.Tiny(2, 5)
    assert models.register("resnet-8") == "resnet-8"


def test_a_local_class_is_known_to_this_process_alone():
    class Local(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3)(x.reshape(len(x), -1))

    name = models.register(Local())
    assert models.register(Local()) == name
    assert models.create(name, 3).init(jax.random.key(0), images())
    with pytest.raises(UserError, match="construct it and give it to kdjax.models"):
        models.create(name[:-9] + "00000000)", 3)
