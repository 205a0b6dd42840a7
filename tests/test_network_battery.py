"""Networks from outside of the package through the whole of training.

To run it over further ones, such as an installed family's or those of the current
directory: `KDJAX_TEST_NETWORKS='mine-3;nets:Net(width=2)' python -m pytest
tests/test_network_battery.py`.
"""

import functools
import importlib.util
import os

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax.traverse_util import flatten_dict

from kdjax import losses, methods, models
from kdjax.runtime.rng import fold
from kdjax.runtime.signals import Interrupted
from kdjax.train.networks import Networks

pytestmark = pytest.mark.usefixtures("x64")

DROPS = "own_nets:Tiny(width=3, rate=0.5)"
# Where torch and torchax are: a network of PyTorch's, traced.
HAS_TORCH = all(map(importlib.util.find_spec, ("torch", "torchax")))
NETWORKS = (
    DROPS,
    models.with_levels("own_nets:TinyNNX(width=3)", ("conv", "bn")),
    *(("torch_own:Net(width=3, rate=0.5)",) if HAS_TORCH else ()),
    *filter(None, os.environ.get("KDJAX_TEST_NETWORKS", "").split(";")),
)
# Weight decay moves every parameter: off, so that gradients must.
RECIPE = tiny.replace(weight_decay=0.0)


@functools.cache
def program(name, devices=1, micro_batches=1):
    return tiny.program(
        "kd",
        student=name,
        teachers={"expert": name},
        devices=devices,
        recipe=RECIPE,
        micro_batches=micro_batches,
    )


@functools.cache
def after_two_steps(name, devices=1, micro_batches=1):
    return tiny.steps(program(name, devices, micro_batches), 2)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_parameter_moves(name):
    start = models.init(jax.random.key(0), name, tiny.CLASSES, tiny.SHAPE)
    state, totals = after_two_steps(name)
    assert all(np.isfinite(total) for total in totals["sums"].values())
    for part in ("params", "batch_stats"):
        moved = flatten_dict(getattr(state, part)["student"], sep="/")
        for path, leaf in flatten_dict(start[part], sep="/").items():
            assert np.all(np.isfinite(moved[path])), path
            # A bias before a BatchNorm has no gradient.
            assert np.any(moved[path] != leaf) or path.endswith("bias"), path


@pytest.mark.parametrize("name", NETWORKS)
def test_evaluation_is_of_each_image_alone(name):
    """As it is not where BatchNorm or dropout are left in training mode."""
    variables = tiny.frozen(model=name)["expert"]
    network = models.create(name, tiny.CLASSES)
    images = np.random.default_rng(0).normal(size=(4, *tiny.SHAPE))
    together = network.apply(variables, images, train=False).logits
    apart = network.apply(variables, 0 * images + images[:1], train=False).logits
    np.testing.assert_allclose(together[0], apart[0], rtol=1e-9)


@pytest.mark.parametrize("name", [NETWORKS[0], *NETWORKS[2:]])
def test_one_device_equals_eight(name):
    one, many = after_two_steps(name), after_two_steps(name, tiny.BATCH)
    chex.assert_trees_all_close(one, many, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", NETWORKS)
def test_interrupted_equals_uninterrupted(name, tmp_path):
    whole = tiny.training(program(name), tmp_path / "whole").run()
    stopped = tiny.InterruptAfter(15, 1)
    with pytest.raises(Interrupted):
        tiny.training(
            program(name), tmp_path / "cut", interrupt=stopped, every_s=1e9
        ).run()
    resumed = tiny.training(program(name), tmp_path / "cut").run()
    assert resumed["digest"] == whole["digest"]


def test_dropout_takes_a_key_of_the_step_and_micro_batch():
    """One step in two halves, against gradients by hand.

    Of a scratch teacher: its key has no role in it, so that it retraces its expert.
    """
    name = DROPS
    prog = tiny.program(
        "ctkd",
        {"ctkd": {"scratch": name, "beta": 0.0}},
        recipe=RECIPE,
        micro_batches=2,
    )
    (state, _), key = tiny.steps(prog, 1), jax.random.key(0)
    (batch,) = tiny.batches(prog, 1)
    start = models.init(key, name, tiny.CLASSES, tiny.SHAPE, 0, jnp.float64)
    network = models.create(name, tiny.CLASSES)

    @jax.jit
    def loss(params, stats, rows):
        images, labels, index = (
            x[rows] for x in (batch.images, batch.labels, batch.index)
        )
        rngs = {"dropout": fold(key, "step", 0, "dropout", name, 0, index[0])}
        variables = {"params": params, "batch_stats": stats}
        outputs, new = network.apply(
            variables, images, True, mutable=["batch_stats"], rngs=rngs
        )
        return losses.cross_entropy(outputs.logits, labels).mean(), new["batch_stats"]

    half = tiny.BATCH // 2
    grad = jax.grad(loss, has_aux=True)
    first, stats = grad(start["params"], start["batch_stats"], np.arange(half))
    second, stats = grad(start["params"], stats, np.arange(half, tiny.BATCH))
    expected = jax.tree.map(
        lambda p, a, b: p - RECIPE.learning_rate * (a + b) / 2,
        *(start["params"], first, second),
    )
    chex.assert_trees_all_close(
        state.params["scratch"], expected, rtol=1e-9, atol=1e-12
    )
    chex.assert_trees_all_close(state.batch_stats["scratch"], stats, rtol=1e-9)


def test_a_function_teaches_as_the_network_that_it_runs():
    model, images = tiny.TEACHER, np.ones((2, *tiny.SHAPE))
    given = tiny.frozen()["expert"]

    def apply(variables, x):
        return models.create(model, tiny.CLASSES).apply(variables, x, train=False)

    name = models.register(models.Function(apply, given))
    targets, ids = [], []
    for teacher in (model, name):
        networks = Networks(
            methods.create("at", {}),
            tiny.STUDENT,
            {"expert": teacher},
            tiny.CLASSES,
            tiny.SHAPE,
            dtype=jnp.float64,
        )
        key = jax.random.key(7)
        frozen = models.init(key, teacher, tiny.CLASSES, tiny.SHAPE, 0, jnp.float64)
        chex.assert_trees_all_equal(frozen, given)
        targets.append(networks.targets({"expert": frozen}, jnp.asarray(images)))
        ids.append(networks.target_id("expert"))
    chex.assert_trees_all_equal(*targets)
    assert ids[0] == ids[1]
