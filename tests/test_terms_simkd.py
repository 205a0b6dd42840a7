"""SimKD's terms and network, each against its formula."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import (
    np_pool,
)
from term_cases import (
    EXPERT,
    STUDENT,
    C,
    outputs,
    terms,
)

from kdjax import methods, models
from kdjax.models import Outputs, simkd
from kdjax.runtime.errors import UserError

pytestmark = pytest.mark.usefixtures("x64")


def test_simkd_is_the_distance_of_the_last_maps():
    features = {"stage4_pre": np.abs(outputs(4, 3).features["stage1"])}
    own = Outputs(STUDENT.logits, features)
    _, total, _ = terms("simkd", {"beta": 3.0}, roles={"student": own})
    theirs = np.maximum(EXPERT.features["stage3_pre"], 0)
    pooled = np.stack([np_pool(x, 2, 2) for x in features["stage4_pre"]])
    np.testing.assert_allclose(total, 3 * np.mean((pooled - theirs) ** 2), rtol=1e-9)


def test_simkd_deploys_trunk_projector_and_the_teachers_classifier():
    method = methods.create("simkd", {})
    name = method.network("resnet-8", ["wrn-10-1"])
    assert name == "simkd-2:resnet-8:wrn-10-1"
    shapes = models.shapes(name, C, (8, 8, 3))["params"]
    assert shapes.keys() == {"trunk", "projector", "head"}
    assert "head" not in shapes["trunk"]
    assert shapes["head"]["kernel"].shape == (64, C)
    teacher = models.shapes("wrn-10-1", C, (8, 8, 3))
    start = method.initial({"student": {"params": shapes}}, {"expert": teacher})
    assert start["student"]["params"]["head"] is teacher["params"]["head"]
    trains = method.phases()[0].trains
    assert not trains(("student", "head", "kernel"))
    assert trains(("student", "trunk", "stem", "conv", "kernel"))
    # It teaches, and its classifier is reused, as any other network's.
    again = models.shapes(method.network("wrn-10-1", [name]), C, (8, 8, 3))
    assert again["params"]["head"]["kernel"].shape == (64, C)


@pytest.mark.parametrize(
    ("student", "taken"),
    [
        # The published code's feat[-2]: a MobileNetV2's is linear, half of it negative.
        ("mobilenetv2-0.5", lambda features: features["stage4"]),
        ("resnet-8", lambda features: features["stage3"]),
        ("vgg-8", lambda features: features["stage4"]),
        ("shufflenetv2", lambda features: features["stage3"]),
        # Its own classifier reads the stage after BatchNorm and ReLU, and so do we.
        ("wrn-10-1", lambda features: np.maximum(features["stage3_pre"], 0)),
    ],
)
def test_simkd_takes_the_students_last_map_as_it_is(student, taken):
    trunk, rng = models.create(student, C), np.random.default_rng(0)
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    shapes = jax.eval_shape(
        lambda x: trunk.init_with_output(jax.random.key(0), x, train=False)[0], images
    )
    made = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), shapes)
    found = simkd.trunk_map(trunk, made)
    np.testing.assert_array_equal(found, taken(made.features))


class Negative(nn.Module):
    """A network whose last map is linear, and negative everywhere."""

    @nn.compact
    def __call__(self, x, train):
        x = -jnp.abs(x) - 1
        logits = nn.Dense(C, name="head")(x.mean((1, 2)))
        return Outputs(logits, {"stage1": x, "stage1_pre": x})


def test_simkd_projects_a_linear_map_unchanged():
    images = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
    network = simkd.Reusing(Negative(), 4, 2, C)
    outputs, variables = network.init_with_output(jax.random.key(1), images, train=True)
    parts = {name: part["projector"] for name, part in variables.items()}
    projector = simkd.Projector(4, 2)
    maps = -jnp.abs(images) - 1
    expected, _ = projector.apply(parts, maps, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(outputs.features["stage2"], expected, rtol=1e-12)
    assert np.any(expected != expected[:1, :1, :1])  # of zeros all would be equal


@pytest.mark.parametrize("name", ["mobilenetv2-0.5", "plain-2"])
def test_simkd_refuses_classifiers_of_other_features(name):
    with pytest.raises(UserError, match=f"simkd: the classifier of '{name}' does not"):
        models.create(f"simkd-2:resnet-8:{name}", C)
