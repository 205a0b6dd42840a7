"""The losses against NumPy and hand-worked numbers, their gradients and their edges."""

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from kdjax import losses

B, C = 3, 5  # examples and classes
H, W = 2, 4  # a map that is not square, so that swapped axes show


# The formulas once more, in NumPy and example by example.
def softened(logits, temperature):
    powers = np.exp(logits / temperature)
    return powers / powers.sum()


def np_kd(s, t, temperature=4.0):
    p_s, p_t = softened(s, temperature), softened(t, temperature)
    return temperature**2 * (p_t * np.log(p_t / p_s)).sum()


def np_soft_cross_entropy(s, t, temperature=4.0):
    p_s, p_t = softened(s, temperature), softened(t, temperature)
    return -(p_t * np.log(p_s)).sum()


def np_logit_matching(s, t):
    return np.linalg.norm(s - t) ** 2


def np_attention_map(features, power=2.0):
    height, width, channels = features.shape
    flat = np.zeros(height * width)
    for y in range(height):
        for x in range(width):
            for c in range(channels):
                flat[y * width + x] += abs(features[y, x, c]) ** power
    return flat / np.linalg.norm(flat)


def np_attention_transfer(s, t, power=2.0, norm="mean_square"):
    distance = np.linalg.norm(np_attention_map(s, power) - np_attention_map(t, power))
    return distance if norm == "l2" else distance**2 / (s.shape[0] * s.shape[1])


def np_attention_distance(s, t, norm="mean_square"):
    return {"l2": np.linalg.norm(s - t), "mean_square": ((s - t) ** 2).mean()}[norm]


def np_feature_mse(s, t):
    return np.linalg.norm(s - t) ** 2 / s.size


class Case(NamedTuple):
    """A loss with its options, its NumPy twin and the shapes of one example."""

    call: partial
    twin: Callable
    student: tuple
    teacher: tuple

    def inputs(self, dtype=np.float64):
        random = np.random.default_rng(0)
        return (
            random.normal(size=(B, *self.student)).astype(dtype),
            random.normal(size=(B, *self.teacher)).astype(dtype),
        )


LOGITS = (C,), (C,)
MAPS = (H, W, 3), (H, W, 6)
FLAT = (H * W,), (H * W,)
KD = Case(partial(losses.kd), np_kd, *LOGITS)
SOFT = Case(partial(losses.soft_cross_entropy), np_soft_cross_entropy, *LOGITS)
CASES = [
    KD,
    SOFT,
    Case(partial(losses.logit_matching), np_logit_matching, *LOGITS),
    *(
        Case(partial(losses.attention_transfer, **kwargs), np_attention_transfer, *MAPS)
        for kwargs in ({}, {"power": 3}, {"power": 1.5, "norm": "l2"})
    ),
    *(
        Case(partial(losses.attention_distance, **kwargs), np_attention_distance, *FLAT)
        for kwargs in ({}, {"norm": "l2"})
    ),
    Case(partial(losses.feature_mse), np_feature_mse, (H, W, 3), (H, W, 3)),
]
every_case = pytest.mark.parametrize(
    "case",
    CASES,
    ids=lambda case: "-".join(
        map(str, (case.call.func.__name__, *case.call.keywords.values()))
    ),
)


@partial(jax.jit, static_argnums=0)
def run(loss, student, teacher):
    """The values, and the gradients of their sum for student and teacher."""
    value, pull = jax.vjp(loss, student, teacher)
    return value, *pull(jnp.ones_like(value))


@jax.jit
@jax.grad
def slope_of_cross_entropy(logits, labels):
    return losses.cross_entropy(logits, labels).sum()


# Values.


@every_case
def test_equals_numpy(case):
    student, teacher = case.inputs()
    expected = [
        case.twin(s, t, **case.call.keywords)
        for s, t in zip(student, teacher, strict=True)
    ]
    with jax.enable_x64(True):
        replicas = jax.vmap(case.call)  # here of one example each
        for actual in (
            case.call(student, teacher),
            jax.jit(case.call)(student, teacher),
            jax.jit(replicas)(student[:, None], teacher[:, None])[:, 0],
        ):
            assert actual.shape == (B,)
            np.testing.assert_allclose(actual, expected, rtol=1e-12)


