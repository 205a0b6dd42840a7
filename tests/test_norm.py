"""BatchNorm and its own gradient against flax's and the definition."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from jax.test_util import check_grads

from kdjax import models
from kdjax.models import layers, norm, wrn
from kdjax.runtime import backend, parallel

SHAPE, LARGE = (4, 3, 2, 5), (64, 8, 8, 5)
OWN = pytest.mark.parametrize("own", ["own", "own, joint sums"])
FORMS = pytest.mark.parametrize("own", ["own", "own, joint sums", "autodiff"])
MODES = pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
close = np.testing.assert_allclose


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
    jax.tree.map(lambda a, b: close(a, b, **tolerance), found, expected)


READ = ("before ReLU", "after ReLU", "both")
EXACT = {"rtol": 1e-12, "atol": 1e-12}


@pytest.fixture
def form(monkeypatch, own):
    monkeypatch.setattr(backend, "own_batch_norm_gradient", lambda: own != "autodiff")
    monkeypatch.setattr(backend, "joint_sums", lambda: own == "own, joint sums")


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


@pytest.mark.usefixtures("x64", "form")
@OWN
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own variables"])
def test_under_vmap(shared, rng):
    drawn = [draw(rng) for _ in range(2)]
    weights = rng.normal(size=SHAPE)
    together = jax.tree.map(lambda *leaves: jnp.stack(leaves), *drawn)
    if shared:
        drawn = [(drawn[0][0], x) for _, x in drawn]
        together = drawn[0][0], together[1]

    def run(module):
        return lambda variables, x: values(module, variables, x, weights)

    found = jax.vmap(run(norm.BatchNorm(True)), in_axes=(None if shared else 0, 0))(
        *together
    )

    each = [run(flax_norm(True))(*one) for one in drawn]
    expected = jax.tree.map(lambda *leaves: np.stack(leaves), *each)
    assert_close(found, expected, **EXACT)


@pytest.mark.usefixtures("x64", "form")
@OWN
def test_a_sharded_batch_is_seen_as_a_whole(rng):
    variables, x = draw(rng)
    weights = rng.normal(size=SHAPE)
    mesh = parallel.make_mesh(jax.devices()[:4])
    split = jax.device_put((x, weights), parallel.over_devices(mesh))

    @jax.jit
    def run(variables, x, weights):
        return values(norm.BatchNorm(True), variables, x, weights)

    found = run(jax.device_put(variables, parallel.replicated(mesh)), *split)

    assert found["grads"][1].sharding.spec == PartitionSpec("data")
    expected = values(flax_norm(True), variables, x, weights)
    assert_close(found, expected, **EXACT)


@pytest.mark.usefixtures("x64", "form")
@OWN
def test_replicas_on_a_manual_axis(rng):
    drawn = [draw(rng) for _ in range(2)]
    weights = rng.normal(size=SHAPE)
    mesh = jax.make_mesh(
        (2, 2), ("replica", "data"), axis_types=(jax.sharding.AxisType.Auto,) * 2
    )

    def run(variables, x):
        variables, x = jax.tree.map(lambda leaf: leaf[0], (variables, x))
        found = values(norm.BatchNorm(True), variables, x, weights)
        return jax.tree.map(lambda leaf: leaf[None], found)

    replicas = PartitionSpec("replica")
    mapped = jax.jit(
        jax.shard_map(
            run,
            mesh=mesh,
            in_specs=replicas,
            out_specs=replicas,
            axis_names={"replica"},
        )
    )
    variables, x = jax.tree.map(lambda *leaves: jnp.stack(leaves), *drawn)
    x = jax.device_put(x, jax.NamedSharding(mesh, PartitionSpec("replica", "data")))
    found = mapped(variables, x)

    each = [values(flax_norm(True), *one, weights) for one in drawn]
    expected = jax.tree.map(lambda *leaves: np.stack(leaves), *each)
    assert_close(found, expected, **EXACT)


@pytest.mark.usefixtures("x64", "form")
@OWN
def test_under_checkpoint(rng):
    variables, x = draw(rng)
    weights = rng.normal(size=SHAPE)

    found = values(nn.remat(norm.BatchNorm)(True), variables, x, weights)

    assert_close(found, values(flax_norm(True), variables, x, weights), **EXACT)


@pytest.mark.usefixtures("x64", "form")
@OWN
def test_its_gradient_has_a_gradient(rng):
    """As attacks on images inside the loss need it."""
    variables, x = draw(rng)
    weights = rng.normal(size=SHAPE)

    def slope(module, x):
        def loss(x):
            return jnp.sum(
                module.apply(variables, x, mutable=["batch_stats"])[0] ** 3 * weights
            )

        return jnp.sum(jax.grad(loss)(x) ** 2)

    found = jax.grad(lambda x: slope(norm.BatchNorm(True), x))(x)

    expected = jax.grad(lambda x: slope(flax_norm(True), x))(x)
    assert_close(found, expected, rtol=1e-9, atol=1e-9)


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


@pytest.mark.usefixtures("x64")
def test_forward_mode_is_refused(rng):
    variables, x = draw(rng)

    def apply(x):
        return norm.BatchNorm(True).apply(variables, x, mutable=["batch_stats"])[0]

    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(apply, (x,), (x,))


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
