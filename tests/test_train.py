"""The loop around the steps: dispatches, evaluation, the best networks."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from kdjax import models
from kdjax.runtime import backend, parallel
from kdjax.train.checkpoint import Checkpoints
from kdjax.train.loop import load_network

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


def test_many_steps_per_dispatch_are_the_same_steps(trained, tmp_path):
    folder, whole = trained
    looped = tiny.program()
    looped.steps_per_dispatch = 2  # epochs of three steps: two, then the one left
    result = tiny.training(looped, tmp_path).run()
    ours, theirs = (
        load_network(path, tiny.STUDENT, tiny.CLASSES, tiny.SHAPE, jnp.float64)
        for path in (tmp_path, folder)
    )
    chex.assert_trees_all_close(ours, theirs, rtol=1e-9, atol=1e-12)
    assert result["steps"] == whole["steps"]


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
