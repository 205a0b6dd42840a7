"""The moving average of the networks: by hand, through phases, and when it is off."""

import chex
import jax
import numpy as np
import pytest
import tiny

from kdjax.train import loop
from kdjax.train.state import AveragedState, TrainState

pytestmark = pytest.mark.usefixtures("x64")

DECAY = 0.3
"""It is reached within four steps: 1/10, 2/11, 3/12, then 4/13 > 0.3."""
RECIPE = tiny.replace(ema=DECAY, milestones=())


@pytest.fixture(scope="module")
def program():
    with jax.enable_x64(True):
        yield tiny.program(recipe=RECIPE)


def networks(state):
    return {"params": state.params, "batch_stats": state.batch_stats}


def by_hand(states):
    """The average after the states of a phase, the first of which is its start."""
    average = networks(states[0])
    for count, state in enumerate(states[1:]):
        decay = min(DECAY, (1 + count) / (10 + count))
        average = jax.tree.map(
            lambda old, new, d=decay: d * old + (1 - d) * new, average, networks(state)
        )
    return average


def steps_of(prog, state, count):
    """The states after steps of random gradients and statistics, `state` first."""
    step, rng = prog.step, np.random.default_rng(0)
    apply, states = jax.jit(step.apply_gradients), [state]
    for _ in range(count):
        grads, stats = jax.tree.map(
            lambda leaf: rng.normal(size=leaf.shape),
            (step._split(state.params)[0], state.batch_stats),
        )
        states.append(apply(states[-1].replace(batch_stats=stats), grads))
    return states


def test_the_average_is_that_of_all_steps_and_moves_nothing(program):
    states = steps_of(program, program.start(0, {}), 5)
    last = states[-1]
    chex.assert_trees_all_close(networks(last.average), by_hand(states), rtol=1e-12)
    assert (last.average.count, last.step) == (5, 5)
    chosen = program.step.networks(last)["student"]
    chex.assert_trees_all_equal(chosen["params"], last.average.params["student"])
    chex.assert_trees_all_equal(
        chosen["batch_stats"], last.average.batch_stats["student"]
    )
    plain = tiny.program(recipe=tiny.replace(milestones=()))
    end = steps_of(plain, plain.start(0, {}), 5)[-1]
    assert type(end) is TrainState
    chex.assert_trees_all_equal(networks(last), networks(end))
    chex.assert_trees_all_equal(last.opt_state, end.opt_state)
    chex.assert_trees_all_equal(
        plain.step.networks(end)["student"]["params"], end.params["student"]
    )


def test_the_average_is_what_is_evaluated_and_saved(program, tmp_path):
    result = tiny.training(program, tmp_path, recipe=RECIPE).run()
    saved = loop.load_network(
        tmp_path, tiny.STUDENT, tiny.CLASSES, tiny.SHAPE, np.float64
    )
    state, _ = tiny.steps(program, result["steps"])
    expected = program.step.networks(state)["student"]
    chex.assert_trees_all_close(saved, expected, rtol=1e-12)
    (tested,) = program.evaluate(program.stack_replicas([state]))
    plain = TrainState(
        **{name: value for name, value in vars(state).items() if name != "average"}
    )
    plain = AveragedState(
        **vars(plain), average=state.average.replace(**networks(plain))
    )
    (other,) = program.evaluate(program.stack_replicas([plain]))
    loss = result["networks"]["student"]["test_loss"]
    np.testing.assert_allclose(loss, tested["loss/student"], rtol=1e-9)
    assert abs(loss - other["loss/student"]) > 1e-6


def test_every_phase_begins_an_average_of_its_own():
    options = {"ft": {"init_epochs": 1, "level": "stage2"}}
    prog = tiny.program("ft", options, student="plain-2", recipe=RECIPE)
    first, second = prog.phases
    end = steps_of(first, first.start(0, tiny.frozen(first.step.teachers)), 2)[-1]
    assert end.average.count == 2
    start = second.start_phase(end)
    assert isinstance(start, AveragedState)
    assert start.average.count == 0
    chex.assert_trees_all_equal(networks(start.average), networks(end))
    states = steps_of(second, start, 2)
    expected = by_hand(states)
    chex.assert_trees_all_close(networks(states[-1].average), expected, rtol=1e-9)


def test_without_it_the_state_has_the_fields_it_had():
    names = {"step", "params", "batch_stats", "opt_state", "memory", "phase"}
    assert vars(tiny.program().specs[0]).keys() == names
