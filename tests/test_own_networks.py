"""Networks from outside of the package: by import path, as objects, wrapped."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import own_nets
import pytest
from flax import nnx

from kdjax import methods, models
from kdjax.experiment import builders
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


def test_a_class_by_import_path_is_itself():
    name = "own_nets:Tiny(width=3)"
    module, x = own_nets.Tiny(3, 7), images()
    network = models.create(name, 7)

    variables, alone = models.init(KEY, name, 7, SHAPE), own_start(module, name, 7, x)
    # Compiled and not: they round differently.
    chex.assert_trees_all_close(variables, alone, rtol=1e-5)
    chex.assert_trees_all_equal_shapes(models.shapes(name, 7, SHAPE), alone)

    outputs = network.apply(alone, x, train=False)
    np.testing.assert_array_equal(outputs.logits, module.apply(alone, x))
    outputs, new = network.apply(alone, x, train=True, mutable=["batch_stats"])
    logits, stats = module.apply(alone, x, train=True, mutable=["batch_stats"])
    np.testing.assert_array_equal(outputs.logits, logits)
    chex.assert_trees_all_equal(new, stats)
    assert outputs.features == {}
    assert models.norms(name, 7) == {}
    assert builders.network(name) == name


def test_other_words_for_the_mode_and_features():
    name = "own_nets:Versioned"
    network = models.create(name, 4)
    variables = models.init(KEY, name, 4, SHAPE)
    outputs = network.apply(variables, images(), train=False)
    module = own_nets.Versioned()
    logits, _ = module.apply(variables, images())
    np.testing.assert_array_equal(outputs.logits, logits)
    assert models.needs_key(name, 4, SHAPE)
    assert outputs.features["stage1"].shape == (2, 8, 8, 3)
    assert models.version(name) == 3
    assert models.version("own_nets:Tiny") == 1
    assert models.version(f"simkd-2:{name}:resnet-8") == 6


def pure_nnx(variables, train, x, key=None):
    """The same computation in NNX alone: logits and statistics."""
    module = own_nets.TinyNNX(4, 7, rngs=nnx.Rngs(0))
    layers = variables["params"]["mlp"]["layers"]
    params = {
        **variables["params"],
        "mlp": {"layers": {0: layers["0"], 1: layers["1"]}},
    }
    nnx.update(module, nnx.merge_state(params, variables["batch_stats"]))
    module.train() if train else module.eval()
    module.dropout.rate = 0.0 if key is None else 0.5
    logits = module(x)
    return logits, {"mean": module.bn.mean[...], "var": module.bn.var[...]}


def test_nnx_by_import_path_is_itself():
    name, x = "own_nets:TinyNNX(width=4)", images(5)
    variables = models.init(KEY, name, 7, SHAPE)
    assert set(variables) == {"params", "batch_stats"}
    start = own_nets.TinyNNX(4, 7, rngs=nnx.Rngs(0))
    assert jax.tree.leaves(jax.tree.map(jnp.shape, variables["params"])) == (
        jax.tree.leaves(jax.tree.map(jnp.shape, nnx.state(start, nnx.Param)))
    )
    other = models.init(jax.random.key(4), name, 7, SHAPE)
    assert not np.allclose(
        variables["params"]["conv"]["kernel"], other["params"]["conv"]["kernel"]
    )

    network = models.create(name, 7)
    stats = {"bn": {"mean": jnp.arange(4.0), "var": jnp.arange(1.0, 5)}}
    variables = {**variables, "batch_stats": stats}
    outputs = network.apply(variables, x, train=False)
    expected, unmoved = pure_nnx(variables, False, x)
    np.testing.assert_allclose(outputs.logits, expected, rtol=1e-6, atol=1e-6)
    chex.assert_trees_all_equal(unmoved, stats["bn"])

    apply = functools.partial(network.apply, variables, x, True, ["batch_stats"])
    outputs, new = apply(rngs={"dropout": KEY})
    _, moved = pure_nnx(variables, True, x)
    chex.assert_trees_all_close(new["batch_stats"]["bn"], moved, rtol=1e-6)
    again, _ = apply(rngs={"dropout": KEY})
    np.testing.assert_array_equal(outputs.logits, again.logits)
    other, _ = apply(rngs={"dropout": jax.random.key(8)})
    assert not np.allclose(outputs.logits, other.logits)


def test_an_nnx_object_starts_from_its_own_values():
    module = own_nets.TinyNNX(4, 7, rngs=nnx.Rngs(5))
    name = models.register(module)
    assert models.register(own_nets.TinyNNX(4, 7, rngs=nnx.Rngs(5))) == name
    assert models.register(own_nets.TinyNNX(4, 7, rngs=nnx.Rngs(6))) != name
    variables = models.init(KEY, name, 7, SHAPE)
    np.testing.assert_array_equal(
        variables["params"]["conv"]["kernel"], module.conv.kernel[...]
    )
    network, x = models.create(name, 7), images()
    first, second = (
        network.apply(variables, x, True, ["batch_stats"], {"dropout": key})[0].logits
        for key in jax.random.split(KEY)
    )
    assert not np.allclose(first, second)
    module.eval()
    found = network.apply(variables, x).logits
    np.testing.assert_allclose(found, module(x), rtol=1e-6, atol=1e-6)


def test_only_networks_with_dropout_need_a_key():
    def needs(name):
        return models.needs_key(name, 7, SHAPE)

    assert needs("own_nets:Tiny(rate=0.5)")
    assert not needs("own_nets:Tiny")
    assert needs("own_nets:TinyNNX(width=2)")
    assert needs(models.preprocessed("own_nets:Tiny(rate=0.5)", (2.0,)))
    assert not needs("resnet-8")


def test_a_function_teaches_and_cannot_be_trained():
    weights = {"w": np.ones((192, 4), np.float32), "calls": np.int32(3)}

    def apply(variables, x):
        assert variables["calls"].dtype == jnp.int32
        return x.reshape(len(x), -1) @ variables["w"], {"pooled": x.mean((1, 2))}

    name = models.register(models.Function(apply, weights, "my teacher"))
    assert name.startswith("function:my_teacher(#")
    variables = models.init(KEY, name, 4, SHAPE)
    chex.assert_trees_all_equal(variables["params"], weights)
    network = models.create(name, 4)
    outputs = network.apply(variables, images())
    np.testing.assert_allclose(
        outputs.logits[:, 0], images().sum((1, 2, 3)), rtol=1e-5, atol=1e-5
    )
    with pytest.raises(UserError, match="can teach, but not be trained"):
        network.apply(variables, images(), train=True, mutable=["batch_stats"])

    found = models.function_id(name, SHAPE)
    twice = models.Function(lambda v, x: 2 * apply(v, x)[0], weights, "my teacher")
    assert models.register(twice) == name
    assert models.function_id(name, SHAPE) != found
    with pytest.raises(UserError, match="'resnet-8' is not a function"):
        models.function_id("resnet-8", SHAPE)


def test_a_preprocessed_network_has_the_variables_of_the_one_inside():
    order = (2, 0, 1)
    name = models.preprocessed("plain-2", (1, 2, 3), (0.5,), order)
    variables, x = models.init(KEY, "plain-2", 3, SHAPE), images()
    chex.assert_trees_all_equal_shapes(models.shapes(name, 3, SHAPE), variables)
    outputs = models.create(name, 3).apply(variables, x)
    seen = jnp.asarray(np.asarray(x) * np.asarray([1, 2, 3], np.float32) + 0.5)
    inner = models.create("plain-2", 3).apply(variables, seen, train=False)
    np.testing.assert_array_equal(outputs.logits, inner.logits[:, [2, 0, 1]])
    chex.assert_trees_all_equal(outputs.features, inner.features)
    assert models.version(name) == 2
    norms = models.norms(models.preprocessed("resnet-8", (2.0,)), 3)
    assert norms == models.norms("resnet-8", 3) != {}


def test_simkd_takes_ones_own_networks():
    trunk = models.with_levels(
        "own_nets:Tiny(width=3, layers=(4,))", ("conv", "layer0")
    )
    teacher = models.with_levels("own_nets:Tiny(width=6)", ("conv",))
    name = methods.create("simkd", {}).network(trunk, [teacher])
    variables, x = models.init(KEY, name, 7, SHAPE), images()
    assert variables["params"]["head"]["kernel"].shape == (6, 7)
    assert "head" not in variables["params"]["trunk"]
    assert variables["batch_stats"].keys() == {"projector", "trunk"}
    outputs, new = models.create(name, 7).apply(
        variables, x, train=True, mutable=["batch_stats"]
    )
    assert outputs.features["stage3"].shape == (2, 4, 4, 6)
    assert np.any(new["batch_stats"]["trunk"]["bn"]["mean"] != 0)

    for student, other, line in [
        (trunk, "own_nets:Pooling", "no dense layer named 'head'"),
        ("own_nets:TinyNNX(width=2)", teacher, "no linen module named 'head'"),
        (trunk, "own_nets:Tiny", "no feature stage1"),
        (trunk, models.preprocessed(teacher, order=(1, 0)), "another order"),
    ]:
        with pytest.raises(UserError, match=line):
            models.create(methods.create("simkd", {}).network(student, [other]), 2)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        (
            "own_nets:Pooling",
            r"fails on images of 8x8x3: .*\(it accepts 64x64: set image_size",
        ),
        (
            "own_nets:Tiny(num_classes=7)",
            "returns 7 logits; the data set has 4",
        ),
        ("own_nets:TinyNNX(width=2, channels=1)", "fails on images of 8x8x3: "),
        ("own_nets:Returns(what='map')", r"float32\[2, 8, 8, 4\]; it must return"),
        ("own_nets:Returns(what='dict')", "of type dict; it must return"),
        ("own_nets:Returns(what='three')", r"\(float32\[2, 4\], .*; it must return"),
        ("own_nets:Returns(what='integers')", r"int32\[2\]; it must return"),
        ("own_nets:Returns(what='feature')", r"'stage1' is float32\[4\]; features are"),
        (
            "own_nets:Caches",
            "variables in the collections cache; choices: params",
        ),
        ("own_nets:AlwaysDrops", "fails on images of 8x8x3: InvalidRngError"),
        ("own_nets:AlwaysMoves", "fails on images of 8x8x3: ModifyScopeVariable"),
        (
            models.preprocessed("resnet-8", (1.0, 2.0)),
            "2 numbers, but the images have 3",
        ),
        (models.preprocessed("resnet-8", order=(1, 0)), "2 classes, but .* 4 logits"),
    ],
)
def test_a_network_that_cannot_serve_is_told(name, line):
    with pytest.raises(UserError, match=line) as error:
        models.shapes(name, 4, SHAPE)
    assert "\n" not in str(error.value)
