"""NST, FSP and KDSVD against NumPy, numbers by hand, and at degenerate maps."""

import os
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from oracles import np_fsp_matrix, np_kdsvd, np_nst
from quick import QUICK

from kdjax import losses

B = 2


def draw(*shapes, seed=0):
    random = np.random.default_rng(seed)
    return [random.normal(size=(B, *shape)) for shape in shapes]


def check(call, *arrays):
    with jax.enable_x64(True):
        arrays = jax.tree.map(jnp.asarray, arrays)
        check_grads(call, arrays, order=1, modes=["rev"], atol=1e-6, rtol=1e-6)


# NST.


def test_nst_equals_numpy():
    student, teacher = draw((2, 4, 3), (2, 4, 5))
    expected = [np_nst(s, t) for s, t in zip(student, teacher, strict=True)]
    call = jax.jit(losses.nst)
    with jax.enable_x64(True):
        np.testing.assert_allclose(call(student, teacher), expected, rtol=1e-10)
        large = np.repeat(np.repeat(teacher, 3, axis=1), 2, axis=2)
        np.testing.assert_allclose(call(student, large), expected, rtol=1e-10)
    check(call, student, teacher)


def test_nst_by_hand():
    # One channel each, at an angle of 60 degrees: 1 + 1 - 2 / 4.
    student = np.array([2.0, 0.0], np.float32).reshape(1, 1, 2, 1)
    teacher = np.array([0.5, np.sqrt(0.75)], np.float32).reshape(1, 1, 2, 1)
    np.testing.assert_allclose(losses.nst(student, teacher), [1.5], rtol=1e-6)
    # A second channel of the student, which is 0, has products of 0 with all:
    # the student's mean is 1/4, the one with the teacher 1/8.
    student = np.concatenate([student, 0 * student], axis=3)
    np.testing.assert_allclose(losses.nst(student, teacher), [1.0], rtol=1e-6)


# FSP.


def test_fsp_equals_numpy():
    top, bottom, teacher = draw((2, 3, 4), (2, 3, 5), (4, 5))
    expected = np.stack(
        [np_fsp_matrix(*pair) for pair in zip(top, bottom, strict=True)]
    )
    call = jax.jit(losses.fsp_matrix)
    with jax.enable_x64(True):
        np.testing.assert_allclose(call(top, bottom), expected, rtol=1e-12)
        large = np.repeat(np.repeat(top, 2, axis=1), 2, axis=2)
        np.testing.assert_allclose(call(large, bottom), expected, rtol=1e-12)
        distance = ((expected - teacher) ** 2).mean(axis=(1, 2))
        found = jax.jit(losses.fsp)(expected, teacher)
        np.testing.assert_allclose(found, distance, rtol=1e-12)
    check(lambda *maps: losses.fsp(call(*maps), teacher), top, bottom)


def test_fsp_by_hand():
    # Two positions: top 1, 3, bottom (2, 0), (4, 1): means 14/2 and 3/2.
    top = np.array([1.0, 3.0], np.float32).reshape(1, 1, 2, 1)
    bottom = np.array([[2.0, 0.0], [4.0, 1.0]], np.float32).reshape(1, 1, 2, 2)
    matrix = losses.fsp_matrix(top, bottom)
    np.testing.assert_allclose(matrix, [[[7.0, 1.5]]], rtol=1e-6)
    found = losses.fsp(matrix, np.array([[[6.0, 1.5]]], np.float32))
    np.testing.assert_allclose(found, [0.5], rtol=1e-6)


# KDSVD.

# As tall as wide, tall, wide; the sizes of student and teacher differ.
LEVELS = [(3, 4, 5), (2, 2, 6), (3, 3, 4)], [(4, 2, 5), (3, 3, 6), (2, 3, 4)]


@pytest.mark.parametrize("k", [1, 2])
def test_kdsvd_equals_numpy(k):
    student, teacher = (draw(*shapes, seed=i) for i, shapes in enumerate(LEVELS))
    expected = [
        np_kdsvd([s[i] for s in student], [t[i] for t in teacher], k) for i in range(B)
    ]
    call = jax.jit(partial(losses.kdsvd, k=k))
    with jax.enable_x64(True):
        np.testing.assert_allclose(call(student, teacher), expected, rtol=1e-9)
        huge = [1e12 * level for level in student]
        np.testing.assert_allclose(call(huge, teacher), expected, rtol=1e-9)
    check(call, student, teacher)


def test_kdsvd_by_hand():
    kdsvd = jax.jit(losses.kdsvd)
    # One position: the vector is the normalised pixel. Teacher: (0, 1) and (1, 0),
    # differences 1, 0, 0 and -1; student: (0, 1) twice, differences 0, 1, -1 and 0.
    first = np.array([0.0, 3.0], np.float32).reshape(1, 1, 1, 2)
    second = np.array([2.0, 0.0], np.float32).reshape(1, 1, 1, 2)
    # A second pixel, fainter, along the teacher's own direction: without it, the
    # student's second level would have no vector to pair.
    student = np.array([[0.0, 5.0], [1.0, 4.9]], np.float32).reshape(1, 1, 2, 2)
    found = kdsvd([first, first], [first, first])
    np.testing.assert_allclose(found, [0.0], atol=1e-12)
    # Nothing of (0, 1) points along (1, 0): a zero vector, whose differences to the
    # level below, (0, 1), are 0 and -1 for both channels.
    found = kdsvd([first, first], [first, second])
    e = np.exp(-1 / 8)
    teacher = np.array([[e, 1.0], [1.0, e]])
    np.testing.assert_allclose(
        found, [((np.array([[1, e], [1, e]]) - teacher) ** 2).sum()], rtol=1e-6
    )
    assert kdsvd([first, student], [first, second]) > 0


