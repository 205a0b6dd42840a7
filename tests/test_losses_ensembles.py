"""Losses between the logits of several networks: peers, branches, ensembles."""

import jax
import jax.numpy as jnp
import loss_cases
import numpy as np
import pytest
from jax.test_util import check_grads
from loss_cases import SEVERAL as CASES
from loss_cases import B, C, run
from oracles import softened

from kdjax import losses

USUAL = [CASES[0], CASES[2]]  # with an eps that is small
every_case = loss_cases.each(CASES)


@every_case
def test_equals_numpy(case):
    loss_cases.check_values(case)


@every_case
def test_gradients_of_student_and_teacher(case):
    loss_cases.check_gradients(case)


@loss_cases.each(USUAL)
@pytest.mark.parametrize("fill", [0.0, 1.0, -1e-30, 1e4, 1e30])
def test_one_example_of_constants(case, fill):
    # q is 1e-7 too large in every class, times 3^2.
    value = 9 * C * 1e-7 if case.name == "one" else 0.0
    loss_cases.check_constants(case, fill, value, atol=2e-6)


@loss_cases.each(USUAL)
def test_equal_inputs_are_the_minimum(case):
    loss_cases.check_minimum(case, None)


@every_case
def test_precision(case):
    loss_cases.check_precision(case)


@loss_cases.each(USUAL)
@pytest.mark.parametrize("size", [1e4, 1e30])
def test_huge_opposed_logits(case, size):
    student = np.array([[size, 0.0]], np.float32)
    value, *gradients = run(case.call, student, -student)
    # p_2 / (p_1 + eps) = 1 / 1e-8; log softmax(student / 3) = -size / 3.
    expected = -np.log(1e-8) if case.name == "mutual" else 3 * size
    np.testing.assert_allclose(value, [expected], rtol=1e-6)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_mutual_is_the_divergence_up_to_eps():
    student, teacher = CASES[0].inputs(np.float32)
    plain = jax.jit(losses.kd)(student, teacher, temperature=1.0)
    found = jax.jit(losses.mutual)(student, teacher)
    np.testing.assert_allclose(found, plain, rtol=1e-5)


def test_gated_logits():
    # softmax [0, ln 3] = [1/4, 3/4].
    branches = np.array([[[4.0, 0.0]], [[0.0, 8.0]]])
    gated_logits = jax.jit(losses.gated_logits)
    found = gated_logits(branches, np.log([[1.0, 3.0]]))
    np.testing.assert_allclose(found, [[1.0, 6.0]], rtol=1e-6)
    random = np.random.default_rng(0)
    with jax.enable_x64(True):
        branches = jnp.asarray(random.normal(size=(2, B, C)))
        gate = jnp.asarray(random.normal(size=(B, 2)))
        mixed = gated_logits(branches, gate)
        first, second = np.asarray(branches)
        for i in range(B):
            p = softened(np.asarray(gate[i]))
            expected = p[0] * first[i] + p[1] * second[i]
            np.testing.assert_allclose(np.asarray(mixed)[i], expected, rtol=1e-12)
        check_grads(gated_logits, (branches, gate), 1, ["rev"])
    half = jnp.ones((2, B, C), jnp.bfloat16), jnp.ones((B, 2))
    assert jax.eval_shape(losses.gated_logits, *half).dtype == jnp.float32


@pytest.mark.parametrize("gate", [(2, B), (B, 3), (B,), (B, 2, 1)])
def test_a_gate_must_fit_the_branches(gate):
    with pytest.raises(ValueError, match="must be") as error:
        losses.gated_logits(jnp.ones((2, B, C)), jnp.ones(gate))
    assert f"branches (2, {B}, {C}) and gate {gate}" in str(error.value)


@pytest.mark.parametrize("loss", [losses.mutual, losses.one])
@pytest.mark.parametrize("bad", [0.0, -1e-8, float("nan")])
def test_eps_must_be_positive(loss, bad):
    with pytest.raises(ValueError, match=rf"eps .* greater than 0, not {bad}"):
        loss(*CASES[0].inputs(np.float32), eps=bad)
