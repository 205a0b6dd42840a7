"""Levels of one's own networks, by the paths of their modules."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import own_nets
import pytest
from flax import nnx

from kdjax import methods, models
from kdjax.models import lookup, wrapped
from kdjax.models.foreign import views  # noqa: F401 (its wrappers)
from kdjax.report import lineage
from kdjax.runtime.errors import UserError
from kdjax.runtime.rng import fold

SHAPE = (8, 8, 3)


KEY = jax.random.key(3)


def images(count=2, shape=SHAPE):
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.normal(size=(count, *shape)), jnp.float32)


def own_start(module, name, classes, x):
    """What the user's module itself starts with, from the network's key."""
    return module.init(fold(KEY, name, classes, 0), x)


def test_levels_are_what_the_modules_return():
    inner, x = "own_nets:Tiny(width=3, layers=(4, 5))", images()
    name = models.with_levels(inner, ("conv", "layer0", "layer1"))
    module = own_nets.Tiny(3, 10, layers=(4, 5))
    variables = own_start(module, name, 10, x)
    chex.assert_trees_all_close(models.init(KEY, name, 10, SHAPE), variables, rtol=1e-5)

    logits, seen = module.apply(
        variables, x, capture_intermediates=True, mutable=["intermediates"]
    )
    outputs = jax.jit(models.create(name, 10).apply)(variables, x)
    np.testing.assert_allclose(outputs.logits, logits, rtol=1e-5, atol=1e-6)
    for i, layer in enumerate(("conv", "layer0", "layer1"), 1):
        (expected,) = seen["intermediates"][layer]["__call__"]
        np.testing.assert_allclose(
            outputs.features[f"stage{i}"], expected, rtol=1e-5, atol=1e-6
        )
    with pytest.raises(UserError, match="'layer2'; choices: conv, bn, layer0, layer1"):
        models.shapes(models.with_levels(inner, ("layer2",)), 10, SHAPE)


def test_levels_lie_within_rematerialised_parts():
    inner = "own_nets:Transformed"
    name = models.with_levels(inner, ("block/conv", "block"))
    variables, x = models.init(KEY, name, 4, SHAPE), images()

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def grad(params):
        outputs = models.create(name, 4).apply({**variables, "params": params}, x)
        return outputs.features["stage2"].sum(), outputs.features

    grads, features = grad(variables["params"])
    assert np.any(grads["block"]["conv"]["kernel"] != 0)
    block = {"params": variables["params"]["block"]}
    expected = own_nets.Block().apply(block, x)
    # Of a part that runs twice, what it returned last.
    for value in features.values():
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(UserError, match=r"'repeated/conv' has no accessible output"):
        models.shapes(models.with_levels(inner, ("repeated/conv",)), 4, SHAPE)


def test_levels_of_nnx_and_of_wrapped_networks():
    inner = models.preprocessed("own_nets:TinyNNX(width=4)", (2.0,))
    name = models.with_levels(inner, ("conv", "mlp/layers/0"))
    variables, x = models.init(KEY, name, 7, SHAPE), images()
    outputs = models.create(name, 7).apply(variables, x)
    expected = nnx.Conv(3, 4, (3, 3), use_bias=False, rngs=nnx.Rngs(0))
    expected.kernel[...] = variables["params"]["conv"]["kernel"]
    np.testing.assert_allclose(
        outputs.features["stage1"], expected(2 * x), rtol=1e-5, atol=1e-6
    )
    assert outputs.features["pooled"].shape == (2, 5)
    with pytest.raises(UserError, match=r"'fc'; choices: .*mlp/layers/0"):
        models.shapes(models.with_levels(inner, ("fc",)), 7, SHAPE)


def test_missing_features_are_told_with_those_there_are():
    network = models.create(models.with_levels("own_nets:Tiny", ("conv",)), 10)
    outputs, _ = jax.eval_shape(network.init_with_output, KEY, images())
    method = methods.create("at", {"at": {"levels": ("stage1", "stage2")}})
    with pytest.raises(UserError, match=r"'stage2'; choices: stage1 .*student_levels="):
        jax.eval_shape(method.teacher_targets, outputs)
    apply = functools.partial(models.create("resnet-8", 10).init_with_output, KEY)
    outputs, _ = jax.eval_shape(lambda x: apply(x, train=False), images())
    method = methods.create("at", {"at": {"levels": ("stage9",)}})
    with pytest.raises(UserError) as error:
        jax.eval_shape(method.teacher_targets, outputs)
    assert "levels=" not in str(error.value)


def test_the_name_inside_wrappers_needs_no_module():
    seen = models.preprocessed("gone.nets:Net(width=3)", (2.0,))
    wrapped = models.with_levels(models.resized(seen, (96, 96), "bilinear"), ("stem",))
    assert "Levels" in wrapped
    assert "Resized" in wrapped
    assert models.inner(wrapped) == "gone.nets:Net(width=3)"
    assert lineage.plain(wrapped) == "gone.nets:Net(width=3)"
    assert models.inner("gone.nets:Net(network='x')") == "gone.nets:Net(network='x')"


def test_wrappers_are_where_their_names_are_looked_for():
    classes = wrapped.Wrapped.__subclasses__()
    assert len(classes) >= 3
    assert {cls.__module__ for cls in classes} <= set(lookup._WRAPPERS)
