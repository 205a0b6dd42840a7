"""Every method through the one step, on tiny networks; rows of METHODS and options."""

import copy
import functools
import gc

import chex
import jax
import numpy as np
import pytest
import tiny
from flax.traverse_util import flatten_dict
from jax.sharding import PartitionSpec as P

from kdjax import methods
from kdjax.runtime import parallel
from kdjax.runtime.signals import Interrupted

pytestmark = pytest.mark.usefixtures("x64")

DEEP = {"scratch": "tiny-4-2"}  # whose lower layers a student can share
ROWS = {
    "supervised": ("supervised", {}),
    "kd": ("kd", {}),
    "at": ("at", {}),
    "fitnet": ("fitnet", {}),
    "label_smoothing": ("label_smoothing", {}),
    "dkd": ("dkd", {"dkd": {"warmup_steps": 4, "standardise": True}}),
    "dist": ("dist", {}),
    "nkd": ("nkd", {}),
    "wttm": ("wttm", {}),
    "sp": ("sp", {}),
    "cc": ("cc", {"cc": {"dimensions": 3}}),
    "rkd": ("rkd", {}),
    "pkt": ("pkt", {}),
    "rocket": ("rocket", {"rocket": DEEP}),
    "rocket-all": ("rocket", {"rocket": {**DEEP, "tied": "all"}}),
    "rocket-none": ("rocket", {"rocket": {**DEEP, "tied": "none"}}),
    "ctkd": ("ctkd", {"ctkd": DEEP}),
    "ctkd-inherit": ("ctkd", {"ctkd": {**DEEP, "beta": 0.0, "inherit": True}}),
    "dgkd": ("dgkd", {"dgkd": {"survival": 0.5, "mask": "example"}}),
    "ensemble": ("ensemble", {}),
    "rocket+fitnet": ("rocket+fitnet", {"rocket": {**DEEP, "tied": "none"}}),
    "nst": ("nst", {}),
    "kdsvd": ("kdsvd", {}),
    "vid": ("vid", {}),
    "reviewkd": ("reviewkd", {}),
    "dml": ("dml", {"dml": {"peers": ("student", "tiny-4-2")}}),
    "one": ("one", {}),
    "ofd": ("ofd", {}),
    "simkd": ("simkd", {}),
    "crd": ("crd", {"crd": {"negatives": 16}}),
    "crd-relax": ("crd", {"crd": {"negatives": 16, "mode": "relax"}}),
    "sskd": ("sskd", {"sskd": {"init_epochs": 1}}),
    "bss": ("bss", {"bss": {"attack_steps": 2, "base": "teacher"}}),
    "ab": ("ab", {"ab": {"init_epochs": 1}}),
    "ft": ("ft", {"ft": {"init_epochs": 1}}),
    "fsp": ("fsp", {"fsp": {"init_epochs": 1}}),
    "crd+ab+kd": ("crd+ab+kd", {"crd": {"negatives": 16}, "ab": {"init_epochs": 1}}),
    # Those of installed packages, with their defaults.
    **{name: (name, {}) for name in methods.METHODS.outside()},
}
EQUAL = {"kdsvd", "fsp", "ctkd-inherit"}
"""What wants a teacher as wide as the student."""
FIXED = {"simkd": {("student", "head")}}
"""What no phase trains: role and layer."""
# Terms of single examples, averaged like any other's. What is between devices then,
# gradients and batch statistics, is so in CTKD and DGKD as well, and in test_step.py.
SINGLE = {"supervised", "kd", "nkd", "wttm", "at", "ensemble", "nst", "kdsvd", "fsp"}
# Left are those with terms between the examples of a batch, memory, peers or adapters;
# the further rows differ from them in options alone.
SHARDED = {*methods.METHODS} - SINGLE - {"label_smoothing", "dkd"}


@pytest.fixture(scope="module", params=ROWS)
def row(request):
    """All tests of one row follow each other, and its programs are dropped then."""
    yield request.param
    after_two_steps.cache_clear()
    program.cache_clear()
    gc.collect()


def rows(names):
    return pytest.mark.parametrize("row", names, indirect=True)


@functools.cache
def program(row, devices):
    # Weight decay moves every parameter: off, so that gradients must.
    name, options = ROWS[row]
    recipe = tiny.replace(weight_decay=0.0)
    few = {0: 0, 1: 1, None: 2}[methods.create(name, options).num_teachers]
    teacher = "tiny-4" if row in EQUAL else "tiny-6"
    teachers = dict.fromkeys(("expert", "assistant")[:few], teacher)
    prog = tiny.program(
        name,
        options,
        devices=devices,
        recipe=recipe,
        teachers=teachers,
        micro_batches=2 if row == "crd-relax" else 1,
    )
    for phase in prog.phases:
        phase.compile()  # before a test takes a copy
    return prog


