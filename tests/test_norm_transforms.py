"""BatchNorm's own gradient under JAX's transformations and over several devices."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import norm_cases
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from norm_cases import EXACT, SHAPE, assert_close, draw, flax_norm, values

from kdjax.models import norm
from kdjax.runtime import parallel

OWN = pytest.mark.parametrize("own", norm_cases.OWN)


@pytest.fixture
def form(monkeypatch, own):
    norm_cases.choose(monkeypatch, own)


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


@pytest.mark.usefixtures("x64")
def test_forward_mode_is_refused(rng):
    variables, x = draw(rng)

    def apply(x):
        return norm.BatchNorm(True).apply(variables, x, mutable=["batch_stats"])[0]

    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(apply, (x,), (x,))
