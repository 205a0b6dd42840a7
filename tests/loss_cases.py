"""What every loss is tested for: values, gradients, degenerate inputs, precision."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.test_util import check_grads
from oracles import LABEL

from kdjax import losses

B, C = 3, 5  # examples and classes
H, W = 2, 4  # a map that is not square, so that swapped axes show


class Case(NamedTuple):
    """A loss with its options, its NumPy twin and the shapes of one example.

    The twin of a loss that returns a scalar takes the batch, otherwise one example.
    """

    call: partial
    twin: Callable
    student: tuple
    teacher: tuple
    scalar: bool = False
    batch: int = B

    def inputs(self, dtype=np.float64):
        random = np.random.default_rng(0)
        return (
            random.normal(size=(self.batch, *self.student)).astype(dtype),
            random.normal(size=(self.batch, *self.teacher)).astype(dtype),
        )

    def expected(self, student, teacher):
        options = self.call.keywords
        if self.scalar:
            return self.twin(student, teacher, **options)
        pairs = zip(student, teacher, strict=True)
        return [self.twin(s, t, **options) for s, t in pairs]

    @property
    def name(self):
        return self.call.func.__name__


def each(cases):
    """Parametrizes a test over cases."""

    def name(case):
        return "-".join(map(str, (case.name, *case.call.keywords.values())))

    return pytest.mark.parametrize("case", cases, ids=name)


def dkd(student, teacher, **options):
    labels = np.full(len(student), LABEL)
    return losses.dkd(student, teacher, labels, **options)


def nkd(student, teacher, **options):
    labels = np.full(len(student), LABEL)
    return losses.nkd(student, teacher, labels, **options)


def standardised_kd(student, teacher):
    s, t = map(losses.standardise_logits, (student, teacher))
    return losses.kd(s, t, temperature=2.0)


# One student's and one teacher's logits.
LOGITS = (C,), (C,)
KD = Case(partial(losses.kd), oracles.np_kd, *LOGITS)
SOFT = Case(partial(losses.soft_cross_entropy), oracles.np_soft_cross_entropy, *LOGITS)
DIST = [
    Case(partial(losses.dist, **options), oracles.np_dist, *LOGITS, scalar=True)
    for options in ({}, {"temperature": 4.0, "beta": 2.0, "gamma": 3.0})
]
NKD = [
    Case(partial(nkd, **options), oracles.np_nkd, *LOGITS)
    for options in ({}, {"temperature": 3.0, "gamma": 3.5})
]
# Their minimum is not at equal logits: the teacher's are flattened.
FLATTENED = [
    Case(partial(losses.ttm), oracles.np_ttm, *LOGITS),
    Case(partial(losses.wttm), oracles.np_wttm, *LOGITS),
    Case(partial(losses.wttm, power=0.7), oracles.np_wttm, *LOGITS),
]
PAIRS = [
    KD,
    Case(partial(losses.kd, temperature=3.0), oracles.np_kd, *LOGITS),
    SOFT,
    Case(partial(losses.logit_matching), oracles.np_logit_matching, *LOGITS),
    Case(partial(dkd), oracles.np_dkd, *LOGITS),
    Case(partial(dkd, temperature=2.0, alpha=3.0, beta=0.5), oracles.np_dkd, *LOGITS),
    Case(partial(standardised_kd), oracles.np_standardised_kd, *LOGITS),
    *DIST,
    *NKD,
    *FLATTENED,
]
# Several networks' logits.
SEVERAL = [
    Case(partial(losses.mutual), oracles.np_mutual, *LOGITS),
    Case(partial(losses.mutual, eps=0.1), oracles.np_mutual, *LOGITS),
    Case(partial(losses.one), oracles.np_one, *LOGITS),
    Case(partial(losses.one, temperature=1.0, eps=0.1), oracles.np_one, *LOGITS),
]
# Feature maps.
_MAPS, _FLAT = ((H, W, 3), (H, W, 6)), ((H * W,), (H * W,))
MAPS = [
    *(
        Case(
            partial(losses.attention_transfer, **options),
            oracles.np_attention_transfer,
            *_MAPS,
        )
        for options in ({}, {"power": 3}, {"power": 1.5, "norm": "l2"})
    ),
    *(
        Case(
            partial(losses.attention_distance, **options),
            oracles.np_attention_distance,
            *_FLAT,
        )
        for options in ({}, {"norm": "l2"})
    ),
    Case(partial(losses.feature_mse), oracles.np_feature_mse, (H, W, 3), (H, W, 3)),
]
# Relations within a batch: the sizes of the first may differ.
_VECTORS, _UNEVEN, _EMBEDDED = ((C,), (C + 2,)), ((H, W, 3), (W, W, 2)), ((C,), (C,))
_batch_case = partial(Case, scalar=True, batch=4)
KERNEL = {"form": "kernel"}
FREE = [
    _batch_case(partial(losses.similarity), oracles.np_similarity, *_UNEVEN),
    _batch_case(partial(losses.rkd_distance), oracles.np_rkd_distance, *_VECTORS),
    _batch_case(partial(losses.rkd_angle), oracles.np_rkd_angle, *_UNEVEN),
    _batch_case(partial(losses.pkt), oracles.np_pkt, *_VECTORS),
    _batch_case(partial(losses.pkt, eps=0.1), oracles.np_pkt, *_UNEVEN),
]
EQUAL = [
    _batch_case(
        partial(losses.correlation, **options), oracles.np_correlation, *_EMBEDDED
    )
    for options in ({}, KERNEL, {**KERNEL, "gamma": 1.0, "order": 3})
]
RELATIONS = FREE + EQUAL


@partial(jax.jit, static_argnums=0)
def run(loss, student, teacher):
    """The values, and the gradients of their sum for student and teacher."""
    value, pull = jax.vjp(loss, student, teacher)
    return value, *pull(jnp.ones_like(value))


@partial(jax.jit, static_argnums=0)
def everything(loss, student, teacher, weights):
    """The values, those of a single replica, and both gradients of a weighted sum.

    All in one program, which the tests of a case share: most of their time is
    compiling.
    """
    value, pull = jax.vjp(loss, student, teacher)
    if value.ndim:  # here replicas of one example each
        mapped = jax.vmap(loss)(student[:, None], teacher[:, None])[:, 0]
    else:
        mapped = jax.vmap(loss)(student[None], teacher[None])[0]
    return value, mapped, pull(weights)


def dtype_of(function, *arrays):
    """Of the result; nothing is compiled."""
    return jax.eval_shape(function, *arrays).dtype


def check_values(case):
    """Equal to NumPy, compiled, alone and mapped over replicas."""
    student, teacher = case.inputs()
    expected = case.expected(student, teacher)
    with jax.enable_x64(True):
        weights = np.ones(np.shape(expected))
        found = everything(case.call, student, teacher, weights)
    for actual in found[:2]:
        assert actual.shape == (() if case.scalar else (case.batch,))
        np.testing.assert_allclose(actual, expected, rtol=1e-11)


def check_gradients(case):
    """Those of student and teacher equal differences, in float64."""

    @jax.custom_vjp
    def loss(student, teacher):
        weights = np.ones(() if case.scalar else case.batch)
        return everything(case.call, student, teacher, weights)[0]

    def forward(*arrays):
        return loss(*arrays), arrays

    def backward(arrays, weights):
        return everything(case.call, *arrays, weights)[2]

    loss.defvjp(forward, backward)
    with jax.enable_x64(True):
        arrays = tuple(map(jnp.asarray, case.inputs()))
        check_grads(loss, arrays, order=1, modes=["rev"], atol=1e-6, rtol=1e-6)


def check_constants(case, fill, value=0.0, atol=1e-6, slope=1e-6):
    """Examples of constants, all alike: a known value, and no gradient."""
    for batch in (1, case.batch) if case.scalar else (case.batch,):
        student = np.full((batch, *case.student), fill, np.float32)
        teacher = np.full((batch, *case.teacher), fill, np.float32)
        found, *gradients = run(case.call, student, teacher)
        np.testing.assert_allclose(found, np.full(found.shape, value), atol=atol)
        for gradient in gradients:
            np.testing.assert_allclose(gradient, np.zeros(gradient.shape), atol=slope)


def check_minimum(case, value=0.0):
    """Equal inputs give the least value; compiled, the sides may differ by rounding."""
    student = case.inputs(np.float32)[0]
    found, towards_student, towards_teacher = run(case.call, student, student)
    np.testing.assert_allclose(towards_student, np.zeros(student.shape), atol=1e-5)
    assert np.isfinite(towards_teacher).all()
    if value is not None:
        np.testing.assert_allclose(found, np.full(found.shape, value), atol=1e-5)


def check_precision(case):
    """At least float32 everywhere, float64 where an input is."""
    half = [jnp.asarray(x, jnp.bfloat16) for x in case.inputs(np.float32)]
    assert dtype_of(case.call, *half) == jnp.float32
    assert dtype_of(case.call, half[0], case.inputs(np.float32)[1]) == jnp.float32
    # Not a single operation in bfloat16: only the two arguments have that type.
    assert str(jax.make_jaxpr(case.call)(*half)).count("bf16") == 2
    with jax.enable_x64(True):
        assert dtype_of(case.call, *case.inputs()) == jnp.float64
        assert dtype_of(case.call, *case.inputs(np.float32)) == jnp.float32


def assert_both_shapes_are_told(error, first, second):
    for name, array in (first, second):
        assert f"{name} {array.shape}" in str(error.value)


def check_shapes(case, others):
    """Other shapes are refused on either side, and both are told."""
    student, teacher = case.inputs(np.float32)
    for other in others(teacher):
        with pytest.raises(ValueError, match="must both be") as error:
            case.call(student, other)
        assert_both_shapes_are_told(error, ("student", student), ("teacher", other))
        with pytest.raises(ValueError, match="must both be") as error:
            jax.jit(case.call)(other, teacher)
        assert_both_shapes_are_told(error, ("student", other), ("teacher", teacher))


def other_shapes(case):
    """What `check_shapes` tries on a loss whose shapes must agree."""

    def others(teacher):
        yield from (teacher[:1], teacher[:, :1], teacher[0], teacher[..., None])
        yield teacher[:2]
        if case.student == case.teacher:
            yield teacher[..., :1]
        if teacher.ndim == 4:
            yield teacher[:, :, :1]
            yield teacher.swapaxes(1, 2)  # as many positions

    return others
