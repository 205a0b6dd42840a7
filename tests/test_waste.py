"""The compiled train steps do no more than they must."""

import jax
import jax.numpy as jnp
import pytest
from tiny import BATCH, program

from benchmarks import waste
from kdjax.data.augment import Augment
from kdjax.train.step import Step

OPTIONS = {
    "ctkd": {"scratch": "plain-4", "levels": ("stage1", "stage2")},
    "fitnet": {"level": "stage1"},
}
TEACHERS = {
    "supervised": {},
    "dgkd": {"teacher": "plain-4", "assistant": "plain-3"},
}


def made(name):
    return program(
        name,
        {name: OPTIONS[name]} if name in OPTIONS else None,
        student="plain-2",
        teachers=TEACHERS.get(name, {"expert": "plain-4"}),
        dtype=jnp.float32,
        augment=Augment(),
    )


@pytest.fixture(scope="module")
def least():
    return waste.Least(BATCH)


@pytest.mark.parametrize("name", ["supervised", "kd", "ctkd", "dgkd", "fitnet"])
def test_a_step_takes_its_networks_and_no_more(name, least):
    found = waste.compare(made(name), least)
    assert 0.95 <= found["ratio"] <= waste.LIMIT
    parts = found["least"]
    assert parts.pop("losses") == 0
    assert (parts.pop("adapters") > 0) == (name == "fitnet")
    assert all(flops > 0 for flops in parts.values())
    # Forward and backward: three times the forward pass, less the images' gradient.
    if name == "ctkd":
        assert 2 < parts["scratch"] / parts["expert"] < 4.5


@pytest.mark.parametrize(
    ("name", "options", "parts"),
    [
        # AB reads the teacher in its first phase only.
        ("ab", {"init_epochs": 1}, {"student"}),
        ("ft", {"init_epochs": 1}, {"student", "expert", "adapters"}),
        ("sskd", {"init_epochs": 1}, {"student", "expert", "adapters", "losses"}),
        ("bss", {"attack_steps": 2}, {"student", "expert", "losses"}),
        ("ofd", {}, {"student", "expert", "adapters"}),
        ("crd", {"negatives": 16}, {"student", "expert", "adapters", "losses"}),
    ],
)
def test_phases_views_memory_and_attacks_are_counted(name, options, parts, least):
    prog = program(name, {name: options}, dtype=jnp.float32, augment=Augment())
    found = waste.compare(prog, least)
    assert 0.95 <= found["ratio"] <= waste.LIMIT
    assert {part for part, flops in found["least"].items() if flops} == parts


def test_a_step_that_differentiates_the_teacher_is_caught(least, monkeypatch):
    honest = Step.targets_of

    def wasteful(self, teachers, images):
        def total(teachers):
            targets = [
                self._frozen_network(self.teachers[name], images.shape)(
                    teacher.weights, images
                )
                for name, teacher in teachers.items()
            ]
            return sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(targets))

        gradient = sum(map(jnp.sum, jax.tree.leaves(jax.grad(total)(teachers))))
        read = honest(self, teachers, images)
        return jax.tree.map(lambda leaf: leaf + 1e-9 * gradient, read)

    monkeypatch.setattr(Step, "targets_of", wasteful)
    assert waste.compare(made("kd"), least)["ratio"] > waste.LIMIT
