"""Targets are the same numbers with the bank and without."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from kdjax import methods
from kdjax.train import rounding
from kdjax.train.replica_step import EpochTargets


def numbers():
    """Float32 numbers of all kinds: ties, beyond either end, not finite."""
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, 100_000, dtype=np.uint32).view(np.float32)
    small = rng.normal(size=10_000).astype(np.float32) * np.float32(3e-5)
    with np.errstate(over="ignore", invalid="ignore"):
        halves = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)
        ties = (halves[:-1].astype(np.float64) + halves[1:]) / 2
        found = [halves, ties, np.nextafter(halves, np.float32(0)), bits, small]
        return np.concatenate([x.astype(np.float32) for x in found])


def test_rounding_is_that_of_float16():
    x = numbers()
    found = np.asarray(jax.jit(lambda x: rounding.as_stored(x, jnp.float32))(x))
    with np.errstate(over="ignore", invalid="ignore"):
        expected = x.astype(np.float16).astype(np.float32)
    assert np.mean(found != x) > 0.5
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(np.signbit(found), np.signbit(expected))
    assert rounding.stored_dtype(jnp.float32) == np.float16


@pytest.mark.usefixtures("x64")
def test_float64_is_not_rounded():
    x = np.asarray([1 / 3, 1e300, 0.1])
    np.testing.assert_array_equal(rounding.as_stored(x, jnp.float64), x)
    assert rounding.stored_dtype(jnp.float64) == np.float64


def after_three_steps(banked, method, options):
    """The parameters in float32; all teachers' targets are stored, or none's."""
    prog = tiny.program(method, options, banked=banked, dtype=jnp.float32)
    frozen = tiny.frozen(prog.step.teachers, dtype=jnp.float32)

    def load_targets(epoch):
        targets = {}
        for teacher in banked:
            leaves = prog.teacher_targets.over_epoch(teacher, frozen[teacher], 0, epoch)
            assert all(leaf.dtype == np.float16 for leaf in leaves)
            structure = jax.tree.structure(prog.step.target_specs[teacher])
            tree = jax.tree.unflatten(structure, leaves)
            targets[teacher] = prog.stack_replicas([tree])
        return EpochTargets(targets)

    state, _ = tiny.many_steps(prog, 3, [0], frozen, load_targets)[0]
    return np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(state.params)])


def test_steps_are_the_same_with_the_bank_and_without(monkeypatch):
    """To what two programs' own order of sums is: they are compiled apart."""
    options = {"at": {"levels": ("stage1",)}}
    stored = after_three_steps(("expert",), "at+kd", options)
    computed = after_three_steps((), "at+kd", options)
    gap = np.max(np.abs(computed - stored))
    with monkeypatch.context() as patch:
        patch.setattr(rounding, "needs_teachers", lambda method, mixup: True)
        unrounded = after_three_steps((), "at+kd", options)
    assert np.max(np.abs(unrounded - stored)) > 100 * gap
    np.testing.assert_allclose(computed, stored, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "mixup", "inside"),
    [
        ("kd", {}, 0.0, False),
        ("kd", {}, 0.2, True),
        ("sskd", {}, 0.0, True),
        ("bss", {}, 0.0, True),
        ("ofd", {}, 0.0, False),
        ("ctkd", {"ctkd": {"scratch": "tiny-4"}}, 0.0, False),
    ],
)
def test_whose_teachers_run_in_the_step(name, options, mixup, inside):
    method = methods.create(name, options)
    assert rounding.needs_teachers(method, mixup) == inside
