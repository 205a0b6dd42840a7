"""What every loss is tested for: values, gradients, degenerate inputs, precision."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

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


def softened(logits, temperature=1.0):
    powers = np.exp(logits / temperature)
    return powers / powers.sum()


def kl(p, q):
    return (p * np.log(p / q)).sum()


@partial(jax.jit, static_argnums=0)
def run(loss, student, teacher):
    """The values, and the gradients of their sum for student and teacher."""
    value, pull = jax.vjp(loss, student, teacher)
    return value, *pull(jnp.ones_like(value))


def dtype_of(function, *arrays):
    """Of the result; nothing is compiled."""
    return jax.eval_shape(function, *arrays).dtype


def check_values(case):
    """Equal to NumPy, compiled, alone and mapped over replicas."""
    student, teacher = case.inputs()
    expected = case.expected(student, teacher)
    with jax.enable_x64(True):
        found = [jax.jit(case.call)(student, teacher)]
        replicas = jax.jit(jax.vmap(case.call))
        if case.scalar:
            found.append(replicas(student[None], teacher[None])[0])
        else:  # here of one example each
            found.append(replicas(student[:, None], teacher[:, None])[:, 0])
        for actual in found:
            assert actual.shape == (() if case.scalar else (case.batch,))
            np.testing.assert_allclose(actual, expected, rtol=1e-11)


def check_gradients(case):
    """Those of student and teacher equal differences, in float64."""
    with jax.enable_x64(True):
        student, teacher = map(jnp.asarray, case.inputs())
        options = {"order": 1, "modes": ["rev"], "atol": 1e-6, "rtol": 1e-6}
        check_grads(jax.jit(case.call), (student, teacher), **options)


def check_constants(case, fill, value=0.0, atol=1e-6, slope=1e-6):
    """Examples of constants, all alike: a known value, and no gradient."""
    for batch in (1, case.batch) if case.scalar else (1,):
        student = np.full((batch, *case.student), fill, np.float32)
        teacher = np.full((batch, *case.teacher), fill, np.float32)
        found, *gradients = run(case.call, student, teacher)
        np.testing.assert_allclose(np.ravel(found), [value], atol=atol)
        for gradient in gradients:
            np.testing.assert_allclose(gradient, np.zeros(gradient.shape), atol=slope)


def check_minimum(case, value=0.0):
    """Equal inputs give the least value; compiled, the sides may differ by rounding."""
    student = case.inputs(np.float32)[0]
    if not case.scalar:
        student = student[:1]
    found, towards_student, towards_teacher = run(case.call, student, student)
    np.testing.assert_allclose(towards_student, np.zeros(student.shape), atol=1e-5)
    assert np.isfinite(towards_teacher).all()
    if value is not None:
        np.testing.assert_allclose(np.ravel(found), [value], atol=1e-5)


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
