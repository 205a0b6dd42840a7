"""SSKD's views and terms, and BSS's samples, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import kl, np_select, softened, unit
from term_cases import LABELS, B, C, ce, mean, outputs, terms

from kdjax import methods
from kdjax.methods.bss import attack, base_samples
from kdjax.models import Outputs
from kdjax.runtime.errors import UserError

pytestmark = pytest.mark.usefixtures("x64")


def divergence(temperature, s, t):
    return temperature**2 * kl(softened(t, temperature), softened(s, temperature))


def test_views_are_rotations_next_to_their_image():
    method = methods.create("sskd", {})
    images = np.arange(2 * 3 * 3).reshape(2, 3, 3, 1)
    views = np.asarray(method.make_views(jnp.asarray(images)))
    assert views.shape == (8, 3, 3, 1)
    for i in range(2):
        for turns in range(4):
            expected = np.rot90(images[i], turns)
            np.testing.assert_array_equal(views[4 * i + turns], expected)
    with pytest.raises(UserError, match="sskd: images of 2x3"):
        method.make_views(jnp.zeros((1, 2, 3, 1)))


def test_sskd_learns_what_the_teacher_nearly_knows():
    student, teacher = outputs(0, rows=4 * B), outputs(3, 3, 2, rows=4 * B)
    rng = np.random.default_rng(4)
    heads = {side: rng.normal(size=(4 * B, 5)) for side in ("student", "teacher")}
    adapted = {f"sskd/expert/{s}": jnp.asarray(x) for s, x in heads.items()}
    roles = {"student": student}
    similar = {}
    for side, rows in heads.items():
        rows = unit(rows).reshape(B, 4, 5)
        similar[side] = rows[:, 1:].reshape(3 * B, 5) @ rows[:, 0].T
    source = np.repeat(np.arange(B), 3)

    _, total, _ = terms("sskd", roles=roles, teacher=teacher, adapted=adapted)
    np.testing.assert_allclose(total, ce(similar["teacher"], source), rtol=1e-9)

    options = {"transformed_ratio": 0.5}
    values, total, _ = terms(
        "sskd", options, roles=roles, teacher=teacher, adapted=adapted, phase=1
    )
    own, theirs = (x.logits.reshape(B, 4, C) for x in (student, teacher))
    turned = [x[:, 1:].reshape(3 * B, C) for x in (own, theirs)]

    def selected(s, t, targets, ratio, temperature):
        rows = np.flatnonzero(np_select(t, targets, ratio))
        assert 0 < len(rows) < 3 * B
        pairs = [
            (softened(t[i], temperature), softened(s[i], temperature)) for i in rows
        ]
        return temperature**2 * np.mean([kl(*pair) for pair in pairs])

    expected = [
        0.1 * ce(own[:, 0]),
        0.9
        * 16
        * mean(
            lambda s, t: kl(softened(t, 4), softened(s, 4)), own[:, 0], theirs[:, 0]
        ),
        2.7 * selected(*turned, np.repeat(LABELS, 3), 0.5, 4),
        10 * selected(similar["student"], similar["teacher"], source, 0.75, 0.5),
    ]
    np.testing.assert_allclose(total, sum(expected), rtol=1e-9)
    assert len(values) == 4


def test_base_samples_are_right_and_differ_most():
    labels = jnp.array([0, 1, 2, 0])
    teacher = jnp.array([[2.0, 0, 0], [0, 3.0, 0], [5.0, 0, 0], [2.0, 1.9, 0]])
    student = jnp.array([[2.0, 0, 0], [0, 1.0, 0.9], [0, 0, 1.0], [0, 9.0, 0]])
    for base, order in (("both", [1, 0]), ("teacher", [3, 1])):
        chosen, valid = base_samples(student, teacher, labels, 2, base)
        np.testing.assert_array_equal(chosen, order)
        assert np.all(valid)
    chosen, valid = base_samples(student, teacher, labels, 4, "both")
    np.testing.assert_array_equal(valid, [True, True, False, False])


def plane(x):
    """A linear network of two classes: the gap is the sum of the pixels."""
    return Outputs(jnp.stack([x.sum((1, 2, 3)), jnp.zeros(len(x))], axis=1), {})


def test_the_attack_ends_beyond_the_boundary():
    images = np.array([[0.4, 0.2, 0.1, 0.1], [0.01, 0, 0, 0]]).reshape(2, 2, 2, 1)
    x = images.copy()
    for _ in range(3):
        gap = x.sum((1, 2, 3), keepdims=True)
        # The gradient's length is that of a vector of four ones: 2.
        x = x - np.where(gap >= 0, 0.3 * (gap + 1e-4) / 2, 0)
    target = jnp.array([1, 1])
    found = attack(plane, jnp.asarray(images), target, steps=3, rate=0.3, clip=2.5)
    np.testing.assert_allclose(found, x, rtol=1e-9)
    many = attack(plane, jnp.asarray(images), target, steps=60, rate=0.9, clip=2.5)
    assert np.all(np.argmax(plane(many).logits, axis=1) == 1)
    clipped = attack(plane, jnp.asarray(images), target, steps=1, rate=0.3, clip=0.2)
    assert np.abs(clipped).max() == 0.2


def flat(x):
    """A network without a gradient."""
    return Outputs(jnp.zeros((len(x), 2)) * x.sum(), {})


def test_an_attack_without_a_gradient_leaves_the_image():
    images = jnp.ones((1, 2, 2, 1))
    found = attack(flat, images, jnp.array([1]), steps=2, rate=0.3, clip=2.5)
    np.testing.assert_array_equal(found, images)


def test_targets_are_other_classes_by_the_teachers_probabilities():
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05]))
    method, index = methods.create("bss", {}), jnp.arange(4000)
    every = jnp.broadcast_to(logits, (4000, 4))
    target = np.asarray(method.sample_targets(jax.random.key(0), index, every))
    shares = np.bincount(target, minlength=4) / 4000
    np.testing.assert_allclose(shares, [0, 0.6, 0.3, 0.1], atol=4 * 0.5 / 4000**0.5)
    # From the example's index, not its place in the batch.
    back = method.sample_targets(jax.random.key(0), index[::-1], every)
    np.testing.assert_array_equal(back[::-1], target)


def test_bss_has_two_distillations_and_falling_weights():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(B, 2, 2, 1))
    kernel = rng.normal(size=(4, C))
    teacher = Outputs(10 * np.eye(C)[LABELS], {})

    def call(x):
        return Outputs(x.reshape(len(x), 4) @ kernel, {})

    options = {"samples": 3, "decay_steps": 10, "base": "teacher", "attack_steps": 1}
    student = outputs(0)
    values, total, _ = terms(
        "bss",
        options,
        teacher=teacher,
        step=3,
        images=jnp.asarray(images),
        call_role={"student": lambda x: Outputs(2 * call(x).logits, {})},
        call_teacher={"expert": call},
    )

    def cross(s, t):
        return -(softened(t, 3) * np.log(softened(s, 3))).sum()

    kd = mean(cross, student.logits, teacher.logits)
    np.testing.assert_allclose(values["bss/kd/expert"], kd, rtol=1e-9)
    weights = 1 + 3 * 0.7, 2 * (1 - 0.4)
    expected = ce(student.logits) + weights[0] * kd
    expected += weights[1] * values["bss/samples/expert"]
    np.testing.assert_allclose(total, expected, rtol=1e-9)
    # Of one class alone nobody is right: no sample counts.
    wrong = Outputs(np.roll(teacher.logits, 1, axis=1), {})
    values, _, _ = terms(
        "bss",
        options,
        teacher=wrong,
        images=jnp.asarray(images),
        call_role={"student": call},
        call_teacher={"expert": call},
    )
    assert values["bss/samples/expert"] == 0
