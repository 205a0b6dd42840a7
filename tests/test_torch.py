"""The PyTorch side of the benchmarks computes what kdjax does."""

import dataclasses
import importlib.util
import json
import time

import jax
import numpy as np
import pytest
from rich.console import Console

pytest.importorskip("torch", reason="torch, of the benchmarks' extra, is not installed")

import torch

from benchmarks import foreign, steps, torch_networks, torch_steps, torch_training
from benchmarks.cases import CASES, tiny
from kdjax import models
from kdjax.data.sources import Dataset, Split
from kdjax.train.recipe import Recipe


@pytest.mark.parametrize("name", CASES)
def test_three_steps_are_the_same_mathematics(name):
    layout = "channels_last" if name == "ctkd" else "NCHW"
    found = steps.difference(tiny(CASES[name]), layout)
    assert found["loss"] < 1e-12
    assert found["networks"] < 1e-10


def short(epochs=1, milestones=(0.3, 0.6, 0.8)):
    """A case of six steps an epoch."""
    case = tiny(CASES["supervised"])
    recipe = dataclasses.replace(case.recipe, epochs=epochs, milestones=milestones)
    return dataclasses.replace(case, size=6 * case.batch, recipe=recipe)


def test_both_stay_equal_across_the_milestones():
    # The rate drops before the third, fifth and sixth of six steps.
    found = steps.difference(short(), steps=6)
    assert found["loss"] < 1e-12
    assert found["networks"] < 1e-10


def test_the_difference_sees_a_missing_drop(monkeypatch):
    monkeypatch.setattr(torch_training, "drops", lambda recipe, steps: {})
    assert steps.difference(short(), steps=6)["networks"] > 1e-6


@pytest.mark.parametrize(
    ("steps", "milestones"),
    [(600, (0.3, 0.6, 0.8)), (78_000, (0.3, 0.6, 0.8)), (5, (0.5, 0.5, 1.0)), (1, ())],
)
def test_the_learning_rate_drops_when_that_of_kdjax_does(steps, milestones):
    recipe = Recipe(milestones=milestones)
    rates, rate = torch_training.drops(recipe, steps), recipe.learning_rate
    ours = recipe.learning_rates(steps)(np.arange(steps))
    for step, expected in enumerate(np.broadcast_to(ours, (steps,))):
        rate = rates.get(step, rate)
        assert rate == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("changed", [{"warmup": 0.1}, {"optimizer": "adam"}])
def test_other_recipes_are_refused(changed):
    with pytest.raises(AssertionError):
        torch_training.drops(Recipe(**changed), 10)


@pytest.mark.parametrize("graph", [False, True])
def test_training_follows_the_schedule(graph, monkeypatch):
    """A graph, here a stand-in, trains at the rate that it was captured with."""
    case, used = short(epochs=2), []
    step = torch_steps.TorchStep(case, torch_steps.Form(graph=graph))

    def rate():
        return step._optimiser.param_groups[0]["lr"]

    class Captured:
        def __init__(self):
            self.rate = rate()

        def replay(self):
            used.append(self.rate)
            step._total = torch.zeros(())

    def record():
        step._graph = Captured()

    def eager(images, labels):
        used.append(rate())
        return torch.zeros(())

    monkeypatch.setattr(step, "_capture", record)
    monkeypatch.setattr(step, "_record", record)
    monkeypatch.setattr(step, "_eager", eager)
    pixels = np.zeros((case.size, *case.image), np.uint8)
    split = Split(pixels, np.zeros(case.size, np.int32))
    torch_training.train(
        step, 2, images(split, 0.0, 1.0, shuffle=True), images(split, 0.0, 1.0)
    )
    # The first call is `prepare`'s.
    expected = case.recipe.learning_rates(12)(np.arange(12))
    np.testing.assert_allclose(used[1:], expected, rtol=1e-5)


def test_the_check_sees_another_learning_rate(monkeypatch):
    honest = torch.optim.SGD

    def hasty(params, lr, **options):
        return honest(params, lr=1.01 * lr, **options)

    monkeypatch.setattr(torch.optim, "SGD", hasty)
    monkeypatch.setattr(steps.measure, "show", Console(quiet=True).print)
    assert steps.check(["supervised"]) == 1


