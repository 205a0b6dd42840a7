"""AT between sizes, KDSVD, VID's and ReviewKD's adapters, and what does not fit."""

import jax
import jax.numpy as jnp
import network
import numpy as np
import pytest

from kdjax import losses, methods
from kdjax.methods import Context
from kdjax.methods.levels import attention_distance, attention_map
from kdjax.methods.reviewkd import Fusion, Review, nearest
from kdjax.methods.vid import Variational
from kdjax.models import Outputs
from kdjax.runtime.errors import UserError

BATCH = 2
STUDENT = {"stage1": (8, 6, 2), "stage2": (4, 3, 4), "pooled": (4,)}
TEACHER = {"stage1": (4, 6, 3), "stage2": (2, 6, 5), "pooled": (7,)}
LEVELS = tuple(STUDENT)


def outputs(shapes, seed=0):
    random = np.random.default_rng(seed)
    features = {
        level: jnp.asarray(random.normal(size=(BATCH, *shape)), jnp.float32)
        for level, shape in shapes.items()
    }
    return Outputs(jnp.ones((BATCH, 3)), features)


def context(method, student, teacher, step=0):
    return Context(
        labels=jnp.zeros(BATCH, jnp.int32),
        index=jnp.arange(BATCH),
        outputs={"student": student},
        targets={"expert": method.teacher_targets(teacher)},
        recorded={},
        adapted={},
        step=jnp.int32(step),
        key=jax.random.key(0),
    )


def adapter_shapes(name, student, teacher):
    """The shapes of parameters and results, without computing anything."""
    method = methods.create(name, {name: {"levels": LEVELS}})
    targets = {"expert": method.teacher_targets(teacher)}
    seen = {"student": student}
    (adapter,) = method.adapters(seen, targets).values()
    found, variables = jax.eval_shape(
        lambda key: adapter.init_with_output(key, seen, targets, train=True),
        jax.random.key(0),
    )
    return found, jax.tree.map(lambda leaf: leaf.shape, variables["params"])


def test_kdsvd_has_its_weight_and_levels():
    method = methods.create("kdsvd", {"kdsvd": {"beta": 3.0, "levels": LEVELS[:2]}})
    student, teacher = outputs(STUDENT), outputs(STUDENT, seed=1)
    term = method.terms(context(method, student, teacher))["kdsvd/expert"]
    pairs = [
        [maps.features[level] for level in LEVELS[:2]] for maps in (student, teacher)
    ]
    np.testing.assert_allclose(term.value, losses.kdsvd(*pairs), rtol=1e-6)
    assert np.all(term.value > 1e-3)
    assert term.weight == 3


def test_kdsvd_names_widths_that_differ():
    method = methods.create("kdsvd", {"kdsvd": {"levels": LEVELS[:2]}})
    with pytest.raises(
        UserError, match=r"kdsvd.*stage1 \(8, 6, 2\).*\(4, 6, 3\).*equal widths"
    ):
        method.terms(context(method, outputs(STUDENT), outputs(TEACHER)))
    method = methods.create("kdsvd", {"kdsvd": {"levels": LEVELS[:2], "k": 3}})
    with pytest.raises(UserError, match=r"k=3 is more than .* stage1 \(8, 6, 2\)"):
        method.terms(context(method, outputs(STUDENT), outputs(STUDENT)))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("nst", {"levels": ()}, "nst: levels .* choices: 1 or more"),
        ("vid", {"levels": ()}, "vid: levels .* choices: 1 or more"),
        ("vid", {"variance": 0.0}, r"variance 0\.0 is not above"),
        ("kdsvd", {"levels": ("stage1",)}, "kdsvd: levels .* choices: 2 or more"),
        ("kdsvd", {"k": 0}, "kdsvd: k 0 is outside 1..1,000,000"),
        ("reviewkd", {"levels": ()}, "reviewkd: levels .* choices: 1 or more"),
        (
            "reviewkd",
            {"warmup_steps": -1},
            "warmup_steps -1 is outside 0..2,147",
        ),
    ],
)
def test_bad_options_are_told(name, options, message):
    with pytest.raises(UserError, match=message):
        methods.create(name, {name: options})


