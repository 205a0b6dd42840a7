"""Names of one's own networks: how they are read, and what they refer to."""

import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import own_nets
import pytest

from kdjax import models
from kdjax.models import names
from kdjax.runtime.errors import UserError

SHAPE = (8, 8, 3)


KEY = jax.random.key(3)


def images(count=2, shape=SHAPE):
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.normal(size=(count, *shape)), jnp.float32)


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
    with pytest.raises(UserError, match="it needs 'not_installed'"):
        models.create("wanting_nets:Tiny", 7)
    del sys.modules["nets_of_mine"]


def test_packages_are_those_that_a_name_imports():
    found = models.packages("flax.linen:Dense(features=3)")
    assert found == {"flax": __import__("flax").__version__}
    assert models.packages("resnet-8") == {}
    assert models.packages("simkd-2:resnet-8:own_nets:Tiny") == {"own_nets": "unknown"}
    wrapped = models.preprocessed("own_nets:Tiny", (2.0,))
    assert models.packages(wrapped) == {"own_nets": "unknown"}


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
    with pytest.raises(UserError, match="type int is not a network; choices: modules"):
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
    with pytest.raises(UserError, match=r"construct it and pass it to kdjax\.models"):
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
        ("own_nets:Tiny(width=print)", "arguments must be numbers"),
        ("own_nets:Tiny(width=3", "not of the form package"),
        ("own_nets:Tiny(3)(4)", "not of the form package"),
        ("own_nets:Asks", "__call__ requires 'mask'; choices: images and one of"),
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
