"""Losses between one student's and one teacher's logits, and with labels."""

from functools import partial

import jax
import jax.numpy as jnp
import loss_cases
import numpy as np
import pytest
from jax.test_util import check_grads
from loss_cases import (
    DIST,
    FLATTENED,
    KD,
    NKD,
    SOFT,
    B,
    C,
    dkd,
    dtype_of,
    nkd,
    run,
    standardised_kd,
)
from loss_cases import PAIRS as CASES
from oracles import LABEL, np_dkd, np_nkd, softened

from kdjax import losses

every_case = loss_cases.each(CASES)


@jax.jit
@jax.grad
def slope_of_cross_entropy(logits, labels):
    return losses.cross_entropy(logits, labels).sum()


@every_case
def test_equals_numpy(case):
    loss_cases.check_values(case)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_equals_numpy(smoothing):
    logits = np.random.default_rng(0).normal(size=(B, C))
    labels = np.array([4, 0, 2])
    targets = (1 - smoothing) * np.eye(C)[labels] + smoothing / C
    expected = [
        -(target * np.log(softened(row))).sum()
        for row, target in zip(logits, targets, strict=True)
    ]
    loss = partial(losses.cross_entropy, label_smoothing=smoothing)
    with jax.enable_x64(True):
        for function in (loss, jax.jit(loss)):
            actual = function(logits, labels)
            assert actual.shape == (B,)
            np.testing.assert_allclose(actual, expected, rtol=1e-12)
        check_grads(lambda x: loss(x, labels), (jnp.asarray(logits),), 1, ["rev"])


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


def test_dkd_by_hand_and_by_label():
    # p_t = [1/2, 3/8, 1/8], p_s = [1/4, 3/8, 3/8] and label 0: b_t = [1/2, 1/2],
    # b_s = [1/4, 3/4], so TCKD = 1/2 ln 2 + 1/2 ln 2/3 = 1/2 ln 4/3; of the others
    # q_t = [3/4, 1/4] and q_s = [1/2, 1/2]: NCKD = 3/4 ln 3/2 + 1/4 ln 1/2.
    teacher, student = np.log([[4.0, 3.0, 1.0]]), np.log([[2.0, 3.0, 3.0]])
    target, others = np.log(4 / 3) / 2, np.log(27 / 16) / 4
    first = np.array([0])
    loss = partial(losses.dkd, temperature=1.0)
    found = jax.jit(partial(loss, beta=8.0))(student, teacher, first)
    np.testing.assert_allclose(found, [target + 8 * others], rtol=1e-5)
    # alpha = 1 and beta = 1 - p_t(label) is plain distillation.
    found = jax.jit(partial(loss, beta=0.5))(student, teacher, first)
    plain = jax.jit(losses.kd)(student, teacher, temperature=1.0)
    np.testing.assert_allclose(found, plain, rtol=1e-5)
    student, teacher = KD.inputs()
    labels = [4, 0, 2]
    expected = [np_dkd(student[i], teacher[i], label=labels[i]) for i in range(B)]
    found = jax.jit(losses.dkd)(student, teacher, np.array(labels))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_nkd_by_hand_and_by_label():
    # Label 0: T = [1/2, 3/8, 1/8] and S = [1/4, 3/8, 3/8]; of the others n_t = [3/4,
    # 1/4] and n_s = [1/2, 1/2]: 1/2 ln 4 + gamma ln 2.
    teacher, student = np.log([[4.0, 3.0, 1.0]]), np.log([[2.0, 3.0, 3.0]])
    loss = partial(losses.nkd, gamma=2.0)
    found = jax.jit(loss)(student, teacher, np.array([0]))
    np.testing.assert_allclose(found, [np.log(4) / 2 + 2 * np.log(2)], rtol=1e-5)
    # Of two classes the other one alone is left: n is 1.
    found = jax.jit(loss)(student[:, :2], teacher[:, :2], np.array([1]))
    np.testing.assert_allclose(found, [-np.log(3 / 5) * 3 / 7], rtol=1e-5)
    student, teacher = KD.inputs()
    labels = [4, 0, 2]
    rows = zip(student, teacher, labels, strict=True)
    expected = [np_nkd(s, t, label=label) for s, t, label in rows]
    found = jax.jit(losses.nkd)(student, teacher, np.array(labels))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_nkd_and_the_sum_of_the_others_are_the_soft_cross_entropy():
    # log S_c = log n_s(c) + log(1 - S_y): the paper's decomposition, whose second part
    # NKD leaves out.
    student, teacher = KD.inputs(np.float32)
    own_s, own_t = (
        np.array([softened(z)[LABEL] for z in x]) for x in (student, teacher)
    )
    nkd_loss = jax.jit(partial(losses.nkd, gamma=1.0))
    labels = np.full(B, LABEL)
    target = -own_t * np.log(own_s)
    others = nkd_loss(student, teacher, labels) - target
    expected = target + (1 - own_t) * (others - np.log(1 - own_s))
    found = jax.jit(losses.soft_cross_entropy)(student, teacher, temperature=1.0)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_transformed_matching_by_hand():
    # p_t = [16, 1] / 17: its square roots are [4, 1] / sqrt 17, so q = [4, 1] / 5 and
    # U = 5 / sqrt 17; p_s = [1, 1] / 2.
    teacher, student = np.log([[16.0, 1.0]]), np.zeros((1, 2))
    divergence = 0.8 * np.log(8 / 5) + 0.2 * np.log(2 / 5)
    found = jax.jit(partial(losses.ttm, power=0.5))(student, teacher)
    np.testing.assert_allclose(found, [divergence], rtol=1e-5)
    found = jax.jit(partial(losses.wttm, power=0.5))(student, teacher)
    np.testing.assert_allclose(found, [5 / np.sqrt(17) * divergence], rtol=1e-5)