def test_cross_entropy_equals_numpy():
    logits = np.random.default_rng(0).normal(size=(B, C))
    labels = np.array([4, 0, 2])
    expected = [
        -np.log(softened(row, 1)[label])
        for row, label in zip(logits, labels, strict=True)
    ]
    with jax.enable_x64(True):
        for function in (losses.cross_entropy, jax.jit(losses.cross_entropy)):
            actual = function(logits, labels)
            assert actual.shape == (B,)
            np.testing.assert_allclose(actual, expected, rtol=1e-12)


def test_attention_map_equals_numpy():
    features = np.random.default_rng(0).normal(size=(B, H, W, 3))
    with jax.enable_x64(True):
        for power in (2, 3.0):
            expected = [np_attention_map(f, power) for f in features]
            actual = jax.jit(losses.attention_map)(features, power=power)
            np.testing.assert_allclose(actual, expected, rtol=1e-12)


def test_cross_entropy_by_hand():
    # softmax [0, ln 3] = [1/4, 3/4]; -log of each.
    logits = np.log([[1.0, 3.0], [1.0, 3.0]])
    actual = jax.jit(losses.cross_entropy)(logits, np.array([0, 1]))
    np.testing.assert_allclose(actual, np.log([4, 4 / 3]), rtol=1e-6)


def test_kd_and_soft_cross_entropy_by_hand():
    # At temperature 2 the logits are halved: p_t = [3/4, 1/4], p_s = [1/4, 3/4].
    teacher = 2 * np.log([[3.0, 1.0]])
    student = 2 * np.log([[1.0, 3.0]])
    # KL = 3/4 ln 3 + 1/4 ln 1/3 = 1/2 ln 3; times 2^2.
    divergence = jax.jit(losses.kd)(student, teacher, temperature=2.0)
    np.testing.assert_allclose(divergence, [2 * np.log(3)], rtol=1e-6)
    # H = 3/4 ln 4 + 1/4 ln 4/3 = ln 4 - 1/4 ln 3.
    entropy = jax.jit(losses.soft_cross_entropy)(student, teacher, temperature=2.0)
    np.testing.assert_allclose(entropy, [np.log(4) - np.log(3) / 4], rtol=1e-6)


def test_logit_matching_by_hand():
    # 1^2 + 2^2 + 0^2: a sum, not a mean.
    actual = losses.logit_matching(
        np.array([[1.0, 2.0, 3.0]]), np.array([[0.0, 4.0, 3.0]])
    )
    np.testing.assert_array_equal(actual, [5.0])


def test_attention_by_hand():
    # Squares summed over channels: 1+1+1 = 3 and 0+4+0 = 4, of norm 5.
    student = np.array([[[[1.0, -1.0, 1.0], [0.0, -2.0, 0.0]]]])
    second = jax.jit(losses.attention_map)(student)
    np.testing.assert_allclose(second, [[0.6, 0.8]], rtol=1e-6)
    # Fourth powers: 3 and 16, of norm sqrt(9 + 256).
    fourth = jax.jit(partial(losses.attention_map, power=4))(student)
    np.testing.assert_allclose(fourth, [[3, 16]] / np.sqrt(265), rtol=1e-6)
    # The teacher's map is [0, 1]; differences 0.6 and -0.2, squares 0.36 + 0.04.
    teacher = np.array([[[[0.0], [-7.0]]]])
    for norm, expected in ("mean_square", 0.2), ("l2", np.sqrt(0.4)):
        loss = jax.jit(partial(losses.attention_transfer, norm=norm))
        np.testing.assert_allclose(loss(student, teacher), [expected], rtol=1e-6)


def test_feature_mse_by_hand():
    # (1 + 4 + 9 + 16) / 4
    student = np.array([1.0, 2.0, 3.0, 4.0]).reshape(1, 1, 2, 2)
    actual = losses.feature_mse(student, np.zeros((1, 1, 2, 2)))
    np.testing.assert_array_equal(actual, [7.5])


