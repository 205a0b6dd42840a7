"""Pooling and the pointwise losses between maps, against NumPy and numbers by hand."""

from functools import partial

import jax
import jax.numpy as jnp
import loss_cases
import numpy as np
import oracles
import pytest
from loss_cases import B, Case
from oracles import np_pool

from kdjax import losses

C = 3
LOG_SCALE = np.array([-2.0, 0.3, 4.0])
MARGIN = np.array([-0.2, -0.5, -1.0])


FACTOR = {"form": "factor"}


def case(name, options, student=(3, 4, C), teacher=(3, 4, C)):
    twin = getattr(oracles, f"np_{name}")
    return Case(partial(getattr(losses, name), **options), twin, student, teacher)


CASES = [
    case("vid", {"log_scale": LOG_SCALE}),
    case("ab", {}),
    case("ab", {"margin": 0.5}),
    case("factor_transfer", {}, (3, 5, 4), (4, 2, 3)),
    case("factor_transfer", {"p1": 3.0, "p2": 2.0}),
    case("factor_transfer", FACTOR, (3, 4, C), (5, 4, C)),
    case("factor_transfer", {**FACTOR, "p2": 1.5}),
    case("ofd", {"margin": MARGIN}),
    case("hierarchical_context", {}, (7, 7, C), (7, 7, C)),
    case("hierarchical_context", {"sizes": (3, 2)}),
]
each_case = pytest.mark.parametrize(
    "case", CASES, ids=[f"{case.name}-{i}" for i, case in enumerate(CASES)]
)


@each_case
def test_equals_numpy_with_its_gradients(case):
    loss_cases.check_values(case)
    loss_cases.check_gradients(case)


@each_case
def test_degenerate_maps_keep_everything_finite(case):
    run = partial(loss_cases.run, case.call)
    student, teacher = case.inputs(np.float32)
    for fill in (0.0, 1.0, -1e-30, 1e-7, 1e4):
        constant = [np.full_like(side, fill) for side in (student, teacher)]
        value, towards_student, towards_teacher = run(*constant)
        assert all(map(np.all, map(np.isfinite, (value, towards_teacher))))
        if case.name not in ("ab", "ofd"):  # whose minimum is not equality
            np.testing.assert_allclose(towards_student, 0 * towards_student, atol=1e-6)
        if case.name in ("factor_transfer", "hierarchical_context"):
            np.testing.assert_allclose(value, 0 * value, atol=1e-6)
        for found in run(student, constant[1]):
            assert np.all(np.isfinite(found))
    if case.name == "factor_transfer":  # does not depend on the scale
        again = run(1e30 * student, constant[1])
        np.testing.assert_allclose(again[0], run(student, constant[1])[0], rtol=1e-5)
        assert all(np.all(np.isfinite(found)) for found in again)


@pytest.mark.parametrize(
    "case", [CASES[i] for i in (0, 4, 6, 7, 8)], ids=lambda case: case.name
)
def test_equal_maps_have_no_gradient(case):
    maps = abs(case.inputs(np.float32)[0])
    found = loss_cases.run(case.call, maps, maps)[1]
    np.testing.assert_allclose(found, np.zeros(maps.shape), atol=1e-6)


@each_case
def test_precision_and_shapes(case):
    half = [jnp.asarray(x, jnp.bfloat16) for x in case.inputs(np.float32)]
    assert jax.eval_shape(case.call, *half).dtype == jnp.float32
    # Not a single operation in bfloat16: only the two arguments have that type.
    assert str(jax.make_jaxpr(case.call)(*half)).count("bf16") == 2
    student, teacher = half
    bad = [teacher[:1], teacher[0]]
    if case.name != "factor_transfer":
        bad += [teacher[:, :1], teacher.swapaxes(1, 2)[:, :3], teacher[..., :1]]
    for other in bad:
        if other.shape == teacher.shape:
            continue
        with pytest.raises(ValueError, match="must") as error:
            case.call(student, other)
        assert f"teacher {other.shape}" in str(error.value)


# Pooling.


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 6), (4, 5), (3, 2)])
def test_pooling_has_torchs_bins(size):
    x = np.random.default_rng(0).normal(size=(B, 7, 6, 2))
    with jax.enable_x64(True):
        actual = jax.jit(losses.adaptive_pool, static_argnums=1)(x, size)
    expected = [np_pool(example, *size) for example in x]
    np.testing.assert_allclose(actual, expected, rtol=1e-12)


def test_pooling_by_hand():
    # 5 to 3: positions 0-1, 1-3 and 3-4.
    x = np.array([1.0, 3.0, 8.0, 1.0, 5.0]).reshape(1, 5, 1, 1)
    actual = losses.adaptive_pool(x, (3, 1))
    np.testing.assert_allclose(actual.ravel(), [2, 4, 3], rtol=1e-6)


def test_match_size_takes_the_smaller_of_each_side():
    student, teacher = np.ones((B, 8, 3, 5)), np.ones((B, 4, 6, 2))
    matched = losses.match_size(student, teacher)
    assert [x.shape for x in matched] == [(B, 4, 3, 5), (B, 4, 3, 2)]
    with pytest.raises(ValueError, match="agree in batch"):
        losses.match_size(student, teacher[:1])


