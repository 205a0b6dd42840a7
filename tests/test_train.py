"""The loop around the steps: dispatches, evaluation, the best networks."""

import re
from collections import Counter

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from kdjax import models
from kdjax.runtime import backend, parallel
from kdjax.runtime.signals import Interrupted
from kdjax.train.checkpoint import Checkpoints
from kdjax.train.dispatch import evenly
from kdjax.train.loop import load_network
from kdjax.train.replica_step import EpochTargets

pytestmark = pytest.mark.usefixtures("x64")


@pytest.fixture(scope="module")
def supervised():
    with jax.enable_x64(True):
        return tiny.program()


@pytest.fixture(scope="module")
def trained(supervised, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    with jax.enable_x64(True):
        return folder, tiny.training(supervised, folder).run()


def of_two_steps_a_dispatch(method="supervised", **options):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "steps_per_dispatch", lambda: 2)
        made = tiny.program(method, **options)
    assert made.steps_per_dispatch == 2
    return made


@pytest.fixture(scope="module")
def looped():
    """A program of two steps a dispatch: epochs of three have one that is left."""
    with jax.enable_x64(True):
        return of_two_steps_a_dispatch()


def networks_of(folder):
    return load_network(folder, tiny.STUDENT, tiny.CLASSES, tiny.SHAPE, jnp.float64)


def test_many_steps_per_dispatch_are_the_same_steps(trained, looped, tmp_path):
    folder, whole = trained
    result = tiny.training(looped, tmp_path).run()
    chex.assert_trees_all_close(
        networks_of(tmp_path), networks_of(folder), rtol=1e-9, atol=1e-12
    )
    assert result["steps"] == whole["steps"]
    # One program for whole dispatches and one for the rest, in every epoch.
    assert sorted(looped._train) == [1, 2]


def test_dispatches_of_many_steps_resume_within_an_epoch(trained, looped, tmp_path):
    # A checkpoint of one step a dispatch need not lie where a dispatch would end.
    stopped = tiny.InterruptAfter(15, 0)
    single = tiny.program()
    with pytest.raises(Interrupted):
        tiny.training(single, tmp_path, interrupt=stopped, every_s=1e9).run()
    resumed = tiny.training(looped, tmp_path)
    assert resumed.training._step == 1
    resumed.run()
    chex.assert_trees_all_close(
        networks_of(tmp_path), networks_of(trained[0]), rtol=1e-9, atol=1e-12
    )


def test_a_backend_s_many_steps_are_compiled_in(monkeypatch, trained, tmp_path):
    monkeypatch.setattr(backend, "steps_per_dispatch", lambda: 4)
    whole_epochs = tiny.program()
    assert whole_epochs.steps_per_dispatch == 3
    tiny.training(whole_epochs, tmp_path).run()
    assert list(whole_epochs._train) == [3]
    # The compiler knows how often the step runs: it need not ask the host.
    assert "known_trip_count" in whole_epochs._train[3].as_text()
    chex.assert_trees_all_close(
        networks_of(tmp_path), networks_of(trained[0]), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("method", ["kd", "bss"])  # BSS differentiates twice
def test_the_choices_for_a_gpu_train_the_same_networks(method, monkeypatch):
    expected = tiny.steps(tiny.program(method), 3)[0]
    monkeypatch.setattr(backend, "platform", lambda: "gpu")
    made = tiny.program(method)
    made.compile()
    assert list(made._train) == [3]
    teachers = tiny.frozen(made.step.teachers)
    start = made.start(0, teachers), made.zero_metrics()
    state, totals = made.stack_replicas([start])
    inside = made.prepare_teachers([teachers])
    keys = made.stack_replicas([jax.random.key(0)])
    ((count, inputs),) = made.feed.epoch([0], 0, 0, made.steps_per_dispatch)
    trained = made.train(state, totals, inside, EpochTargets(), inputs, keys, count)
    (found,) = made.unstack_replicas(trained[0])
    chex.assert_trees_all_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("steps", "most", "count"),
    [(390, 40, 39), (390, 32, 30), (391, 40, 23), (397, 40, 40), (3, 40, 3), (7, 1, 1)],
)
def test_an_epoch_is_cut_evenly_where_it_can_be(steps, most, count):
    assert evenly(steps, most) == count


def test_parameters_cast_beside_the_state_train_the_same_networks():
    half = {"dtype": jnp.float32, "compute": jnp.bfloat16}
    expected = tiny.steps(tiny.program("kd", **half), 3)[0]
    made = of_two_steps_a_dispatch("kd", **half)
    text = made.lower_train(2).as_text()
    chex.assert_trees_all_equal(tiny.steps(made, 3)[0], expected)
    # They go round with the state, so that an update writes both.
    kernels = [leaf for leaf in jax.tree.leaves(expected.params) if leaf.ndim > 1]
    loop = next(line for line in text.splitlines() if "stablehlo.while" in line)
    assert loop.count("xbf16>") == len(kernels) + len(narrow(made))