@pytest.mark.parametrize("case", [KD, SOFT], ids=["kd", "soft"])
def test_temperature_can_be_traced(case):
    student, teacher = case.inputs(np.float32)
    expected = [case.twin(s, t, 3.0) for s, t in zip(student, teacher, strict=True)]
    actual = jax.jit(case.call)(student, teacher, temperature=3.0)
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_kd_matches_centred_logits_at_high_temperature():
    # Hinton et al., Section 2.1: for large tau the softmax is linear in the logits,
    # and tau^2 KL tends to 1/(2C) of the squared distance of zero-mean logits.
    student, teacher = KD.inputs()
    difference = student - teacher
    difference -= difference.mean(axis=1, keepdims=True)
    limit = (difference**2).sum(axis=1) / (2 * C)
    with jax.enable_x64(True):
        actual = jax.jit(losses.kd)(student, teacher, temperature=1e4)
    np.testing.assert_allclose(actual, limit, rtol=1e-3)


# Gradients.


@every_case
def test_gradients_of_student_and_teacher(case):
    with jax.enable_x64(True):
        student, teacher = map(jnp.asarray, case.inputs())
        check_grads(
            jax.jit(case.call),
            (student, teacher),
            order=1,
            modes=["rev"],
            atol=1e-6,
            rtol=1e-6,
        )


def test_gradient_of_cross_entropy():
    logits = KD.inputs(np.float32)[0]
    labels = np.array([4, 0, 2])
    actual = slope_of_cross_entropy(logits, labels)
    expected = np.stack([softened(row, 1) for row in logits]) - np.eye(C)[labels]
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_gradients_by_formula(temperature):
    student, teacher = KD.inputs(np.float32)
    gap = np.stack(
        [
            softened(s, temperature) - softened(t, temperature)
            for s, t in zip(student, teacher, strict=True)
        ]
    )
    kd = partial(losses.kd, temperature=temperature)
    soft = partial(losses.soft_cross_entropy, temperature=temperature)
    tolerance = {"rtol": 1e-5, "atol": 1e-6}
    np.testing.assert_allclose(
        run(kd, student, teacher)[1], temperature * gap, **tolerance
    )
    np.testing.assert_allclose(
        run(soft, student, teacher)[1], gap / temperature, **tolerance
    )
    _, towards_student, towards_teacher = run(losses.logit_matching, student, teacher)
    np.testing.assert_allclose(towards_student, 2 * (student - teacher), **tolerance)
    np.testing.assert_array_equal(towards_teacher, -towards_student)


# Degenerate inputs, in float32.


@every_case
@pytest.mark.parametrize("fill", [0.0, 1.0, -1e-30, 1e-7, 1e4, 1e30])
def test_one_example_of_constants(case, fill):
    constant = np.full((1, *case.student), fill, np.float32)
    value, *gradients = run(case.call, constant, constant)
    # soft_cross_entropy is the entropy of C equal classes, the others are distances.
    entropy = case.call.func is losses.soft_cross_entropy
    np.testing.assert_allclose(value, [np.log(C) if entropy else 0], atol=1e-6)
    for gradient in gradients:
        np.testing.assert_allclose(gradient, np.zeros(gradient.shape), atol=1e-6)


@every_case
def test_equal_inputs_are_the_minimum(case):
    student = case.inputs(np.float32)[0][:1]
    # Compiled, the two sides may differ by rounding.
    value, towards_student, towards_teacher = run(case.call, student, student)
    np.testing.assert_allclose(towards_student, np.zeros(student.shape), atol=1e-6)
    assert np.isfinite(towards_teacher).all()
    if case.call.func is not losses.soft_cross_entropy:  # whose value is the entropy
        np.testing.assert_allclose(value, [0], atol=1e-6)


