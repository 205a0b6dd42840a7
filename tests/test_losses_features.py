"""Losses between feature maps: attention transfer and FitNet's hint."""

from functools import partial

import jax
import jax.numpy as jnp
import loss_cases
import numpy as np
import pytest
from loss_cases import MAPS as CASES
from loss_cases import B, H, W, dtype_of, run
from oracles import np_attention_map

from kdjax import losses

every_case = loss_cases.each(CASES)


# Values.


@every_case
def test_equals_numpy(case):
    loss_cases.check_values(case)


def test_attention_map_equals_numpy():
    features = np.random.default_rng(0).normal(size=(B, H, W, 3))
    with jax.enable_x64(True):
        for power in (2, 3.0):
            expected = [np_attention_map(f, power) for f in features]
            actual = jax.jit(losses.attention_map)(features, power=power)
            np.testing.assert_allclose(actual, expected, rtol=1e-12)


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


# Gradients.


@every_case
def test_gradients_of_student_and_teacher(case):
    loss_cases.check_gradients(case)


# Degenerate inputs, in float32.


@every_case
@pytest.mark.parametrize("fill", [0.0, 1.0, -1e-30, 1e-7, 1e4, 1e30])
def test_one_example_of_constants(case, fill):
    loss_cases.check_constants(case, fill)


@every_case
def test_equal_inputs_are_the_minimum(case):
    loss_cases.check_minimum(case)


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


@every_case
def test_precision(case):
    loss_cases.check_precision(case)


def test_precision_of_attention_map():
    half = jnp.ones((B, H, W, 2), jnp.bfloat16)
    assert dtype_of(losses.attention_map, half) == jnp.float32
    assert str(jax.make_jaxpr(losses.attention_map)(half)).count("bf16") == 1
    with jax.enable_x64(True):
        assert dtype_of(losses.attention_map, np.ones(half.shape)) == jnp.float64


# What the caller gets wrong.


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