@functools.cache
def after_two_steps(row, devices):
    """States and sums after two steps of every phase, the start's first."""
    prog = program(row, devices)
    found = [(prog.start(0, tiny.frozen(prog.step.teachers)), None)]
    for phase in prog.phases:
        after = found[-1][0] if found[1:] else None
        found.append(tiny.steps(phase, 2, after=after))
    return found


def test_every_method_has_a_row():
    assert {part for name, _ in ROWS.values() for part in name.split("+")} == set(
        methods.METHODS
    )


def test_every_trained_parameter_moves(row):
    found = after_two_steps(row, 1)
    phases = [phase.step for phase in program(row, 1).phases]
    trained = set()
    for number, phase in enumerate(phases):
        (start, _), (state, totals) = found[number : number + 2]
        assert state.step == 2 * (number + 1)
        assert state.phase == number
        for path, leaf in flatten_dict(start.params).items():
            moved = flatten_dict(state.params)[path]
            assert np.all(np.isfinite(moved)), path
            assert np.any(moved != leaf) == phase.trains(path), path
            trained |= {path} if phase.trains(path) else set()
        for path, leaf in flatten_dict(start.batch_stats).items():
            moved = flatten_dict(state.batch_stats)[path]
            assert np.any(moved != leaf) == phase.trains(path), path
        assert all(step == -1 for step in totals["bad"].values())
        assert all(np.isfinite(total) for total in totals["sums"].values())
    fixed = flatten_dict(state.params).keys() - trained
    assert {path[:2] for path in fixed} == FIXED.get(row, set())


def assert_devices_change_nothing(row, devices):
    one, many = after_two_steps(row, 1), after_two_steps(row, devices)
    chex.assert_trees_all_close(one[1:], many[1:], rtol=1e-9, atol=1e-12)


@rows([row for row in ROWS if row in SHARDED])
def test_one_device_equals_eight(row):
    """With one image on each: what a batch says of itself is all between devices."""
    assert_devices_change_nothing(row, tiny.BATCH)


@rows(["sp", "crd"])
@pytest.mark.parametrize("devices", [2, 4])
def test_one_device_equals_a_few(row, devices):
    assert_devices_change_nothing(row, devices)


@rows(["crd"])
def test_large_banks_lie_over_the_devices(row, monkeypatch):
    monkeypatch.setattr(parallel, "LARGE", 20_000)  # bytes: the banks alone
    prog = program.__wrapped__(row, tiny.BATCH)
    state = prog.inputs[0]
    over = {leaf.sharding.spec for leaf in jax.tree.leaves(state.memory["banks"])}
    assert over == {P("replica", "data")}
    assert state.memory["started"].sharding.spec == P("replica")
    found, _ = tiny.steps(prog, 2)
    whole = after_two_steps(row, 1)[1][0]
    chex.assert_trees_all_close(found, whole, rtol=1e-9, atol=1e-12)


@rows(["crd-relax"])
def test_micro_batches_carry_the_memory(row):
    state, _ = after_two_steps(row, 1)[1]
    for bank in state.memory["banks"].values():
        moved = np.abs(np.linalg.norm(bank, axis=1) - 1) < 1e-12
        assert np.sum(moved) == 2 * tiny.BATCH


def test_black_images_keep_everything_finite(row):
    state = None
    for phase in program(row, 1).phases:
        prog = copy.copy(phase)
        prog.feed = tiny.black(prog)
        state, totals = tiny.steps(prog, 1, after=state)
        chex.assert_tree_all_finite((state, totals))


def test_interrupted_equals_uninterrupted(row, tmp_path):
    whole = tiny.training(program(row, 1), tmp_path / "whole").run()
    cuts = (1, 0)  # within the first epoch, then at its end
    if len(program(row, 1).phases) > 1:
        cuts = (1, 0, 1, 1)  # an epoch each: also within the next phase
    for after in cuts:
        stopped = tiny.InterruptAfter(15, after)
        with pytest.raises(Interrupted):
            tiny.training(
                program(row, 1), tmp_path / "cut", interrupt=stopped, every_s=1e9
            ).run()
    resumed = tiny.training(program(row, 1), tmp_path / "cut").run()
    assert resumed["digest"] == whole["digest"]
    for ours, theirs in zip(resumed["history"], whole["history"], strict=True):
        for name in theirs:
            if name.startswith(("train/", "test/")):
                assert ours[name] == theirs[name], name