@jax.jit
def value_and_slopes(student, teacher):
    call = jax.value_and_grad(lambda s, t: losses.kdsvd(s, t).sum(), (0, 1))
    return call(student, teacher)


def gradients(student, teacher):
    value, slopes = value_and_slopes(student, teacher)
    assert np.isfinite(value)
    assert all(np.all(np.isfinite(slope)) for slope in jax.tree.leaves(slopes))
    return value, slopes


def test_kdsvd_where_singular_vectors_are_arbitrary():
    square, wide = [(2, 2, 4), (2, 2, 4)], [(1, 2, 4), (1, 2, 4)]
    for shapes in (square, wide):
        some = [x.astype(np.float32) for x in draw(*shapes)]
        maps = [np.eye(4, dtype=np.float32)[: np.prod(shapes[0][:2])]] * 2
        equal = [np.stack([m.reshape(shapes[0])] * B) for m in maps]
        for fill in (0.0, 1.0, -1e-30, 1e-19, 1e-10, 1e30):
            # Rank one, or nothing at all.
            constant = [np.full_like(x, fill) for x in some]
            value, slopes = gradients(constant, constant)
            np.testing.assert_allclose(value, 0, atol=1e-6)
            gradients(constant, some)
            gradients(some, constant)
            if abs(fill) < 1e-15:
                assert not any(np.any(s) for s in jax.tree.leaves(slopes))
        for degenerate in (equal, [3 * x for x in equal]):
            gradients(degenerate, degenerate)
            gradients(degenerate, some)
            gradients(some, degenerate)
        # Nearly equal singular values: 1 / gap would be some 1e7 here.
        near = [x * (1 + 1e-7 * np.arange(4, dtype=np.float32)) for x in equal]
        _, slopes = gradients(near, some)
        assert max(np.abs(slope).max() for slope in jax.tree.leaves(slopes)) < 1e4


# Precision, and what the caller gets wrong.


def test_precision_and_one_example():
    half = jnp.ones((1, 2, 2, 3), jnp.bfloat16)
    for call in (
        losses.nst,
        losses.fsp_matrix,
        lambda s, t: losses.kdsvd([s, s], [t, t]),
    ):
        assert jax.eval_shape(call, half, half).dtype == jnp.float32
        assert str(jax.make_jaxpr(call)(half, half)).count("bf16") == 2


@pytest.mark.parametrize("fill", [0.0, 1.0, -1e-30, 1e-7, 1e4])
def test_degenerate_maps_keep_everything_finite(fill):
    maps = np.full((1, 2, 2, 3), fill, np.float32)
    some = np.random.default_rng(0).normal(size=maps.shape).astype(np.float32)

    def pair(s, t):
        matrices = losses.fsp_matrix(s, s), losses.fsp_matrix(t, t)
        return losses.nst(s, t).sum() + losses.fsp(*matrices).sum()

    call = jax.jit(jax.value_and_grad(pair, (0, 1)))
    for inputs in ((maps, maps), (maps, some), (some, maps)):
        for found in jax.tree.leaves(call(*inputs)):
            assert np.all(np.isfinite(found))
    np.testing.assert_allclose(call(maps, maps)[0], 0, atol=1e-6)


def test_shapes_are_never_broadcast():
    maps = np.ones((B, 2, 2, 3), np.float32)
    kdsvd = partial(jax.eval_shape, losses.kdsvd)  # nothing is compiled
    for other in (maps[:1], maps[0]):
        shape = str(other.shape).replace("(", r"\(").replace(")", r"\)")
        with pytest.raises(ValueError, match=f"teacher {shape}"):
            losses.nst(maps, other)
        with pytest.raises(ValueError, match=f"bottom {shape}"):
            losses.fsp_matrix(maps, other)
        with pytest.raises(ValueError, match=f"teacher {shape}"):
            kdsvd([maps, maps], [maps, other])
    with pytest.raises(ValueError, match=r"agree in batch and channels"):
        kdsvd([maps, maps], [maps, maps[..., :2]])
    with pytest.raises(ValueError, match=r"different batch sizes: \[1, 2\]"):
        kdsvd([maps, maps[:1]], [maps, maps[:1]])
    for levels in ([maps], [maps] * 3):
        with pytest.raises(ValueError, match=f"{len(levels)} of the student and 2"):
            kdsvd(levels, [maps] * 2)
    with pytest.raises(ValueError, match=r"k=4 is not between 1 and the 3"):
        jax.eval_shape(partial(losses.kdsvd, k=4), [maps] * 2, [maps] * 2)
    with pytest.raises(ValueError, match=r"top channels, bottom channels"):
        losses.fsp(np.ones((B, 3, 3)), np.ones((B, 3, 1)))


_AT_ONCE = """
import jax
from kdjax import losses

jax.config.update("jax_num_cpu_devices", 1)
keys = jax.random.split(jax.random.key(0), 6)
maps = [
    jax.random.normal(key, (64, size, size, channels))
    for key, size, channels in zip(keys, 2 * (16, 8, 4), 2 * (16, 32, 64))
]
loss = jax.jit(lambda maps: losses.kdsvd(maps[:3], maps[3:]))
for _ in range(40):
    loss(maps).block_until_ready()
"""


def test_many_decompositions_at_once_do_not_wait_for_each_other():
    quick = f"--xla_backend_optimization_level=0 {QUICK}"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": quick}
    command = [sys.executable, "-c", _AT_ONCE]
    subprocess.run(command, env=environment, check=True, timeout=120)
