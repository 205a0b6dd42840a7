"""Seeds side by side, micro-batches, precisions and replayed paths, whole steps."""

import contextlib
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from kdjax import losses, models
from kdjax.runtime import backend, parallel
from kdjax.runtime.errors import UserError
from kdjax.runtime.signals import Interrupt, Interrupted
from kdjax.train import recordings
from kdjax.train.loop import Saving, Training
from kdjax.train.replica import resume_group
from kdjax.train.replica_step import EpochTargets

pytestmark = pytest.mark.usefixtures("x64")
PATH = {"scratch": "tiny-4-2", "beta": 10.0}


@pytest.fixture(scope="module")
def two():
    """CTKD with two seeds side by side, each on four devices."""
    with jax.enable_x64(True):
        return tiny.program("ctkd", {"ctkd": PATH}, devices=8, replicas=2)


def test_every_replica_is_the_one_trained_alone(two):
    frozen = tiny.frozen()
    alone = tiny.program("ctkd", {"ctkd": PATH})
    together = tiny.many_steps(two, 4, [3, 5], frozen)
    for seed, found in zip((3, 5), together, strict=True):
        expected = tiny.steps(alone, 4, seed)
        chex.assert_trees_all_close(found, expected, rtol=1e-9, atol=1e-12)
    assert together[0][1]["sums"]["loss"] != together[1][1]["sums"]["loss"]


def groups(text):
    """The devices of every collective in a compiled program."""
    found = re.findall(
        r"replica_groups=(\{\{.*?\}\}|\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?)", text
    )
    assert found
    return set(found)


def test_nothing_passes_between_replicas(two):
    """Of devices 0 to 7, in two replicas of four: 0 to 3, and 4 to 7."""
    text = two.lower_train().compile().as_text()
    assert groups(text) <= {"{{0,1,2,3},{4,5,6,7}}", "[2,4]<=[8]"}
    assert "collective-permute(" not in text


def test_nothing_passes_between_five_seeds_on_eight_devices():
    """Four of the seeds at once, each on two devices."""
    replicas = parallel.side_by_side(5, 8)
    prog = tiny.program("at", devices=8, replicas=replicas)
    text = prog.lower_train().compile().as_text()
    assert groups(text) <= {"{{0,1},{2,3},{4,5},{6,7}}", "[4,2]<=[8]"}
    assert "collective-permute(" not in text


@pytest.mark.parametrize("devices", [2, 4])
def test_replicas_alone_on_their_devices_say_nothing_to_each_other(devices):
    replicas = parallel.side_by_side(5, devices)
    assert replicas == devices
    prog = tiny.program(devices=devices, replicas=replicas)
    text = prog.lower_train().compile().as_text()
    for word in ("all-reduce", "all-gather", "all-to-all", "collective-permute"):
        assert f"{word}(" not in text
        assert f"{word}-start(" not in text


@pytest.mark.parametrize(
    ("seeds", "devices", "expected"),
    [(5, 1, 1), (5, 4, 4), (5, 8, 4), (5, 2, 2), (3, 4, 2), (1, 8, 1), (5, 5, 5)],
)
def test_as_many_seeds_side_by_side_as_divide_the_devices(seeds, devices, expected):
    assert parallel.side_by_side(seeds, devices) == expected


def train(prog, folder, seeds, interrupt=None, every_s=1e9):
    """Trains seeds side by side, or goes on; returns their results."""
    with contextlib.ExitStack() as opened:
        replicas = []
        for seed in seeds:
            (folder / str(seed)).mkdir(parents=True, exist_ok=True)
            replica = tiny.replica(prog, folder / str(seed), seed)
            replicas.append(opened.enter_context(contextlib.closing(replica)))
        step, group = resume_group(replicas)
        assert len(group) == len(seeds)
        return Training(
            prog,
            (tiny.RECIPE,),
            Saving(every_s=every_s),
            group,
            step=step,
            interrupt=interrupt or Interrupt(),
        ).run()


def test_replicas_stop_and_go_on_alone_or_side_by_side(two, tmp_path):
    whole = train(two, tmp_path / "whole", [0, 1])
    with pytest.raises(Interrupted):
        train(two, tmp_path / "cut", [0, 1], tiny.InterruptAfter(15, 1))
    resumed = train(two, tmp_path / "cut", [0, 1])
    for ours, theirs in zip(resumed, whole, strict=True):
        assert ours["digest"] == theirs["digest"]
    assert whole[0]["digest"] != whole[1]["digest"]
    # What four devices each began, one device for both in turn ends.
    with pytest.raises(Interrupted):
        train(two, tmp_path / "moved", [0, 1], tiny.InterruptAfter(15, 1))
    one = tiny.program("ctkd", {"ctkd": PATH})
    for seed in (0, 1):
        (result,) = train(one, tmp_path / "moved", [seed])
        expected = whole[seed]["history"][-1]
        for name, value in result["history"][-1].items():
            if name.startswith(("train/", "test/")):
                np.testing.assert_allclose(value, expected[name], rtol=1e-8)


def test_replicas_go_on_from_what_they_share(tmp_path):
    class Saved:
        def __init__(self, *steps):
            self.steps = list(steps)

        def saved(self):
            return self.steps

    fresh, late, both = Saved(), Saved(2, 4), Saved(2)
    assert resume_group([fresh, late]) == (None, [fresh])
    assert resume_group([late, both]) == (2, [late, both])
    assert resume_group([Saved(9), both])[0] == 2
    assert resume_group([late])[0] == 4


# Micro-batches.