def test_nst_takes_maps_of_any_size_and_width():
    method = methods.create("nst", {"nst": {"levels": LEVELS[:2]}})
    made = context(method, outputs(STUDENT), outputs(TEACHER))
    assert np.all(np.isfinite(method.terms(made)["nst/expert"].value))


# VID.


def test_vid_guesses_maps_of_the_smaller_size():
    found, params = adapter_shapes("vid", outputs(STUDENT), outputs(TEACHER))
    sizes = {"stage1": (4, 6, 3), "stage2": (2, 3, 5), "pooled": (1, 1, 7)}
    for level, size in sizes.items():
        mean, log_scale = found[level]
        assert mean.shape == (BATCH, *size)
        assert log_scale.shape == size[2:]
        kernels = [params[f"{level}_conv{i}"] for i in (1, 2, 3)]
        narrow = STUDENT[level][-1]
        assert kernels == [
            {"kernel": (1, 1, inputs, size[2])} for inputs in (narrow, size[2], size[2])
        ]


def test_vid_starts_from_its_variance_and_is_the_loss_of_its_adapter():
    method = methods.create("vid", {"vid": {"levels": ("stage1",), "variance": 3.0}})
    student, teacher = outputs(STUDENT), outputs(TEACHER)
    made = context(method, student, teacher)
    (adapter,) = method.adapters(made.outputs, made.targets).values()
    assert adapter == Variational(("stage1",), 3.0)
    guesses, variables = adapter.init_with_output(
        jax.random.key(0), made.outputs, made.targets, train=True
    )
    mean, log_scale = guesses["stage1"]
    np.testing.assert_allclose(np.log1p(np.exp(log_scale)) + 1e-5, 3 * np.ones(3), 1e-5)
    kernels = {
        name: part["kernel"][0, 0]
        for name, part in variables["params"].items()
        if name.endswith(("1", "2", "3"))
    }
    x = np.asarray(student.features["stage1"]).reshape(BATCH, 4, 2, 6, 2).mean(axis=2)
    x = np.maximum(x @ kernels["stage1_conv1"], 0)
    x = np.maximum(x @ kernels["stage1_conv2"], 0) @ kernels["stage1_conv3"]
    np.testing.assert_allclose(mean, x, rtol=1e-4, atol=1e-5)
    made.adapted["vid/expert"] = guesses
    value = method.terms(made)["vid/expert"].value
    square = (np.asarray(teacher.features["stage1"]) - x) ** 2
    expected = (square / 3 + np.log(3)).mean(axis=(1, 2, 3)) / 2
    np.testing.assert_allclose(value, expected, rtol=1e-4)


# ReviewKD.


def test_reviews_have_the_teachers_shapes():
    found, params = adapter_shapes("reviewkd", outputs(STUDENT), outputs(TEACHER))
    middle = 4  # the student's deepest width
    for level, theirs in TEACHER.items():
        shape = theirs if len(theirs) == 3 else (1, 1, *theirs)
        assert found[level].shape == (BATCH, *shape)
        part = params[level]
        assert part["conv1"]["kernel"] == (1, 1, STUDENT[level][-1], middle)
        assert part["conv2"]["kernel"] == (3, 3, middle, shape[2])
        # The deepest level has nothing to be fused with.
        assert ("gates" in part) == (level != "pooled")
    assert params["stage1"]["gates"] == {"kernel": (1, 1, 2 * middle, 2), "bias": (2,)}


@pytest.mark.parametrize(
    ("size", "picked"),
    [(6, [0, 0, 1, 1, 2, 2]), (2, [0, 1]), (5, [0, 0, 1, 1, 2]), (3, [0, 1, 2])],
)
def test_nearest_picks_as_torch_does(size, picked):
    x = jnp.arange(3.0).reshape(1, 3, 1, 1)
    np.testing.assert_array_equal(nearest(x, (size, 1)).ravel(), picked)
    turned = nearest(x.swapaxes(1, 2), (1, size))
    np.testing.assert_array_equal(turned.ravel(), picked)


