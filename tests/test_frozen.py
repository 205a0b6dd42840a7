"""Frozen networks: in two parts, with BatchNorm folded, they compute what they did."""

import collections
import functools
import importlib.util

import chex
import jax
import jax.numpy as jnp
import numpy as np
import own_nets
import pytest
from jax import lax

from kdjax import models
from kdjax.train.frozen import Frozen
from kdjax.train.model_outputs import apply_model

pytestmark = pytest.mark.usefixtures("x64")
SHAPE, CLASSES = (8, 8, 3), 10
WEIGHTS = {
    "kernel": np.random.default_rng(3).normal(size=(3, 3, 3, 4)),
    "vector": np.array([0.5, -2.0, 3.0, 1.5]).reshape(1, 1, 1, 4),
    "map": np.random.default_rng(4).normal(size=(1, 8, 8, 1)),
}


def images(dtype=jnp.float64, seed=0):
    drawn = np.random.default_rng(seed).normal(size=(4, *SHAPE))
    return jnp.asarray(drawn, dtype)


def network(name, dtype=jnp.float64):
    """A network as a function, and its variables as after some training."""
    variables = models.init(jax.random.key(0), name, CLASSES, SHAPE, 0, dtype)
    rng = np.random.default_rng(1)

    def moved(leaf):
        return leaf + jnp.asarray(0.1 * rng.normal(size=leaf.shape), leaf.dtype)

    variables = {**variables, "params": jax.tree.map(moved, variables["params"])}
    variables["batch_stats"] = measured(name, variables, dtype)
    module = models.create(name, CLASSES)
    return lambda tree, x: module.apply(tree, x, train=False), variables


def measured(name, variables, dtype):
    """BatchNorm's statistics of some images: with others a deep network is dead."""
    start = variables["batch_stats"]
    key = functools.partial(jax.random.key, 0)
    _, stats = apply_model(name, CLASSES, dtype, True, variables, images(), key)
    # A step goes a tenth of the way.
    return jax.tree.map(lambda old, new: old + 10 * (new - old), start, stats)


def calls(frozen, variables, x):
    """The operations of a call, by name."""
    prepared = jax.eval_shape(frozen.prepare, variables)
    traced = jax.make_jaxpr(frozen)(prepared, x)
    return collections.Counter(one.primitive.name for one in traced.jaxpr.eqns)


# How many BatchNorms are not folded: those before a convolution, after one that another
# operation reads, and after one that is written as shifted maps or in groups.
FAMILIES = {
    "resnet-14": 0,
    "padded_resnet-8": 0,
    "wrn-10-1": 4,  # before the convolutions; the stem is a feature, too
    "wrn-10-2-fan_out": 4,
    "vgg-8": 0,
    "plain-4": 1,  # the first convolution's maps are the feature 'stem'
    "bottleneck_resnet-50": 0,
    "mobilenetv2-0.5": 17,
    "shufflenetv1": 47,
    "shufflenetv2": 19,
}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_computes_what_it_did(name):
    function, variables = network(name)
    frozen = Frozen(function, variables, images())
    expected = jax.jit(function)(variables, images(seed=5))
    found = jax.jit(frozen)(jax.jit(frozen.prepare)(variables), images(seed=5))
    chex.assert_trees_all_close(found, expected, rtol=1e-10, atol=1e-10)
    assert jnp.std(expected.logits, 0).min() > 1e-3  # the network is alive
    # What is left of a BatchNorm subtracts its mean; nothing else does.
    assert calls(frozen, variables, images())["sub"] == FAMILIES[name]
    assert calls(frozen, variables, images())["rsqrt"] == 0


def test_only_what_is_asked_for_keeps_a_convolution_apart():
    function, variables = network("plain-4")
    logits = Frozen(lambda tree, x: function(tree, x).logits, variables, images())
    assert calls(logits, variables, images())["sub"] == 0


def convolve(weights, x, layout="NHWC"):
    numbers = layout, "HWIO", layout
    kernel = jnp.asarray(weights["kernel"])
    return lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=numbers
    )


ARITHMETIC = ("add", "sub", "mul", "div", "neg")


@pytest.mark.parametrize(
    ("change", "folded"),
    [
        (lambda y, w: y * w["vector"] + 2.0, True),
        (lambda y, w: 3.0 - y / w["vector"], True),
        (lambda y, w: (w["vector"] - y) * w["vector"] - 1.0, True),
        (lambda y, w: (y + w["vector"]).astype(jnp.float32) * 2 + 1, True),
        (lambda y, w: (y + w["map"]) * w["vector"], False),
        (lambda y, w: w["vector"] / y + w["vector"], False),
        (lambda y, w: y * y + w["vector"], False),
        (lambda y, w: y * jnp.max(y) + w["vector"], False),
        (lambda y, w: y.astype(jnp.int32) * 2 + 1, False),
    ],
)
@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_what_scales_and_shifts_channels_is_folded(change, folded, layout):
    def function(weights, x):
        if layout == "NCHW":
            x = jnp.moveaxis(x, -1, 1)
        y = convolve(weights, x, layout)
        if layout == "NCHW":
            weights = {key: jnp.moveaxis(one, -1, 1) for key, one in weights.items()}
        return change(y, weights)

    frozen = Frozen(function, WEIGHTS, images())
    found = frozen(frozen.prepare(WEIGHTS), images())
    expected = function(WEIGHTS, images())
    assert found.dtype == expected.dtype
    tolerance = 1e-5 if found.dtype == jnp.float32 else 1e-10
    np.testing.assert_allclose(found, expected, tolerance, tolerance)
    traced = jax.make_jaxpr(frozen)(frozen.prepare(WEIGHTS), images())
    left = [
        one
        for one in traced.jaxpr.eqns
        if one.primitive.name in ARITHMETIC and one.outvars[0].aval.size > 4
    ]
    # Of a folded one the shift is left.
    assert len(left) == (1 if folded else 2)