@pytest.mark.parametrize("on_device", [False, True])
def test_two_micro_batches_are_a_step_of_their_mean_gradient(monkeypatch, on_device):
    """By hand; with the loop written out as on CPU, and as a scan."""
    if on_device:
        monkeypatch.setattr(backend, "platform", lambda: "gpu")
    recipe = tiny.replace(milestones=())
    prog = tiny.program(recipe=recipe, micro_batches=2)
    monkeypatch.undo()
    params = prog.start(0, {}).params["student"]
    stats = prog.start(0, {}).batch_stats["student"]
    model = models.create(tiny.STUDENT, tiny.CLASSES)

    def loss(params, stats, images, labels):
        out, new = model.apply(
            {"params": params, "batch_stats": stats},
            images,
            True,
            mutable=["batch_stats"],
        )
        return losses.cross_entropy(out.logits, labels).mean(), new["batch_stats"]

    slope = jax.jit(jax.grad(loss, has_aux=True))
    velocity = jax.tree.map(jnp.zeros_like, params)
    for batch in tiny.batches(prog, 2):
        grads = []
        for half in (slice(0, 4), slice(4, 8)):
            found, stats = slope(params, stats, batch.images[half], batch.labels[half])
            grads.append(found)
        mean = jax.tree.map(lambda a, b, p: (a + b) / 2 + 5e-4 * p, *grads, params)
        velocity = jax.tree.map(lambda v, g: 0.9 * v + g, velocity, mean)
        params = jax.tree.map(lambda p, v: p - 0.05 * v, params, velocity)
    state, _ = tiny.steps(prog, 2)
    chex.assert_trees_all_close(state.params["student"], params, rtol=1e-9, atol=1e-12)
    chex.assert_trees_all_close(state.batch_stats["student"], stats, rtol=1e-9)


def test_a_batch_that_does_not_divide_into_micro_batches_is_told():
    with pytest.raises(UserError, match=r"batch_size=8 .*accumulate=3.*multiples of 3"):
        tiny.program(micro_batches=3)


# bfloat16.


def test_bfloat16_agrees_with_float32():
    """To three digits in the first steps' losses; parameters stay float32."""
    options = {"dtype": jnp.float32}
    full = tiny.program("ctkd", {"ctkd": PATH}, **options)
    half = tiny.program("ctkd", {"ctkd": PATH}, compute=jnp.bfloat16, **options)
    expected, found = (tiny.steps(prog, 3) for prog in (full, half))
    for leaf in jax.tree.leaves((found[0].params, found[0].batch_stats)):
        assert leaf.dtype == np.float32
    for name, total in expected[1]["sums"].items():
        if not name.startswith("accuracy"):
            np.testing.assert_allclose(found[1]["sums"][name], total, rtol=0.03)
    # The rounding is there: these are not the same numbers.
    assert found[1]["sums"]["loss"] != expected[1]["sums"]["loss"]
    text = half.lower_train().as_text()
    assert re.search(r"stablehlo.convolution.*bf16", text)
    assert not re.search(r"stablehlo.convolution.*xf32>", text)


# CTKD at the price of KD.


def test_a_replayed_student_is_the_joint_ones(tmp_path):
    teacher = tiny.program(student="tiny-4-2", record=True)
    expert = tiny.training(teacher, tmp_path / "expert")
    expert.run()
    joint = tiny.program("ctkd", {"ctkd": PATH})
    replayed = tiny.program("ctkd", {"ctkd": {**PATH, "replay": True}})
    assert set(replayed.step.roles) == {"student"}
    frozen = tiny.frozen()

    def recorded(epoch):
        logits = recordings.read(tmp_path / "expert", epoch, (tiny.SIZE, tiny.CLASSES))
        return replayed.stack_replicas([EpochTargets(recorded={"expert": logits})])

    steps = 5  # of two epochs with three steps each
    expected = tiny.many_steps(joint, steps, [0], frozen)[0]
    found = tiny.many_steps(replayed, steps, [0], frozen, recorded)[0]
    for part in ("params", "batch_stats"):
        ours, theirs = getattr(found[0], part), getattr(expected[0], part)
        chex.assert_trees_all_close(
            ours["student"], theirs["student"], rtol=1e-9, atol=1e-12
        )
    for name in ("ce/student", "hint/scratch", "at/expert"):
        np.testing.assert_allclose(
            found[1]["sums"][name], expected[1]["sums"][name], rtol=1e-9
        )


def test_a_recording_survives_an_interruption(tmp_path):
    prog = tiny.program(student="tiny-4-2", record=True)
    tiny.training(prog, tmp_path / "whole").run()
    stopped = tiny.InterruptAfter(15, 1)
    with pytest.raises(Interrupted):
        tiny.training(prog, tmp_path / "cut", interrupt=stopped, every_s=1e9).run()
    tiny.training(prog, tmp_path / "cut").run()
    for epoch in (0, 1):
        said = [
            recordings.read(tmp_path / name, epoch, (tiny.SIZE, tiny.CLASSES))
            for name in ("whole", "cut")
        ]
        np.testing.assert_array_equal(*said)
        assert np.all(np.any(said[0] != 0, axis=1))


def test_a_recording_that_is_not_there_is_told(tmp_path):
    with pytest.raises(UserError, match=r"epoch-0002.*scratch=joint"):
        recordings.read(tmp_path, 2, (4, 3))
    recordings.write(tmp_path, 2, np.zeros((4, 2)))
    with pytest.raises(UserError, match=r"has shape \(4, 2\), not \(4, 3\)"):
        recordings.read(tmp_path, 2, (4, 3))