def test_fusion_equals_numpy():
    random = np.random.default_rng(0)
    x, deeper = (
        random.normal(size=(BATCH, 4, 4, 3)),
        random.normal(size=(BATCH, 2, 2, 5)),
    )
    fusion = Fusion(5, (8, 8, 6))
    with jax.enable_x64(True):
        variables = fusion.init(jax.random.key(0), x, deeper, train=True)
        variables = jax.tree.map(
            lambda leaf: random.uniform(0.5, 1.5, leaf.shape), variables
        )
        (out, below), _ = fusion.apply(
            variables, x, deeper, train=True, mutable=["batch_stats"]
        )
    net = network.Network(variables, train=True)
    x = net.normalise("bn1", net.conv("conv1", x))
    deeper = deeper.repeat(2, axis=1).repeat(2, axis=2)
    gates = 1 / (1 + np.exp(-net.conv("gates", np.concatenate([x, deeper], axis=3))))
    x = x * gates[..., :1] + deeper * gates[..., 1:]
    x = x.repeat(2, axis=1).repeat(2, axis=2)
    np.testing.assert_allclose(below, x, rtol=1e-9, atol=1e-11)
    x = net.normalise("bn2", net.conv("conv2", x))
    np.testing.assert_allclose(out, x, rtol=1e-9, atol=1e-11)


def test_reviews_go_from_the_deepest_level_to_the_first():
    # The first level depends on the deepest map, the deepest on nothing else.
    student, teacher = outputs(STUDENT), outputs(TEACHER)
    targets = {"expert": methods.create("reviewkd", {"reviewkd": {"levels": LEVELS}})}
    targets = {"expert": targets["expert"].teacher_targets(teacher)}
    review = Review(LEVELS)
    variables = review.init(jax.random.key(0), {"student": student}, targets, True)

    def say(changed):
        features = {**student.features, changed: student.features[changed] ** 2}
        seen = {"student": Outputs(student.logits, features)}
        return review.apply(variables, seen, targets, False)

    first, last = say("stage1"), say("pooled")
    before = review.apply(variables, {"student": student}, targets, False)
    assert np.any(last["stage1"] != before["stage1"])
    np.testing.assert_array_equal(first["pooled"], before["pooled"])
    np.testing.assert_array_equal(first["stage2"], before["stage2"])
    assert np.any(first["stage1"] != before["stage1"])


def test_reviewkds_weight_may_rise():
    method = methods.create("reviewkd", {"reviewkd": {"warmup_steps": 4, "beta": 2.0}})
    level = jnp.ones((BATCH, 1, 1, 1))
    features = dict.fromkeys(method.levels, level)
    made = context(
        method, Outputs(jnp.ones((BATCH, 3)), features), Outputs(0, features)
    )
    made.adapted["reviewkd/expert"] = features
    weight = method.terms(made)["reviewkd/expert"].weight
    assert [float(weight(step)) for step in (0, 1, 4, 9)] == [0, 0.5, 2, 2]


def test_attention_maps_of_different_sizes_are_pooled(rng):
    own = rng.normal(size=(2, 4, 2, 3))
    theirs = rng.normal(size=(2, 8, 4, 5))

    def normalised(q):
        return q / np.sqrt(np.sum(q**2, axis=(1, 2), keepdims=True))

    student = normalised(np.mean(own**2, axis=3))
    teacher = normalised(np.mean(theirs**2, axis=3))
    teacher = normalised(teacher.reshape(2, 4, 2, 2, 2).mean(axis=(2, 4)))
    expected = np.mean((student - teacher) ** 2, axis=(1, 2))
    maps = [
        {"stage1": attention_map(Outputs(0, {"stage1": jnp.asarray(x)}), "stage1", 2.0)}
        for x in (own, theirs)
    ]
    for pair in (maps, maps[::-1]):  # whichever of the two is the larger
        distance = attention_distance(*pair, "mean_square")
        np.testing.assert_allclose(distance, expected, rtol=1e-5)


def test_attention_of_equal_sizes_is_the_loss_of_the_features(rng):
    own, theirs = (jnp.asarray(rng.normal(size=(2, 4, 3, n))) for n in (3, 5))
    maps = [
        {"stage1": attention_map(Outputs(0, {"stage1": x}), "stage1", 3.0)}
        for x in (own, theirs)
    ]
    distance = attention_distance(*maps, "l2")
    expected = losses.attention_transfer(own, theirs, power=3.0, norm="l2")
    np.testing.assert_array_equal(distance, expected)
    with pytest.raises(ValueError, match=r"\(2, 4, 3\).*batch, height, width"):
        losses.match_attention(maps[0]["stage1"], theirs)