@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize("depth", range(2, 11))
def test_plain_networks_have_the_parameters_of_kdjax(depth, classes):
    name, image = f"plain-{depth}", (32, 32, 3)
    network = torch_networks.create(name, classes, image)
    ours = models.shapes(name, classes, image)["params"]
    found = sorted(leaf.numel() for leaf in network.parameters())
    assert found == sorted(leaf.size for leaf in jax.tree.leaves(ours))
    logits, _ = network(torch.zeros(2, 3, 32, 32))
    assert logits.shape == (2, classes)


def test_wide_networks_start_as_those_of_kdjax():
    torch.manual_seed(0)
    theirs = torch_networks.create("wrn-16-2", 100, (32, 32, 3)).state_dict()
    ours = models.init(jax.random.key(0), "wrn-16-2", 100, (32, 32, 3))
    for name, leaf in torch_networks.tensors(ours).items():
        if leaf.numel() < 2000:  # too few for a comparison of deviations
            continue
        np.testing.assert_allclose(theirs[name].std(), leaf.std(), rtol=0.1)
    assert not theirs["head.bias"].any()


def test_guides_are_differentiated_without_no_grad_and_only_then():
    case = tiny(CASES["dgkd"])
    for no_grad in (True, False):
        step = torch_steps.TorchStep(case, no_grad=no_grad)
        before = [
            {k: v.clone() for k, v in guide.state_dict().items()}
            for guide in step.frozen
        ]
        images = np.random.default_rng(0).normal(size=(4, *case.image))
        step(*step.place(images, np.arange(4)))
        for guide, old in zip(step.frozen, before, strict=True):
            assert all((leaf.grad is None) == no_grad for leaf in guide.parameters())
            new = guide.state_dict()
            assert all(torch.equal(new[k], value) for k, value in old.items())


def images(split, mean, std, **options):
    return torch_training.Images(split, (mean,) * 3, (std,) * 3, 4, **options)


def test_images_are_cropped_within_their_reflected_border_and_flipped():
    pixels = np.arange(5 * 6 * 6 * 3, dtype=np.uint8).reshape(5, 6, 6, 3)
    split = Split(pixels, np.arange(5, dtype=np.int32))
    plain = images(split, 0.5, 0.25)
    expected = (pixels[2].transpose(2, 0, 1) / 255 - 0.5) / 0.25
    index = torch.tensor([0, 2])
    np.testing.assert_allclose(plain.images(index)[1], expected, rtol=1e-5, atol=1e-6)
    border = np.pad(expected, ((0, 0), (1, 1), (1, 1)), "symmetric")
    choices = [
        border[:, i : i + 6, j : j + 6][:, :, ::turn]
        for i in range(3)
        for j in range(3)
        for turn in (1, -1)
    ]
    torch.manual_seed(0)
    varied = images(split, 0.5, 0.25, crop=1)
    seen = set()
    for _ in range(200):
        found = varied.images(index)[1].numpy()
        near = [i for i, c in enumerate(choices) if np.allclose(found, c, atol=1e-5)]
        assert near
        seen.add(near[0])
    assert len(seen) == len(choices)


@pytest.mark.parametrize("crop", [0, 1])
def test_batches_are_whole_when_they_train(crop):
    split = Split(np.zeros((10, 4, 4, 3), np.uint8), np.arange(10, dtype=np.int32))
    train = images(split, 0.0, 1.0, crop=crop, shuffle=True)
    test = images(split, 0.0, 1.0)
    assert [(len(x), len(labels)) for x, labels in train] == [(4, 4), (4, 4)]
    assert torch.cat([labels for _, labels in test]).tolist() == list(range(10))


def test_a_step_is_prepared_without_a_trace():
    case = tiny(CASES["ctkd"])
    rng = np.random.default_rng(0)
    batches = [(rng.normal(size=(4, *case.image)), np.arange(4)) for _ in range(3)]
    losses = []
    for prepared in (False, True):
        torch.manual_seed(0)
        step = torch_steps.TorchStep(case, dtype=torch.float64)
        first, *rest = [step.place(*batch) for batch in batches]
        if prepared:
            step.prepare(*first)
        losses.append([step(*batch) for batch in rest])
    assert losses[0] == losses[1]


