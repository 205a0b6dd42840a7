"""Every method through the one step, on tiny networks; rows of METHODS and options."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax.traverse_util import flatten_dict

from kdjax import methods
from kdjax.data.stream import Batch
from kdjax.errors import UserError
from kdjax.interrupt import Interrupted

pytestmark = pytest.mark.usefixtures("x64")

ROCKET = {"scratch": tiny.TEACHER}
ROWS = {
    "supervised": ("supervised", {}),
    "kd": ("kd", {}),
    "kd-added": ("kd", {"kd": {"form": "added"}}),
    "at": ("at", {}),
    "at-l2": ("at", {"at": {"norm": "l2", "beta": 1.0}}),
    "fitnet": ("fitnet", {}),
    "rocket": ("rocket", {"rocket": ROCKET}),
    "rocket-all": ("rocket", {"rocket": {**ROCKET, "tied": "all"}}),
    "rocket-none": ("rocket", {"rocket": {**ROCKET, "tied": "none"}}),
    "ctkd": ("ctkd", {"ctkd": ROCKET}),
    "ctkd-scratch": ("ctkd", {"ctkd": {**ROCKET, "attention_target": "scratch"}}),
    "ctkd-inherit": ("ctkd", {"ctkd": {**ROCKET, "beta": 0.0, "inherit": True}}),
    "rocket+kd": ("rocket+kd", {"rocket": ROCKET}),
    "rocket+fitnet": ("rocket+fitnet", {"rocket": {**ROCKET, "tied": "none"}}),
}
each_row = pytest.mark.parametrize("row", ROWS)


@functools.cache
def program(row, devices=1):
    # Weight decay moves every parameter: off, so that gradients must.
    name, options = ROWS[row]
    recipe = tiny.replace(weight_decay=0.0)
    return tiny.program(name, options, devices=devices, recipe=recipe)


@functools.cache
def after_two_steps(row, devices=1):
    return tiny.steps(program(row, devices), 2)


def test_every_method_has_a_row():
    assert {part for name, _ in ROWS.values() for part in name.split("+")} == set(
        methods.METHODS
    )


@each_row
def test_every_trained_parameter_moves(row):
    prog = program(row)
    key = jax.random.key(0)
    start = prog.start(0, tiny.frozen(prog.step.teachers))
    state, totals = after_two_steps(row)
    assert state.step == 2
    for path, leaf in flatten_dict(start.params).items():
        moved = flatten_dict(state.params)[path]
        assert np.all(np.isfinite(moved)), path
        assert np.any(moved != leaf), path
    for path, leaf in flatten_dict(start.batch_stats).items():
        assert np.any(flatten_dict(state.batch_stats)[path] != leaf), path
    assert all(step == -1 for step in totals["bad"].values())
    assert all(np.isfinite(total) for total in totals["sums"].values())


@each_row
def test_one_device_equals_four(row):
    one, four = after_two_steps(row), after_two_steps(row, devices=4)
    chex.assert_trees_all_close(one, four, rtol=1e-9, atol=1e-12)


@each_row
def test_gradients_are_finite_at_black_images(row):
    prog = program(row)
    key = jax.random.key(0)
    teachers = tiny.frozen(prog.step.teachers)
    images = jnp.zeros((tiny.BATCH, *tiny.SHAPE))
    index = jnp.arange(tiny.BATCH)
    batch = Batch(images, index % tiny.CLASSES, index)
    state = prog.start(0, teachers)
    state, measured = jax.jit(prog.step.train)(state, teachers, batch, key)
    chex.assert_tree_all_finite((state, measured))


@each_row
def test_interrupted_equals_uninterrupted(row, tmp_path):
    whole = tiny.training(program(row), tmp_path / "whole").run()
    for after in (1, 0):  # within the first epoch, then at its end
        stopped = tiny.InterruptAfter(15, after)
        with pytest.raises(Interrupted):
            tiny.training(
                program(row), tmp_path / "cut", interrupt=stopped, every_s=1e9
            ).run()
    resumed = tiny.training(program(row), tmp_path / "cut").run()
    assert resumed["digest"] == whole["digest"]
    for ours, theirs in zip(resumed["history"], whole["history"], strict=True):
        for name in theirs:
            if name.startswith(("train/", "test/")):
                assert ours[name] == theirs[name], name
