"""Networks from outside of the package: by import path, as objects, wrapped."""

import functools
import sys

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import own_nets
import pytest
from flax import nnx

from kdjax import methods, models
from kdjax.experiment import builders
from kdjax.models import names
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


# Names


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("a.b:C", ("a.b", "C", (), {})),
        ("a:C.D", ("a", "C.D", (), {})),
        ("a:C()", ("a", "C", (), {})),
        ("a:C(1, x=(2,2),y='p:(q)')", ("a", "C", (1,), {"x": (2, 2), "y": "p:(q)"})),
    ],
)
def test_names_are_parsed(name, reference):
    assert models.is_own(name)
    found = names.parse(name)
    assert (*found[:3], dict(found.kwargs)) == reference
    assert names.parse(names.canonical(found)) == found


@pytest.mark.parametrize("name", ["resnet-8", "simkd-2:resnet-8:a:B", "x", "a-b:C"])
def test_other_names_are_no_ones_own(name):
    assert not models.is_own(name)


@pytest.mark.parametrize(
    ("joined", "expected"),
    [
        ("resnet-8:resnet-20", ("resnet-8", "resnet-20")),
        ("shufflenetv1:shufflenetv2", ("shufflenetv1", "shufflenetv2")),
        ("a.b:C:resnet-8", ("a.b:C", "resnet-8")),
        ("a:C(x=':)', y=(1,)):b:D(2)", ("a:C(x=':)', y=(1,))", "b:D(2)")),
        ("wrn-10-1:a:C", ("wrn-10-1", "a:C")),
        ("resnet-8", ("resnet-8", "")),
    ],
)
def test_joined_names_are_split(joined, expected):
    assert names.first(joined, models.MODELS) == expected


# Linen


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