def test_a_graph_reads_every_batch_where_it_was_captured(monkeypatch):
    """With stand-ins for CUDA's: a replay runs the step on the captured memory."""
    case, form = tiny(CASES["supervised"]), torch_steps.Form(graph=True)
    step = torch_steps.TorchStep(case, form, dtype=torch.float64)

    class Replayed:
        def replay(self):
            step._total = step._eager(*step._batch)

    def capture():
        step._graph = Replayed()

    monkeypatch.setattr(step, "_capture", capture)
    plain = torch_steps.TorchStep(case, dtype=torch.float64)
    for role, network in plain.trained.items():
        network.load_state_dict(step.trained[role].state_dict())
    rng = np.random.default_rng(0)
    batches = [
        step.place(rng.normal(size=(4, *case.image)), np.arange(4)) for _ in range(3)
    ]
    with pytest.raises(AssertionError, match="prepare"):
        step(*batches[0])
    step.prepare(*batches[0])
    assert [step(*batch) for batch in batches] == [plain(*batch) for batch in batches]


@pytest.mark.parametrize("cuda", [True, False])
def test_forms_are_those_of_the_device(cuda, monkeypatch, capsys):
    monkeypatch.setattr(torch_steps, "missing_compiler", lambda: "")
    found = torch_steps.forms(cuda)
    assert any(form.compiled for form in found)
    assert {form.bf16 for form in found} == ({True, False} if cuda else {False})
    assert {form.graph for form in found} == ({True, False} if cuda else {False})
    assert len({form.name for form in found}) == len(found)
    command = ["ctkd", "--epochs=1", "--out=x"]
    for form in found:
        options = torch_training.parser().parse_args([*command, *form.flags])
        assert torch_training.form_of(options) == form
    monkeypatch.setattr(torch_steps, "missing_compiler", lambda: "no g++")
    left = torch_steps.forms(cuda)
    assert left == [form for form in found if not form.compiled]
    assert "no g++" in capsys.readouterr().out


@pytest.mark.skipif(
    importlib.util.find_spec("torchax") is None, reason="torchax is not installed"
)
def test_lifted_networks_are_compared_with_pytorch(monkeypatch):
    small = "benchmarks.foreign:Wide(depth=10)"
    monkeypatch.setattr(foreign, "CASES", {k: tiny(v) for k, v in CASES.items()})
    monkeypatch.setattr(foreign, "BUILT_IN", dict.fromkeys((16, 40), "wrn-10-1"))
    monkeypatch.setattr(foreign, "lifted", lambda depth: small)
    found = foreign.run(1, 1, 1.0, time.perf_counter)
    assert all(ratio["median"] > 0 for ratio in found["ratio"].values())
    assert "kd PyTorch / lifted" in found["ratio"]


def test_an_attention_map_is_that_of_the_loss():
    maps = np.random.default_rng(0).normal(size=(2, 4, 4, 3))
    found = torch_steps.attention(torch.from_numpy(maps).permute(0, 3, 1, 2))
    strength = (maps**2).mean(-1).reshape(2, 16)
    expected = strength / np.linalg.norm(strength, axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("experiment", ["chain", "ctkd", "labels"])
def test_whole_experiments_train_and_report(experiment, tmp_path, monkeypatch, rng):
    def split(count):
        pixels = rng.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
        return Split(pixels, (np.arange(count) % 10).astype(np.int32))

    data = Dataset("tiny", "1", split(130), split(9), 10, (0.5,) * 3, (0.25,) * 3)
    monkeypatch.setattr(torch_training.sources, "load", lambda *a, **k: data)
    out = tmp_path / "stages.json"
    argv = [experiment, "--epochs=1", "--path=plain4/plain3/plain2", f"--out={out}"]
    assert torch_training.main([*argv, "--with-grad"]) == 0
    stages = json.loads(out.read_text())
    roles = {
        "chain": {"plain-4": 1, "plain-3": 1, "plain-2": 1},
        "ctkd": {"expert": 1, "student": 2},
        "labels": {"student": 1},
    }[experiment]
    assert {name: len(found["accuracy"]) for name, found in stages.items()} == roles
    assert all(found["images"] == 128 for found in stages.values())
