"""The recipe's label smoothing in every cross-entropy with labels, and in no other."""

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from oracles import softened
from term_cases import PEER, STUDENT, THIRD, B, ce, outputs, terms

from kdjax import methods
from kdjax.methods import Method
from kdjax.models import Outputs
from kdjax.runtime.errors import UserError
from kdjax.train.recipe import Recipe
from kdjax.train.step import Step

pytestmark = pytest.mark.usefixtures("x64")

SMOOTHING = 0.2


def smooth(logits):
    """Of the label 0.8, and 0.2 of all classes alike."""
    return (1 - SMOOTHING) * ce(logits) - SMOOTHING * np.mean(
        [np.log(softened(row)) for row in logits]
    )


GATE = np.random.default_rng(5).normal(size=(B, 2))
SHARES = np.array([softened(row) for row in GATE])
ENSEMBLE = SHARES[:, :1] * STUDENT.logits + SHARES[:, 1:] * PEER.logits
BOTH = {"student": STUDENT, "branch2": PEER}
CASES = {
    "kd": ({}, {}, {"ce/student": STUDENT.logits}),
    "ctkd": (
        {},
        {"roles": {"student": STUDENT, "scratch": PEER}},
        {"ce/student": STUDENT.logits, "ce/scratch": PEER.logits},
    ),
    "dml": (
        {"peers": ("student", "student")},
        {"roles": {"student": STUDENT, "peer1": PEER, "peer2": THIRD}},
        {
            "ce/student": STUDENT.logits,
            "ce/peer1": PEER.logits,
            "ce/peer2": THIRD.logits,
        },
    ),
    "one": (
        {"branches": 2},
        {"roles": BOTH, "adapted": {"one/gate": GATE}},
        {
            "ce/student": STUDENT.logits,
            "ce/branch2": PEER.logits,
            "ce/ensemble": ENSEMBLE,
        },
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_every_cross_entropy_with_labels_is_smoothed(name):
    options, fields, logits = CASES[name]
    plain, *_ = terms(name, options, **fields)
    found, *_ = terms(name, options, **fields, label_smoothing=SMOOTHING)
    assert {key for key in found if key.startswith("ce/")} == logits.keys()
    for key, value in found.items():
        expected = smooth(logits[key]) if key in logits else plain[key]
        np.testing.assert_allclose(value, expected, rtol=1e-9)


def test_sskd_smooths_its_images_labels_and_not_which_image_a_view_is_of():
    student, teacher = outputs(0, rows=4 * B), outputs(3, 3, 2, rows=4 * B)
    rng = np.random.default_rng(4)
    adapted = {
        f"sskd/expert/{side}": jnp.asarray(rng.normal(size=(4 * B, 5)))
        for side in ("student", "teacher")
    }
    common = {"roles": {"student": student}, "teacher": teacher, "adapted": adapted}
    for phase in (0, 1):
        plain, *_ = terms("sskd", **common, phase=phase)
        found, *_ = terms("sskd", **common, phase=phase, label_smoothing=SMOOTHING)
        own = student.logits[::4]
        expected = {**plain, "ce/student": smooth(own)} if phase else plain
        assert found == pytest.approx(expected, rel=1e-9)
    assert smooth(own) != pytest.approx(ce(own), rel=0.01)


def test_two_smoothings_are_refused():
    with pytest.raises(UserError, match=r"recipe\.label_smoothing=0\.2 beside method"):
        terms("label_smoothing", label_smoothing=SMOOTHING)


def test_evaluated_losses_stay_plain(monkeypatch):
    prog = tiny.program(recipe=tiny.replace(label_smoothing=SMOOTHING))
    assert prog.step.label_smoothing == SMOOTHING
    # Not of a network, which need not run: its images are its logits.
    monkeypatch.setattr(Step, "outputs", lambda self, *args: Outputs(args[-1], {}))
    logits = STUDENT.logits[:2, : tiny.CLASSES]
    labels, valid = jnp.array([1, 4]), jnp.ones(2, bool)
    found = prog.step.evaluate(prog.specs[0], jnp.asarray(logits), labels, valid)
    expected = 2 * ce(logits, np.asarray(labels))
    np.testing.assert_allclose(found["loss/student"], expected, rtol=1e-9)


@pytest.mark.parametrize("name", ["label_smoothing", "mixup", "ema"])
def test_phases_do_not_change_what_the_step_takes_of_the_recipe(name):
    with pytest.raises(UserError, match=f"phases cannot change recipe.{name}"):
        Recipe().phases([{"epochs": 3}, {name: 0.1}])


def test_every_methods_phases_go_with_the_recipe():
    for name in methods.METHODS:
        method: Method = methods.create(name, {})
        phases = Recipe(label_smoothing=0.1, ema=0.9).phases(
            phase.recipe for phase in method.phases()
        )
        assert {recipe.label_smoothing for recipe in phases} == {0.1}