def narrow(made):
    """The arrays in bfloat16 of a program's teacher."""
    leaves = jax.tree.leaves(made.inputs[2])
    return [leaf for leaf in leaves if leaf.dtype == jnp.bfloat16]


@pytest.mark.parametrize("method", ["kd", "bss"])  # BSS also calls the teacher
def test_teachers_are_cast_and_folded_before_the_steps(method):
    made = tiny.program(method, dtype=jnp.float32, compute=jnp.bfloat16)
    text = made.lower_train(2).as_text()
    loop = next(line for line in text.splitlines() if "stablehlo.while" in line)
    # What goes round: of all arrays the teacher's alone are bfloat16.
    shapes = re.findall(r"tensor<([\dx]+)xbf16>", loop)
    expected = ["x".join(map(str, leaf.shape[1:])) for leaf in narrow(made)]
    assert sorted(shapes) == sorted(expected)
    params = jax.tree.leaves(tiny.frozen(dtype=jnp.float32)["expert"]["params"])
    kernels = ["x".join(map(str, leaf.shape)) for leaf in params if leaf.ndim > 1]
    twice = 2 if method == "bss" else 1
    assert Counter(kernels * twice) <= Counter(expected)
    assert bool(made.inputs[2]["expert"].variables) == (method == "bss")


def test_a_further_program_counts_as_compilation(monkeypatch):
    made = tiny.program()
    made.compile()
    before = made.compile_seconds
    made._train_program(2)
    assert made.compile_seconds > before > 0
    between = made.compile_seconds
    made._train_program(2)
    assert made.compile_seconds == between


def test_evaluation_counts_every_test_image_once(trained):
    folder, result = trained
    data = tiny.dataset()
    variables = load_network(
        folder, tiny.STUDENT, tiny.CLASSES, tiny.SHAPE, jnp.float64
    )
    model = models.create(tiny.STUDENT, tiny.CLASSES)
    images = (data.test.images / 255.0 - 0.5) / 0.25
    logits = np.asarray(model.apply(variables, images, train=False).logits)
    labels = data.test.labels
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    network = result["networks"]["student"]
    assert network["test_accuracy"] == np.mean(logits.argmax(1) == labels)
    assert network["test_top5"] == 1.0  # of five classes
    loss = -np.mean(log_p[np.arange(len(labels)), labels])
    np.testing.assert_allclose(network["test_loss"], loss, rtol=1e-9)


def test_the_best_networks_are_kept(supervised, tmp_path):
    history = tiny.training(supervised, tmp_path, best=True).run()["history"]
    scores = [record["test/accuracy/student"] for record in history]
    best = history[int(np.argmax(scores))]
    assert Checkpoints(tmp_path / "best").latest() == best["step"]


def test_of_several_processes_the_first_alone_has_networks(
    supervised, trained, tmp_path, monkeypatch
):
    # The first may be replacing the folder at this moment: no other even opens it.
    monkeypatch.setattr(parallel, "is_first", lambda: False)
    found = tiny.training(supervised, tmp_path / "other").run()
    assert found["digest"] == trained[1]["digest"]
    assert not (tmp_path / "other" / "networks").exists()


def test_evaluation_may_be_rare_but_never_left_out(supervised, tmp_path):
    history = tiny.training(supervised, tmp_path, evaluate_every=5).run()["history"]
    assert ["test/loss/student" in record for record in history] == [False, True]


def test_replicas_of_one_program_differ_and_repeat(supervised, trained, tmp_path):
    _, first = trained
    again = tiny.training(supervised, tmp_path / "again").run()
    other = tiny.training(supervised, tmp_path / "other", seed=1).run()
    assert again["digest"] == first["digest"] != other["digest"]


@pytest.mark.parametrize(("told", "expected"), [(None, 0.0), ("3", 1.5)])
def test_small_programs_are_cached_unless_jax_is_told(monkeypatch, told, expected):
    name = "jax_persistent_cache_min_compile_time_secs"
    kept = {key: jax.config.values[key] for key in (name, "jax_compilation_cache_dir")}
    if told:
        monkeypatch.setenv(name.upper(), told)  # JAX reads it when it is imported
    try:
        jax.config.update(name, 1.5)
        backend.use_compilation_cache()
        assert jax.config.values[name] == expected
    finally:
        for key, value in kept.items():
            jax.config.update(key, value)
