"""BatchNorm and its own gradient against flax's and the definition."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import norm_cases
import numpy as np
import pytest
from jax.test_util import check_grads
from norm_cases import EXACT, SHAPE, assert_close, draw, flax_norm, values

from kdjax import models
from kdjax.models import layers, norm, wrn

LARGE = (64, 8, 8, 5)
READ = ("before ReLU", "after ReLU", "both")
FORMS = pytest.mark.parametrize("own", norm_cases.FORMS)
MODES = pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
close = np.testing.assert_allclose


@pytest.fixture
def form(monkeypatch, own):
    norm_cases.choose(monkeypatch, own)


@pytest.mark.usefixtures("x64", "form")
@FORMS
@MODES
@pytest.mark.parametrize("shape", [SHAPE, (7, 5)], ids=["maps", "vectors"])
@pytest.mark.parametrize("read", [slice(1), slice(1, 2), slice(2)], ids=READ)
def test_equals_flax(read, shape, train, rng):
    variables, x = draw(rng, shape)
    weights = rng.normal(size=shape)
    activations = (lambda y: y, nn.relu)[read]

    found = values(norm.BatchNorm(train), variables, x, weights, activations)

    expected = values(flax_norm(train), variables, x, weights, activations)
    assert found["out"][0].dtype == np.float64
    assert_close(found, expected, **EXACT)


@pytest.mark.usefixtures("x64")
def test_hand_worked_numbers():
    x = jnp.array([[1.0], [3.0]])  # mean 2, variance 1
    variables = {
        "params": {"scale": jnp.array([2.0]), "bias": jnp.array([5.0])},
        "batch_stats": {"mean": jnp.array([10.0]), "var": jnp.array([2.0])},
    }
    weights = jnp.array([[1.0], [0.0]])

    found = values(norm.BatchNorm(True), variables, x, weights, [lambda y: y])

    (y, new), (grads, to_x) = found["out"], found["grads"]
    close(y, [[3], [7]], rtol=1e-5)
    close(new["batch_stats"]["mean"], [9.2])
    close(new["batch_stats"]["var"], [1.9])
    # Of the weighted output, x is normalised to -1 and 1 wherever it lies; of the
    # squares, 2 * 9.2 * 0.1 goes to the mean and 2 * 1.9 * 0.1 to the variance.
    close(to_x, [[0.92 - 0.38], [0.92 + 0.38]], atol=1e-4)
    close(grads["params"]["scale"], [-1], rtol=1e-5)
    close(grads["params"]["bias"], [1])


@pytest.mark.usefixtures("x64")
@MODES
def test_gradients_are_those_of_differences(train, rng):
    variables, x = draw(rng)

    def apply(variables, x):
        return norm.BatchNorm(train).apply(variables, x, mutable=["batch_stats"])

    check_grads(apply, (variables, x), order=1, modes=["rev"])


def test_same_start_as_flax():
    x, key = jnp.ones((2, 3)), jax.random.key(0)

    with jax.enable_x64(True):  # where flax starts in float32 as well
        found = norm.BatchNorm(True).init(key, x)
        expected = flax_norm(True).init(key, x)

    jax.tree.map(np.testing.assert_array_equal, found, expected)
    for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        assert a.dtype == b.dtype


@pytest.mark.usefixtures("form")
@FORMS
@MODES
def test_bfloat16_has_float32_statistics(train, rng):
    variables, x = draw(rng, LARGE, np.float32)
    weights = jnp.asarray(rng.normal(size=x.shape), jnp.bfloat16)
    narrow = x.astype(jnp.bfloat16)
    wide = narrow.astype(np.float32)  # the same values

    linear = [lambda y: y]  # a ReLU's mask may differ near 0
    found = values(norm.BatchNorm(train), variables, narrow, weights, linear)

    weights = weights.astype(np.float32)
    expected = values(flax_norm(train), variables, wide, weights, linear)
    (y, new), (grads, to_x) = found["out"], found["grads"]
    assert y.dtype == to_x.dtype == jnp.bfloat16
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves((new, grads)))
    assert_close(new, expected["out"][1], rtol=1e-5, atol=1e-6)
    # bfloat16 keeps 8 bits: 2**-8 of each value, once for it and once for its sum.
    narrow_step = {"rtol": 2**-8, "atol": 2**-8}
    assert_close(y.astype(np.float32), expected["out"][0], **narrow_step)
    assert_close(to_x.astype(np.float32), expected["grads"][1], **narrow_step)
    # Sums of 4,096 products in float32.
    assert_close(grads, expected["grads"][0], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("mean", [100.0, 1e4])
def test_a_mean_far_from_zero_costs_what_it_costs_flax(mean, rng):
    variables, x = draw(rng, LARGE, np.float32)
    x += mean
    weights = jnp.asarray(rng.normal(size=x.shape), jnp.float32)

    found, expected = (
        values(module, variables, x, weights)
        for module in (norm.BatchNorm(True), flax_norm(True))
    )

    assert_close(found["out"], expected["out"], rtol=1e-5, atol=1e-5)
    for leaf in jax.tree.leaves(found):
        assert np.isfinite(leaf).all()
    if mean > 1e3:  # nothing is left of the variance, which makes both gradients noise
        return
    # Rounding of the sums, relative to the largest gradient of a leaf.
    jax.tree.map(
        lambda a, b: close(a, b, atol=1e-6 * mean * abs(b).max()),
        found["grads"],
        expected["grads"],
    )


@pytest.mark.parametrize("shape", [LARGE, (1, 1, 1, 5)], ids=["equal", "one"])
@pytest.mark.parametrize("value", [0.0, 0.1, 1e6])
def test_equal_values_are_finite(value, shape, rng):
    x = jnp.full(shape, value, jnp.float32)
    variables, _ = draw(rng, (1, 5), np.float32)
    weights = jnp.asarray(rng.normal(size=shape), jnp.float32)

    found = values(norm.BatchNorm(True), variables, x, weights)

    for leaf in jax.tree.leaves(found):
        assert np.isfinite(leaf).all()
    close(found["out"][1]["batch_stats"]["var"], 0.9 * variables["batch_stats"]["var"])


def test_a_clipped_variance_does_not_move():
    x, g = jnp.array([[1.0], [3.0]]), jnp.array([[5.0], [9.0]])
    scale, zero = jnp.array([2.0]), jnp.zeros(1)
    kept = x, scale, zero, jnp.array([2.0]), zero

    to_x, to_scale, to_bias = norm._backward(kept, (g, zero, zero))

    # The difference to the mean alone: 2 / sqrt(1e-5) times -2 and 2.
    close(to_x, [[-1264.911], [1264.911]], rtol=1e-5)
    close(to_scale, [4 / np.sqrt(1e-5)], rtol=1e-5)
    close(to_bias, [14])


@FORMS
def test_backend_chooses_the_form(own, form, rng):
    variables, x = draw(rng, dtype=np.float32)

    def apply(x):
        return norm.BatchNorm(True).apply(variables, x, mutable=["batch_stats"])

    assert ("custom_vjp" in str(jax.make_jaxpr(apply)(x))) == (own != "autodiff")


@pytest.mark.usefixtures("x64")
def test_a_networks_gradient_is_the_one_with_flax(monkeypatch, rng):
    shapes = models.shapes("wrn-10-1", 5, (8, 8, 3), jnp.float64)
    variables = jax.tree.map(lambda s: rng.normal(size=s.shape) ** 2 / 9, shapes)
    images, labels = rng.normal(size=(8, 8, 8, 3)), np.arange(8) % 5

    def gradients():
        def loss(params):
            whole = {**variables, "params": params}
            model = models.create("wrn-10-1", 5)
            out, new = model.apply(whole, images, True, mutable=["batch_stats"])
            # A term on maps that have not been rectified, as some methods add.
            extra = jnp.mean(out.features["stage1_pre"] ** 3)
            chosen = jax.nn.log_softmax(out.logits)[np.arange(8), labels]
            return extra - jnp.mean(chosen), new

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])

    found = gradients()
    for module in (wrn, layers):
        monkeypatch.setattr(module, "BatchNorm", flax_norm)
    expected = gradients()

    assert_close(found, expected, rtol=1e-10, atol=1e-12)