def test_the_current_directory_is_looked_in(tmp_path, monkeypatch):
    (tmp_path / "nets_of_mine.py").write_text("from own_nets import Tiny\n")
    (tmp_path / "broken_nets.py").write_text("1 +\n")
    (tmp_path / "wanting_nets.py").write_text("import not_installed\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    assert models.create("nets_of_mine:Tiny", 7).module == own_nets.Tiny(num_classes=7)
    assert models.packages("nets_of_mine:Tiny") == {"nets_of_mine": "unknown"}
    with pytest.raises(UserError, match="'broken_nets' cannot be imported: SyntaxErr"):
        models.create("broken_nets:Tiny", 7)
    with pytest.raises(UserError, match="it wants 'not_installed'"):
        models.create("wanting_nets:Tiny", 7)
    del sys.modules["nets_of_mine"]


def test_packages_are_those_that_a_name_imports():
    found = models.packages("flax.linen:Dense(features=3)")
    assert found == {"flax": __import__("flax").__version__}
    assert models.packages("resnet-8") == {}
    assert models.packages("simkd-2:resnet-8:own_nets:Tiny") == {"own_nets": "unknown"}
    wrapped = models.preprocessed("own_nets:Tiny", (2.0,))
    assert models.packages(wrapped) == {"own_nets": "unknown"}


# Objects


def test_objects_are_named_by_what_they_are():
    name = models.register(own_nets.Tiny(8, layers=(1, 2)))
    assert name == "own_nets:Tiny(width=8, layers=(1, 2))"
    assert models.create(name, 10).module == own_nets.Tiny(8, 10, layers=(1, 2))
    assert models.register(own_nets.Tiny) == "own_nets:Tiny"
    assert models.register(own_nets.TinyNNX) == "own_nets:TinyNNX"
    assert models.register(own_nets.small) == "own_nets:small"
    assert models.create("own_nets:small", 5).module == own_nets.Tiny(2, 5)
    assert models.register("resnet-8") == "resnet-8"
    # A module with its variables is the module.
    bound = own_nets.Tiny(8).bind(own_nets.Tiny(8).init(KEY, images()))
    assert models.register(bound) == "own_nets:Tiny(width=8)"
    with pytest.raises(UserError, match="type int is not known; choices: linen"):
        models.register(3)


class Activated(nn.Module):
    """Has a setting that cannot be written in a name."""

    function: object
    num_classes: int = 3

    @nn.compact
    def __call__(self, x):
        return self.function(nn.Dense(self.num_classes)(x.reshape(len(x), -1)))


def test_other_objects_are_known_to_this_process_alone():
    name = models.register(Activated(nn.relu))
    assert name.startswith(f"{__name__}:Activated(#")
    assert models.register(Activated(nn.relu)) == name
    assert models.register(Activated(nn.tanh)) != name
    assert models.register(Activated(lambda x: 2 * x)) != models.register(
        Activated(lambda x: 3 * x)
    )
    variables = models.init(KEY, name, 3, SHAPE)
    logits = models.create(name, 3).apply(variables, images()).logits
    assert np.min(logits) == 0
    with pytest.raises(UserError, match=r"construct it and give it to kdjax\.models"):
        models.create(f"{__name__}:Activated(#00000000)", 3)


def test_what_takes_a_names_place_is_seen():
    """As in a notebook, whose cells define a class again."""

    def define(width):
        class Local(nn.Module):
            @nn.compact
            def __call__(self, x):
                return nn.Dense(3)(nn.Dense(width)(x.reshape(len(x), -1)))

        return Local()

    shapes = []
    for width in (4, 5):
        name = models.register(define(width))
        shapes.append(models.shapes(name, 3, SHAPE)["params"]["Dense_1"]["kernel"])
    assert name == models.register(define(5))
    assert [leaf.shape for leaf in shapes] == [(192, 4), (192, 5)]

    module = sys.modules["__main__"]
    for width in (4, 5):
        cls = type("InMain", (Activated,), {"__module__": "__main__"})
        cls.__qualname__, module.InMain = "InMain", cls
        name = models.register(cls(num_classes=width, function=None))
        assert name == f"__main__:InMain(function=None, num_classes={width})"
        assert models.identity(name)[0] is cls
    del module.InMain


# NNX


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


# Random numbers


def test_only_networks_with_dropout_need_a_key():
    def needs(name):
        return models.needs_key(name, 7, SHAPE)

    assert needs("own_nets:Tiny(rate=0.5)")
    assert not needs("own_nets:Tiny")
    assert needs("own_nets:TinyNNX(width=2)")
    assert needs(models.preprocessed("own_nets:Tiny(rate=0.5)", (2.0,)))
    assert not needs("resnet-8")


# Functions


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


# Wrapped


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
    with pytest.raises(UserError, match=r"'repeated/conv' returns cannot be seen"):
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


# Mistakes


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("no_such_module:Net", "there is no module 'no_such_module'"),
        ("own_nets.sub:Net", r"no module 'own_nets\.sub'|cannot be imported"),
        ("own_nets:Tinny", "'Tinny'; choices: Tiny, TinyNNX"),
        ("own_nets:number", "number is of type int"),
        ("own_nets:nothing", "of type str, not a module of flax"),
        ("own_nets:Tiny(depth=3)", r"'depth'; it takes \(width: int"),
        ("own_nets:TinyNNX(width=2, depth=3)", "'depth'; it takes .*width"),
        ("own_nets:TinyNNX()", "missing .*'width'"),
        ("own_nets:Tiny(width=print)", "arguments are numbers"),
        ("own_nets:Tiny(width=3", "not of the form package"),
        ("own_nets:Tiny(3)(4)", "not of the form package"),
        ("own_nets:Asks", "__call__ wants 'mask'; it may ask for images and one of"),
        ("kdjax.models.wrapped:Levels(network='resnet-8', levels=())", "1 to 9 paths"),
        ("kdjax.models.wrapped:Preprocessed(network='resnet-9')", "depth 9"),
        ("kdjax.models.wrapped:Preprocessed(order=(1,))", "refuses its arguments"),
        (models.preprocessed("resnet-8", order=(1, 1)), "name each class"),
    ],
)
def test_a_name_that_leads_to_no_network_is_told(name, line):
    with pytest.raises(UserError, match=line) as error:
        models.create(name, 4)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        (
            "own_nets:Pooling",
            r"fails on images of 8x8x3: .*\(it takes 64x64: image_size",
        ),
        ("own_nets:Tiny(num_classes=7)", "gives 7 logits; the data set has 4 classes"),
        ("own_nets:TinyNNX(width=2, channels=1)", "fails on images of 8x8x3: "),
        ("own_nets:Returns(what='map')", r"float32\[2, 8, 8, 4\]; it must return"),
        ("own_nets:Returns(what='dict')", "of type dict; it must return"),
        ("own_nets:Returns(what='three')", r"\(float32\[2, 4\], .*; it must return"),
        ("own_nets:Returns(what='integers')", r"int32\[2\]; it must return"),
        ("own_nets:Returns(what='feature')", r"'stage1' is float32\[4\]; features are"),
        ("own_nets:Caches", "keeps variables in cache; choices: params, batch_stats"),
        ("own_nets:AlwaysDrops", "fails on images of 8x8x3: InvalidRngError"),
        ("own_nets:AlwaysMoves", "fails on images of 8x8x3: ModifyScopeVariable"),
        (models.preprocessed("resnet-8", (1.0, 2.0)), "2 numbers for images of 3 chan"),
        (models.preprocessed("resnet-8", order=(1, 0)), "2 classes, but .* 4 logits"),
    ],
)
def test_a_network_that_cannot_serve_is_told(name, line):
    with pytest.raises(UserError, match=line) as error:
        models.shapes(name, 4, SHAPE)
    assert "\n" not in str(error.value)


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