def test_transformed_matching_with_power_one_is_kd():
    student, teacher = KD.inputs(np.float32)
    expected = jax.jit(losses.kd)(student, teacher, temperature=1.0)
    for loss in (losses.ttm, losses.wttm):
        found = jax.jit(partial(loss, power=1.0))(student, teacher)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_wttm_weighs_by_how_smooth_the_teacher_is():
    certain, even = np.array([[1e4, 0, 0, 0, 0.0]]), np.zeros((1, C))
    student, power = KD.inputs(np.float32)[0][:1], 0.2
    for teacher, weight in ((certain, 1.0), (even, C ** (1 - power))):
        plain = jax.jit(partial(losses.ttm, power=power))(student, teacher)
        found = jax.jit(partial(losses.wttm, power=power))(student, teacher)
        np.testing.assert_allclose(found, weight * plain, rtol=1e-5)


def test_dist_does_not_see_scale_and_shift_of_probabilities():
    # Two classes: within each example the correlation is 1 or -1; two examples: so is
    # it within each class.
    student, teacher = np.array([[0.0, 1.0], [2.0, 0.0]]), np.array([[0, 3.0], [1, 0]])
    dist, within_classes = jax.jit(losses.dist), jax.jit(partial(losses.dist, beta=0.0))
    np.testing.assert_allclose(dist(student, teacher), 0, atol=1e-5)
    np.testing.assert_allclose(dist(student, -teacher), 4, rtol=1e-5)
    np.testing.assert_allclose(within_classes(student, -teacher), 2, rtol=1e-5)


def test_standardise_logits_by_hand():
    # Mean 2, squares 1 + 0 + 1, over 3 - 1.
    found = losses.standardise_logits(np.array([[1.0, 2.0, 3.0]]))
    np.testing.assert_allclose(found, [[-1, 0, 1]], rtol=1e-6)


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


@loss_cases.each([case for case in CASES if case not in NKD])
@pytest.mark.parametrize("fill", [0.0, 1.0, -1e-30, 1e-7, 0.1, 1e4, 1e30])
def test_one_example_of_constants(case, fill):
    if case in DIST:  # nothing correlates, neither within examples nor classes
        options = {"temperature": 1.0, "beta": 1.0, "gamma": 1.0, **case.call.keywords}
        weight = options["beta"] + options["gamma"]
        loss_cases.check_constants(case, fill, options["temperature"] ** 2 * weight)
    else:
        loss_cases.check_constants(case, fill, np.log(C) if case is SOFT else 0.0)