@pytest.mark.parametrize("size", [(0, 1), (5, 2), (2, 3)])
def test_pooling_never_enlarges(size):
    with pytest.raises(ValueError, match=r"\(4, 2\) cannot be pooled to"):
        losses.adaptive_pool(np.ones((1, 4, 2, 1)), size)


# By hand.


def column(*values):
    return np.array(values, np.float32).reshape(1, -1, 1, 1)


def test_vid_by_hand():
    # softplus(log(e - 1)) = 1: a variance of 1 up to eps, so half the mean of squares.
    found = losses.vid(
        column(1.0, 2.0), column(3.0, 2.0), log_scale=np.log(np.expm1([1.0])), eps=1e-9
    )
    np.testing.assert_allclose(found, [1.0], rtol=1e-6)


def test_ab_by_hand():
    # Active at 3 (margin held), at 0.5 (0.5 short), at -1 (2 short): 0 + 0.25 + 4.
    # Inactive at -3, at 0 (1 over): 0 + 1; a teacher at 0 is inactive.
    student = column(3.0, 0.5, -1.0, -3.0, 0.0)
    teacher = column(1.0, 0.1, 2.0, -1.0, 0.0)
    np.testing.assert_allclose(losses.ab(student, teacher), [5.25], rtol=1e-6)


def test_factor_transfer_by_hand():
    # Squares 9, 16 and 16, 9, of norm sqrt(337): each differs by 7 / sqrt(337).
    pair = column(3.0, 4.0), column(4.0, 3.0)
    found = losses.factor_transfer(*pair)
    np.testing.assert_allclose(found, [7 / np.sqrt(337)], rtol=1e-6)
    # 3/5, 4/5 and 4/5, 3/5.
    found = losses.factor_transfer(*pair, form="factor")
    np.testing.assert_allclose(found, [0.2], rtol=1e-5)


def test_ofd_by_hand():
    # t = 2, -1, -1, -0.5: 1 off; higher by 3; lower, nothing; 0.5 higher.
    student, teacher = column(1.0, 2.0, -5.0, 0.0), column(2.0, -4.0, -1.0, -0.5)
    found = losses.ofd(student, teacher, margin=np.array([-1.0]))
    np.testing.assert_allclose(found, [1 + 9 + 0 + 0.25], rtol=1e-6)


def test_ofd_margin_is_the_mean_of_what_is_negative():
    # Drawn, not computed from the formula; the half normal has -sqrt(2 / pi).
    draws = np.random.default_rng(0).normal(size=2_000_000)
    scale, bias = np.array([1.0, -2.0, 0.5]), np.array([0.0, 1.0, -0.7])
    x = abs(scale)[:, None] * draws + bias[:, None]
    expected = [row[row < 0].mean() for row in x]
    found = jax.jit(losses.ofd_margin)(scale, bias)
    np.testing.assert_allclose(found, expected, rtol=3e-3)
    np.testing.assert_allclose(found[0], -np.sqrt(2 / np.pi), rtol=1e-5)


def test_ofd_margin_at_the_edges():
    # Rarely negative: -3 deviations; constant channels; far below zero: the mean.
    scale = np.array([2.0, 0.0, 0.0, 0.1, 1e-30, 1e-30], np.float32)
    bias = np.array([8.0, 3.0, -3.0, -50.0, -1.0, 0.0], np.float32)
    found = losses.ofd_margin(scale, bias)
    np.testing.assert_allclose(found, [-6, 0, -3, -50, -1, 0], rtol=1e-6, atol=1e-20)
    slope = jax.grad(lambda s, b: losses.ofd_margin(s, b).sum(), (0, 1))
    slopes = jax.jit(slope)(scale, bias)
    assert np.all(np.isfinite(slopes))


def test_hierarchical_context_by_hand():
    # 2x2: mean of squares (4 + 0 + 0 + 4) / 4 = 2; pooled to 1x1 the differences
    # cancel; weights 1 and 1/2.
    student = np.array([2.0, 0, 0, -2.0], np.float32).reshape(1, 2, 2, 1)
    found = losses.hierarchical_context(student, np.zeros_like(student))
    np.testing.assert_allclose(found, [2 / 1.5], rtol=1e-6)


# What the caller gets wrong.


def test_bad_options_are_told():
    maps = np.ones((B, 2, 2, C), np.float32)
    for call, message in (
        (partial(losses.vid, log_scale=np.ones(2)), r"log_scale \(2,\).*3 channels"),
        (partial(losses.vid, log_scale=LOG_SCALE, eps=0.0), "eps .* greater than 0"),
        (partial(losses.ofd, margin=np.ones((1, C))), r"margin \(1, 3\)"),
        (partial(losses.ab, margin=-1.0), "margin .* not -1"),
        (partial(losses.factor_transfer, form="l2"), "'l2'; choices: map, factor"),
        (partial(losses.factor_transfer, p1=1.0), r"power .* not 1\.0"),
        (partial(losses.factor_transfer, p2=0.5), r"p2 .* at least 1, not 0\.5"),
        (partial(losses.hierarchical_context, sizes=(0,)), r"pooled to \(0, 0\)"),
    ):
        with pytest.raises(ValueError, match=message):
            call(maps, maps)
    with pytest.raises(ValueError, match=r"bias \(2,\)"):
        losses.ofd_margin(np.ones(3), np.ones(2))