@pytest.mark.parametrize("size", [1e4, 1e30])
def test_huge_opposed_logits(size):
    student = np.array([[size, 0.0], [0.0, -size]], np.float32)
    teacher = np.array([[0.0, size], [-size, 0.0]], np.float32)
    # p_t = [0, 1]; log p_s = [0, -size / 4] and [-0, -size / 4].
    for loss, factor in ((losses.kd, 4.0), (losses.soft_cross_entropy, 0.25)):
        value, towards_student, towards_teacher = run(loss, student, teacher)
        np.testing.assert_allclose(value, [factor * size, factor * size], rtol=1e-6)
        np.testing.assert_allclose(
            towards_student, np.array([[1, -1], [1, -1]]) * factor, rtol=1e-6
        )
        assert np.isfinite(towards_teacher).all()
    labels = np.array([1, 1])
    value = jax.jit(losses.cross_entropy)(student, labels)
    np.testing.assert_allclose(value, [size, size], rtol=1e-6)
    gradient = slope_of_cross_entropy(student, labels)
    np.testing.assert_array_equal(gradient, [[1, -1], [1, -1]])
    # Squares of 1e30 are beyond float32, their gradient is not.
    _, gradient, _ = run(losses.logit_matching, student, teacher)
    np.testing.assert_allclose(gradient, 2 * (student - teacher), rtol=1e-6)


@pytest.mark.parametrize("norm", ["mean_square", "l2"])
def test_zero_map_is_told_from_an_even_one(norm):
    zeros = np.zeros((1, H, W, 3), np.float32)
    ones = np.ones((1, H, W, 3), np.float32)  # its map is 1 / sqrt(HW) everywhere
    loss = partial(losses.attention_transfer, norm=norm)
    expected = {"mean_square": 1 / (H * W), "l2": 1.0}[norm]
    for pair in ((zeros, ones), (ones, zeros)):
        value, *gradients = run(loss, *pair)
        np.testing.assert_allclose(value, [expected], rtol=1e-6)
        for gradient in gradients:
            # Zero features stay zero, and a longer map does not point elsewhere.
            np.testing.assert_allclose(gradient, np.zeros(gradient.shape), atol=1e-6)


@pytest.mark.parametrize("power", [1.5, 2, 8.0])
def test_attention_at_every_scale(power):
    features = np.random.default_rng(0).normal(size=(B, H, W, 3)).astype(np.float32)
    attention = jax.jit(partial(losses.attention_map, power=power))
    np.testing.assert_array_equal(attention(0 * features), np.zeros((B, H * W)))
    expected = [np_attention_map(f, power) for f in features.astype(np.float64)]
    np.testing.assert_allclose(attention(features), expected, rtol=1e-4)
    np.testing.assert_allclose(attention(1e30 * features), expected, rtol=1e-4)
    # The map of 2f is the map of f, so its gradient at 2f is half of that at f.
    first = jax.jit(jax.grad(lambda f: attention(f)[:, 0].sum()))
    scaled = first(1e20 * features) * 1e20
    np.testing.assert_allclose(scaled, first(features), rtol=1e-4, atol=1e-5)


# Precision.


def dtype_of(function, *arrays):
    """Of the result; nothing is compiled."""
    return jax.eval_shape(function, *arrays).dtype


@every_case
def test_precision(case):
    half = [jnp.asarray(x, jnp.bfloat16) for x in case.inputs(np.float32)]
    assert dtype_of(case.call, *half) == jnp.float32
    assert dtype_of(case.call, half[0], case.inputs(np.float32)[1]) == jnp.float32
    # Not a single operation in bfloat16: only the two arguments have that type.
    assert str(jax.make_jaxpr(case.call)(*half)).count("bf16") == 2
    with jax.enable_x64(True):
        assert dtype_of(case.call, *case.inputs()) == jnp.float64
        assert dtype_of(case.call, *case.inputs(np.float32)) == jnp.float32


def test_precision_of_cross_entropy_and_attention_map():
    labels = np.zeros(B, np.int32)
    for function, shape in (
        (lambda logits: losses.cross_entropy(logits, labels), (B, C)),
        (losses.attention_map, (B, H, W, 2)),
    ):
        half = jnp.ones(shape, jnp.bfloat16)
        assert dtype_of(function, half) == jnp.float32
        assert str(jax.make_jaxpr(function)(half)).count("bf16") == 1
        with jax.enable_x64(True):
            assert dtype_of(function, np.ones(shape)) == jnp.float64


# What the caller gets wrong.


def assert_both_shapes_are_told(error, first, second):
    for name, array in (first, second):
        assert f"{name} {array.shape}" in str(error.value)


