"""Gradients of the losses of logits, and inputs at the limits."""

from functools import partial

import jax
import loss_cases
import numpy as np
import pytest
from loss_cases import (
    KD,
    NKD,
    C,
    run,
)
from loss_cases import PAIRS as CASES
from oracles import LABEL, softened

from kdjax import losses

every_case = loss_cases.each(CASES)


@jax.jit
@jax.grad
def slope_of_cross_entropy(logits, labels):
    return losses.cross_entropy(logits, labels).sum()


@every_case
def test_gradients_of_student_and_teacher(case):
    loss_cases.check_gradients(case)


def test_gradient_of_cross_entropy():
    logits = KD.inputs(np.float32)[0]
    labels = np.array([4, 0, 2])
    actual = slope_of_cross_entropy(logits, labels)
    expected = np.stack([softened(row) for row in logits]) - np.eye(C)[labels]
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", NKD, ids=["1", "3"])
def test_gradient_of_nkd_by_formula(case):
    # T_y (S - [y]) of the label's part; of the others' gamma tau (n_s - n_t).
    student, teacher = case.inputs(np.float32)
    options = {"temperature": 1.0, "gamma": 1.5, **case.call.keywords}
    tau, expected = options["temperature"], []
    for s, t in zip(student, teacher, strict=True):
        target = softened(t)[LABEL] * (softened(s) - np.eye(C)[LABEL])
        n_s, n_t = (softened(np.delete(x, LABEL), tau) for x in (s, t))
        others = np.insert(options["gamma"] * tau * (n_s - n_t), LABEL, 0.0)
        expected.append(target + others)
    _, gradient, _ = run(case.call, student, teacher)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("power", [0.1, 0.5, 1.0])
def test_gradients_of_transformed_matching_by_formula(power):
    student, teacher = KD.inputs(np.float32)
    targets = np.stack([softened(t, 1 / power) for t in teacher])
    gap = np.stack([softened(s) for s in student]) - targets
    _, gradient, _ = run(partial(losses.ttm, power=power), student, teacher)
    np.testing.assert_allclose(gradient, gap, rtol=1e-4, atol=1e-6)
    sums = [[(softened(t) ** power).sum()] for t in teacher]
    _, gradient, _ = run(partial(losses.wttm, power=power), student, teacher)
    np.testing.assert_allclose(gradient, sums * gap, rtol=1e-4, atol=1e-5)


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
    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    close(run(kd, student, teacher)[1], temperature * gap)
    close(run(soft, student, teacher)[1], gap / temperature)
    _, towards_student, towards_teacher = run(losses.logit_matching, student, teacher)
    close(towards_student, 2 * (student - teacher))
    np.testing.assert_array_equal(towards_teacher, -towards_student)