def test_maps_that_two_read_are_computed_once():
    def function(weights, x):
        y = convolve(weights, x)
        return y * weights["vector"], y

    frozen = Frozen(function, WEIGHTS, images())
    found = frozen(frozen.prepare(WEIGHTS), images())
    chex.assert_trees_all_close(found, function(WEIGHTS, images()), rtol=1e-10)
    assert calls(frozen, WEIGHTS, images())["conv_general_dilated"] == 1


def test_convolved_weights_and_kernels_made_of_images_are_left():
    def function(weights, x):
        own = {"kernel": jnp.mean(x, 0)[:3, :3, :, None] * jnp.ones((1, 1, 1, 4))}
        fixed = convolve(weights, jnp.moveaxis(weights["kernel"], -1, 0))
        return convolve(own, x) * weights["vector"], fixed * 2.0

    frozen = Frozen(function, WEIGHTS, images())
    found = frozen(frozen.prepare(WEIGHTS), images())
    chex.assert_trees_all_close(found, function(WEIGHTS, images()), rtol=1e-10)


def test_what_does_not_depend_on_images_is_computed_before():
    function, variables = network("resnet-8", jnp.float32)

    def lowered(tree, x):
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), tree["params"])
        return function({**tree, "params": params}, x.astype(jnp.bfloat16)).logits

    frozen = Frozen(lowered, variables, images(jnp.float32))
    prepared = frozen.prepare(variables)
    # A kernel and a shift for each of nine convolutions, and the classifier's two.
    assert len(prepared) == 20
    kernels = [leaf for leaf in prepared if leaf.ndim == 4 and leaf.shape[2] > 1]
    assert len(kernels) == 9
    assert {leaf.dtype for leaf in kernels} == {jnp.dtype(jnp.bfloat16)}
    left = calls(frozen, variables, images(jnp.float32))
    assert left["mul"] == left["rsqrt"] == 0


def test_what_would_grow_is_made_where_it_is_used():
    def function(weights, x):
        return convolve(weights, x) + jnp.broadcast_to(weights["vector"], (4, 8, 8, 4))

    prepared = Frozen(function, WEIGHTS, images()).prepare(WEIGHTS)
    assert sorted(leaf.size for leaf in prepared) == [4, WEIGHTS["kernel"].size]


@pytest.mark.parametrize("name", ["resnet-20", "wrn-16-1", "vgg-8"])
def test_in_bfloat16_it_is_as_close_to_float32_as_before(name):
    function, variables = network(name, jnp.float32)
    x = images(jnp.float32)

    def lowered(tree, x):
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), tree["params"])
        return function({**tree, "params": params}, x.astype(jnp.bfloat16)).logits

    exact = function(variables, x).logits
    assert jnp.std(exact, 0).min() > 1e-3
    frozen = Frozen(lowered, variables, x)

    def error(logits):
        apart = jnp.square(logits.astype(jnp.float32) - exact)
        return float(jnp.sqrt(jnp.mean(apart) / jnp.mean(jnp.square(exact))))

    before = error(jax.jit(lowered)(variables, x))
    after = error(jax.jit(frozen)(frozen.prepare(variables), x))
    assert 0 < after < 2 * before


@pytest.mark.parametrize(
    "name", ["own_nets:Tiny", "own_nets:Transformed", "own_nets:TinyNNX(4)"]
)
def test_networks_of_ones_own(name):
    assert own_nets  # imported by its name
    function, variables = network(name)
    frozen = Frozen(function, variables, images())
    expected = function(variables, images())
    found = frozen(frozen.prepare(variables), images())
    chex.assert_trees_all_close(found, expected, rtol=1e-6, atol=1e-6)
    assert calls(frozen, variables, images())["rsqrt"] == 0


@pytest.mark.skipif(
    importlib.util.find_spec("torchax") is None, reason="torchax is not installed"
)
def test_networks_of_pytorch():
    name = "torch_own:Padded"
    function, variables = network(name, jnp.float32)
    x = images(jnp.float32)
    frozen = Frozen(function, variables, x)
    found = frozen(frozen.prepare(variables), x)
    chex.assert_trees_all_close(found, function(variables, x), rtol=1e-4, atol=1e-5)
    left = calls(frozen, variables, x)
    assert left["sub"] == left["rsqrt"] == 0