# DIST's 1e-8 counts; the least value of the others is elsewhere.
@pytest.mark.parametrize("case", NKD, ids=["1", "3"])
@pytest.mark.parametrize("fill", [0.0, 0.1, 1e4, 1e30])
def test_nkd_of_constants(case, fill):
    options = {"temperature": 1.0, "gamma": 1.5, **case.call.keywords}
    even = np.full((B, C), fill, np.float32)
    weight = options["gamma"] * options["temperature"] ** 2
    expected = np.log(C) / C + weight * np.log(C - 1)
    value, towards_student, towards_teacher = run(case.call, even, even)
    np.testing.assert_allclose(value, [expected] * B, rtol=1e-5)
    slope = (1 / C - np.eye(C)[LABEL]) / C
    np.testing.assert_allclose(towards_student, [slope] * B, atol=1e-5)
    assert np.isfinite(towards_teacher).all()


@loss_cases.each([case for case in CASES if case not in DIST + NKD + FLATTENED])
def test_equal_inputs_are_the_minimum(case):
    loss_cases.check_minimum(case, None if case is SOFT else 0.0)


@pytest.mark.parametrize("classes", [1, 3, 100])
@pytest.mark.parametrize("fill", [0.0, 0.1, -1e-30, 1e-8, 12345.678, 1e30])
def test_even_logits_are_standardised_to_zero(classes, fill):
    even = np.full((2, classes), fill, np.float32)
    found = jax.jit(losses.standardise_logits)(even)
    np.testing.assert_array_equal(found, np.zeros((2, classes)))
    kd = run(standardised_kd, even, even)
    np.testing.assert_array_equal(kd[1], np.zeros((2, classes)))


def test_standardised_logits_do_not_depend_on_the_scale():
    logits = KD.inputs(np.float32)[0]
    standardise = jax.jit(losses.standardise_logits)
    expected = standardise(logits)
    for scale in (1e4, 1e30):
        found = standardise(scale * logits)
        np.testing.assert_allclose(found, expected, rtol=1e-4)
    # Where the 1e-7 counts: half of a spread of 1e-7 is left.
    small = np.array([[-1e-7, 0, 1e-7]])
    np.testing.assert_allclose(standardise(small), [[-0.5, 0, 0.5]], rtol=1e-5)


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
    for smoothing, expected in ((0.0, size), (0.5, 0.75 * size)):
        loss = partial(losses.cross_entropy, label_smoothing=smoothing)
        np.testing.assert_allclose(
            jax.jit(loss)(student, labels), [expected] * 2, rtol=1e-6
        )
    gradient = slope_of_cross_entropy(student, labels)
    np.testing.assert_array_equal(gradient, [[1, -1], [1, -1]])
    # Squares of 1e30 are beyond float32, their gradient is not.
    _, gradient, _ = run(losses.logit_matching, student, teacher)
    np.testing.assert_allclose(gradient, 2 * (student - teacher), rtol=1e-6)
    # The student is certain of one class, the teacher of the other.
    found = jax.jit(nkd)(student, teacher)
    np.testing.assert_allclose(found, [size] * 2, rtol=1e-6)
    for loss in (losses.ttm, losses.wttm):
        found = jax.jit(loss)(student, teacher)
        np.testing.assert_allclose(found, [size] * 2, rtol=1e-6)
    for loss in (dkd, nkd, losses.dist, losses.ttm, losses.wttm, standardised_kd):
        for gradient in run(loss, student, teacher):
            assert np.isfinite(gradient).all()
    # Label 1, the teacher certain of it and the student of class 0: TCKD alone.
    found = jax.jit(dkd)(student, teacher)
    np.testing.assert_allclose(found, [4 * size] * 2, rtol=1e-6)


@every_case
def test_precision(case):
    loss_cases.check_precision(case)


def test_precision_of_one_sided_functions():
    labels = np.zeros(B, np.int32)
    for function in (
        lambda logits: losses.cross_entropy(logits, labels, label_smoothing=0.1),
        losses.standardise_logits,
    ):
        half = jnp.ones((B, C), jnp.bfloat16)
        assert dtype_of(function, half) == jnp.float32
        assert str(jax.make_jaxpr(function)(half)).count("bf16") == 1
        with jax.enable_x64(True):
            assert dtype_of(function, np.ones((B, C))) == jnp.float64