@every_case
def test_shapes_are_never_broadcast(case):
    student, teacher = case.inputs(np.float32)
    others = [teacher[:1], teacher[:, :1], teacher[0], teacher[..., None], teacher[:2]]
    if case.student == case.teacher:
        others.append(teacher[..., :1])
    if teacher.ndim == 4:
        others += teacher[:, :, :1], teacher.swapaxes(1, 2)  # as many positions
    for other in others:
        with pytest.raises(ValueError, match="must both be") as error:
            case.call(student, other)
        assert_both_shapes_are_told(error, ("student", student), ("teacher", other))
        with pytest.raises(ValueError, match="must both be") as error:
            jax.jit(case.call)(other, teacher)
        assert_both_shapes_are_told(error, ("student", other), ("teacher", teacher))


def test_equal_shapes_of_another_rank_are_refused():
    for case in CASES:
        vector = jnp.ones(C)
        with pytest.raises(ValueError, match=r"batch, "):
            case.call(vector, vector)
    with pytest.raises(ValueError, match=r"features \(3, 5\)"):
        losses.attention_map(jnp.ones((B, C)))


@pytest.mark.parametrize("shape", [(), (1,), (B, 1), (B, C), (B + 1,)])
def test_labels_must_fit(shape):
    logits, labels = jnp.ones((B, C)), jnp.zeros(shape, int)
    with pytest.raises(ValueError, match="must be") as error:
        losses.cross_entropy(logits, labels)
    assert_both_shapes_are_told(error, ("logits", logits), ("labels", labels))


def test_labels_must_be_integers():
    with pytest.raises(ValueError, match="integers, not float32"):
        losses.cross_entropy(jnp.ones((B, C)), jnp.zeros(B))


@pytest.mark.parametrize("loss", [losses.kd, losses.soft_cross_entropy])
@pytest.mark.parametrize("bad", [0, -1.0, float("nan"), float("inf")])
def test_temperature_must_be_positive(loss, bad):
    with pytest.raises(ValueError, match=rf"temperature .* greater than 0, not {bad}"):
        loss(*KD.inputs(np.float32), temperature=bad)


def test_temperature_must_be_a_scalar():
    with pytest.raises(ValueError, match="temperature must be a finite number"):
        losses.kd(*KD.inputs(np.float32), temperature=jnp.ones((B, 1)))


def test_power_must_exceed_one():
    maps = jnp.ones((B, H, W, 2))
    with pytest.raises(ValueError, match=r"power .* greater than 1, not 1\.0"):
        losses.attention_map(maps, power=1.0)
    with pytest.raises(ValueError, match=r"power .* greater than 1, not -2"):
        losses.attention_transfer(maps, maps, power=-2)


def test_unknown_norm_is_told_with_the_choices():
    maps = jnp.ones((B, H, W, 2))
    with pytest.raises(ValueError, match="'l1'; choices: mean_square, l2"):
        losses.attention_transfer(maps, maps, norm="l1")


def test_options_are_keywords():
    for loss in losses.kd, losses.soft_cross_entropy, losses.attention_transfer:
        with pytest.raises(TypeError, match="positional"):
            loss(*KD.inputs(np.float32), 2.0)


# The package.


def test_import_needs_jax_and_optax_only():
    program = """
import sys
import jax, optax
before = set(sys.modules)
import kdjax.losses
print(*sorted(set(sys.modules) - before))
print(*sorted(sys.modules))
"""
    added, every = (
        line.split()
        for line in subprocess.run(
            [sys.executable, "-c", program],
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
    )
    ours = [name for name in added if name.split(".")[0] == "kdjax"]
    assert "kdjax.losses.logits" in ours
    strangers = {name.split(".")[0] for name in added} - sys.stdlib_module_names
    assert strangers <= {"kdjax", "jax", "optax"}
    packages = {name.split(".")[0] for name in every}
    assert not packages & {
        *("flax", "orbax", "tensorflow", "tensorflow_datasets", "ml_collections"),
        *("sklearn", "scipy", "matplotlib", "grain", "PIL", "tensorboardX"),
    }
    siblings = {name.split(".")[1] for name in ours if "." in name}
    assert not siblings & {"models", "methods", "data", "analysis", "interop"}


def test_everything_exported_is_there():
    assert all(callable(getattr(losses, name)) for name in losses.__all__)
    assert {case.call.func.__name__ for case in CASES} <= set(losses.__all__)
