"""Losses between the relations within a batch, against NumPy's loops."""

from functools import partial

import jax
import jax.numpy as jnp
import loss_cases
import numpy as np
import pytest
from loss_cases import EQUAL, FREE, B, C, run
from loss_cases import RELATIONS as CASES

from kdjax import losses

every_case = loss_cases.each(CASES)


@every_case
def test_equals_numpy(case):
    loss_cases.check_values(case)


@every_case
def test_gradients_of_student_and_teacher(case):
    loss_cases.check_gradients(case)


@every_case
@pytest.mark.parametrize("fill", [0.0, 1.0, -1e-30, 0.1, 1e3])
def test_batches_of_constants(case, fill):
    kernel = "form" in case.call.keywords
    if kernel:  # a series for vectors of length 1
        fill = min(fill, 1.0)
    loss_cases.check_constants(case, fill, slope=1e-4 if kernel else 1e-6)


@loss_cases.each([case for case in CASES if "eps" not in case.call.keywords])
def test_equal_inputs_are_the_minimum(case):
    student = case.inputs(np.float32)[0]
    value, *gradients = run(case.call, student, student)
    np.testing.assert_allclose(value, 0, atol=1e-6)
    slope = 1e-4 if "form" in case.call.keywords else 1e-6
    for gradient in gradients:
        np.testing.assert_allclose(gradient, np.zeros(gradient.shape), atol=slope)


@every_case
def test_precision(case):
    loss_cases.check_precision(case)


# By hand.


def test_similarity_by_hand():
    # Student: Gram 1, so rows [1, 0] and [0, 1]; teacher: all rows [1, 1] / sqrt 2.
    r = np.sqrt(0.5)
    expected = (2 * (1 - r) ** 2 + 2 * r**2) / 4
    found = jax.jit(losses.similarity)(np.eye(2), np.ones((2, 3)))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_correlation_by_hand():
    # Gaps [1, 2], [3, 0], [1, 1]: products 3 and 3, two pairs.
    student = np.array([[1.0, 2], [-3, 5], [0, 1]])
    teacher = np.array([[0.0, 4], [0, 5], [1, 2]])
    np.testing.assert_allclose(losses.correlation(student, teacher), 3.0, rtol=1e-6)
    # The series is the Gaussian of vectors of length 1: exp(-gamma |x - y|^2).
    angle = 0.7
    x = np.array([[1.0, 0.0], [np.cos(angle), np.sin(angle)]])
    gaussian = np.exp(-0.4 * ((x[0] - x[1]) ** 2).sum())
    # The teacher's two are alike, their kernel is 1; two pairs of four differ.
    kernel = partial(losses.correlation, form="kernel", order=12)
    found = jax.jit(kernel)(x, x[[0, 0]])
    np.testing.assert_allclose(found, 2 * (1 - gaussian) ** 2 / 4, rtol=1e-5)


def test_rkd_by_hand():
    # Corners 3, 4, 5: mean distance 4, d = 3/4, 1, 5/4. An even triangle: all 1.
    corners = np.array([[0.0, 0], [3, 0], [0, 4]])
    even = np.array([[0.0, 0], [1, 0], [0.5, np.sqrt(0.75)]])
    expected = 2 * (0.25**2 / 2) * 2 / 9
    rkd_distance, rkd_angle = jax.jit(losses.rkd_distance), jax.jit(losses.rkd_angle)
    found = rkd_distance(corners, even)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    # Cosines at the corners: 0, 3/5, 4/5 against 1/2, each counted twice.
    expected = 2 * (0.5**2 + 0.1**2 + 0.3**2) / 2 / 27
    np.testing.assert_allclose(rkd_angle(corners, even), expected, rtol=1e-5)
    # Beyond 1 it grows by the distance alone: cosines of -1 and 1 against each other.
    line = np.array([[0.0], [1.0], [2.0]])
    bent = np.array([[1.0], [0.0], [2.0]])
    # At 0 and at 1 the two cosines change by 2: four entries of 1.5.
    np.testing.assert_allclose(rkd_angle(line, bent), 6 / 27, rtol=1e-6)


def test_pkt_by_hand():
    # Student: kernel [[1, 1/2], [1/2, 1]], P = [2/3, 1/3]; teacher's all 1/2.
    expected = (np.log(3 / 4) + np.log(3 / 2)) / 2 * 2 / 4
    found = jax.jit(losses.pkt)(np.eye(2), np.ones((2, 3)))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


# Degenerate inputs, in float32.


@loss_cases.each(FREE)
def test_features_of_any_size(case):
    student, teacher = case.inputs(np.float32)
    value, gradient, _ = run(case.call, student, teacher)
    huge, towards, _ = run(case.call, 1e30 * student, 1e30 * teacher)
    assert np.isfinite(towards).all()
    if not case.call.keywords:  # none depends on the scale but by eps
        np.testing.assert_allclose(huge, value, rtol=1e-4)
        np.testing.assert_allclose(1e30 * towards, gradient, rtol=1e-2, atol=1e-5)


@loss_cases.each([*FREE, EQUAL[0]])
def test_some_equal_examples_and_a_zero_one(case):
    student, teacher = case.inputs(np.float32)
    student[0] = student[1]
    student[2] = 0.0
    value, *gradients = run(case.call, student, teacher)
    assert np.isfinite(value)
    expected = case.expected(student.astype(np.float64), teacher.astype(np.float64))
    np.testing.assert_allclose(value, expected, rtol=1e-3)
    for gradient in gradients:
        assert np.abs(gradient).max() < 10


@loss_cases.each(FREE)
def test_a_collapsed_student_gets_no_endless_gradient(case):
    student, teacher = case.inputs(np.float32)
    for alike in (0.0, 0.3):
        value, *gradients = run(case.call, np.full_like(student, alike), teacher)
        assert np.isfinite(value)
        for gradient in gradients:
            assert np.abs(gradient).max() < 10


# What the caller gets wrong.


@loss_cases.each(FREE)
def test_batches_must_agree(case):
    loss_cases.check_shapes(case, lambda x: [x[:1], x[:2], x[:, 0].ravel()[:4]])


@loss_cases.each(EQUAL)
def test_embeddings_must_agree(case):
    loss_cases.check_shapes(case, loss_cases.other_shapes(case))


def test_options_of_correlation():
    x = jnp.ones((B, C))
    with pytest.raises(ValueError, match="'rbf'; choices: consecutive, kernel"):
        losses.correlation(x, x, form="rbf")
    with pytest.raises(ValueError, match="gamma must be a finite number"):
        losses.correlation(x, x, form="kernel", gamma=0.0)
    with pytest.raises(ValueError, match="order must be 1 or more, not 0"):
        losses.correlation(x, x, form="kernel", order=0)
    with pytest.raises(ValueError, match="eps must be a finite number greater than 0"):
        losses.pkt(x, x, eps=0.0)
    found = jax.jit(partial(losses.correlation, form="kernel"))(x, x, gamma=0.5)
    np.testing.assert_allclose(found, 0, atol=1e-12)
