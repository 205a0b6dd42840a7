"""DGKD: the loss against NumPy, whole steps, guides dropped at random."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.test_util import check_grads

from kdjax import losses, methods, models
from kdjax.methods import Context
from kdjax.methods.dgkd import DGKD
from kdjax.models import Outputs
from kdjax.runtime import backend
from kdjax.runtime.errors import UserError
from kdjax.runtime.rng import fold

pytestmark = pytest.mark.usefixtures("x64")

BATCH, CLASSES, GUIDES = 6, 5, 3
LABELS = np.array([0, 3, 4, 1, 2, 2])
RNG = np.random.default_rng(0)
STUDENT = 2 * RNG.normal(size=(BATCH, CLASSES))
TARGETS = 3 * RNG.normal(size=(GUIDES, BATCH, CLASSES))
NAMES = ("teacher", "zeta", "alpha")  # not in the alphabet's order


def softmax(x):
    e = np.exp(x)
    return e / e.sum()


def divergences(tau=5.0):
    """tau^2 KL of every example and guide, `[batch, guides]`."""
    found = np.zeros((BATCH, GUIDES))
    for b in range(BATCH):
        q = softmax(STUDENT[b] / tau)
        for i in range(GUIDES):
            p = softmax(TARGETS[i, b] / tau)
            found[b, i] = tau**2 * sum(p[c] * np.log(p[c] / q[c]) for c in range(5))
    return found


def cross_entropies():
    return np.array([-np.log(softmax(STUDENT[b])[LABELS[b]]) for b in range(BATCH)])


def equation_7(alpha=0.7, keep=1.0, factor=GUIDES, share=1.0, tau=5.0):
    guided = (divergences(tau) * keep).sum(axis=1) * share
    return factor * (1 - alpha) * cross_entropies() + alpha * guided


def context(index=None, key=0, order=slice(None)):
    return Context(
        labels=jnp.asarray(LABELS[order]),
        index=jnp.arange(BATCH)[order] if index is None else index,
        outputs={"student": Outputs(jnp.asarray(STUDENT[order]), {})},
        targets=dict(zip(NAMES, jnp.asarray(TARGETS[:, order]), strict=True)),
        recorded={},
        adapted={},
        step=jnp.int32(0),
        key=jax.random.key(key),
    )


def terms_of(name, order=slice(None), key=0, **options):
    method = methods.create(name, {name: options})
    return method.terms(context(key=key, order=order))


def loss_of(terms):
    """The sum as the step makes it."""
    return sum(
        t.weight * float(jnp.mean(t.value if t.mask is None else t.value * t.mask))
        for t in terms.values()
    )


# The loss.


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_loss_and_method_are_equation_7(alpha):
    expected = equation_7(alpha)
    actual = losses.dgkd(STUDENT, TARGETS, LABELS, alpha=alpha)
    np.testing.assert_allclose(actual, expected, rtol=1e-12)
    np.testing.assert_allclose(
        loss_of(terms_of("dgkd", alpha=alpha)), expected.mean(), rtol=1e-12
    )


def test_released_code():
    terms = terms_of("dgkd", count_guides=False, kl_reduction="mean")
    expected = equation_7(factor=1, share=1 / CLASSES).mean()
    np.testing.assert_allclose(loss_of(terms), expected, rtol=1e-12)


def test_one_guide_is_kd():
    one = losses.dgkd(STUDENT, TARGETS[:1], LABELS, temperature=3.0, alpha=0.2)
    kd = losses.kd(STUDENT, TARGETS[0], temperature=3.0)
    ce = losses.cross_entropy(STUDENT, LABELS)
    np.testing.assert_allclose(one, 0.8 * ce + 0.2 * kd, rtol=1e-12)


@pytest.mark.parametrize("shape", [(GUIDES,), (BATCH, GUIDES)])
def test_dropped_guides_leave_the_cross_entropy_its_weight(shape):
    keep = RNG.integers(0, 2, shape)
    actual = losses.dgkd(STUDENT, TARGETS, LABELS, keep=keep)
    np.testing.assert_allclose(actual, equation_7(keep=keep), rtol=1e-12)
    nothing = losses.dgkd(STUDENT, TARGETS, LABELS, keep=np.zeros(shape))
    np.testing.assert_allclose(nothing, 3 * 0.3 * cross_entropies(), rtol=1e-12)


def test_gradients():
    keep = np.array([1.0, 0.0, 1.0])
    check_grads(
        lambda s: losses.dgkd(s, TARGETS, LABELS, keep=keep), (STUDENT,), 1, ["rev"]
    )
    slope = jax.grad(lambda s: losses.dgkd(s, TARGETS, LABELS, keep=keep).sum())
    expected = np.zeros_like(STUDENT)
    for b in range(BATCH):
        p = softmax(STUDENT[b])
        p[LABELS[b]] -= 1
        expected[b] = 3 * 0.3 * p
        for i in (0, 2):
            soft = softmax(STUDENT[b] / 5) - softmax(TARGETS[i, b] / 5)
            expected[b] += 0.7 * 5 * soft
    np.testing.assert_allclose(slope(STUDENT), expected, rtol=1e-10)


def test_ensembles():
    mean = losses.ensemble_logits(TARGETS, temperature=2.0)
    expected = np.mean([[softmax(r / 2) for r in t] for t in TARGETS], axis=0)
    actual = np.array([softmax(row / 2) for row in mean])
    np.testing.assert_allclose(actual, expected, rtol=1e-12)
    kl = [
        25 * (p * np.log(p / softmax(s / 5))).sum()
        for p, s in zip(
            np.mean([[softmax(r / 5) for r in t] for t in TARGETS], axis=0),
            STUDENT,
            strict=True,
        )
    ]
    ce = 0.3 * cross_entropies().mean()
    np.testing.assert_allclose(
        loss_of(terms_of("ensemble")), ce + 0.7 * np.mean(kl), rtol=1e-12
    )
    total = loss_of(terms_of("ensemble", form="sum"))
    summed = ce + 0.7 * divergences().sum(axis=1).mean()
    np.testing.assert_allclose(total, summed, rtol=1e-12)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"\(6, 5\) and guides \(6, 5\)"):
        losses.dgkd(STUDENT, TARGETS[0], LABELS)
    with pytest.raises(ValueError, match=r"keep \(6,\)"):
        losses.dgkd(STUDENT, TARGETS, LABELS, keep=np.ones(BATCH))
    with pytest.raises(ValueError, match=r"teachers \(6, 5\)"):
        losses.ensemble_logits(STUDENT)


# Guides dropped at random.


def test_masks_multiply_the_divergences_alone_and_logs_are_unmasked():
    terms = terms_of("dgkd", survival=0.5, mask="example", key=1)
    assert list(terms) == ["ce/student", *(f"kd/{name}" for name in NAMES)]
    masks = np.stack([terms[f"kd/{name}"].mask for name in NAMES], axis=1)
    assert 0 < masks.sum() < masks.size
    assert set(np.unique(masks)) == {0, 1}
    assert terms["ce/student"].mask is None
    np.testing.assert_allclose(terms["ce/student"].weight, 3 * 0.3)
    values = np.stack([terms[f"kd/{name}"].value for name in NAMES], axis=1)
    np.testing.assert_allclose(values, divergences(), rtol=1e-12)
    np.testing.assert_allclose(
        loss_of(terms), equation_7(keep=masks).mean(), rtol=1e-12
    )


@pytest.mark.parametrize("mask", ["batch", "example"])
def test_the_methods_sum_is_the_loss_with_its_masks(mask):
    method = methods.create("dgkd", {"dgkd": {"survival": 0.5, "mask": mask}})
    key = fold(jax.random.key(1), "guides")
    keep = method.guide_masks(key, jnp.arange(BATCH), GUIDES)
    assert not np.all(keep)
    loss, _ = methods.weighted_sum(method.terms(context(key=1)), jnp.int32(0))
    expected = jnp.mean(losses.dgkd(STUDENT, TARGETS, LABELS, keep=keep))
    np.testing.assert_allclose(loss, expected, rtol=1e-12)


def test_masks_can_be_sampled_otherwise():
    class FirstOnly(DGKD):
        def guide_masks(self, key, index, num_guides):
            return jnp.arange(num_guides) == 0

    loss = loss_of(FirstOnly().terms(context()))
    keep = np.array([1.0, 0.0, 0.0])
    np.testing.assert_allclose(loss, equation_7(keep=keep).mean(), rtol=1e-12)


@pytest.mark.parametrize("drop", [{"survival": 0.5}, {"drop": "fixed:1"}])
def test_an_examples_mask_comes_from_its_index_not_its_place(drop):
    order = np.array([4, 2, 0, 5, 1, 3])
    one = terms_of("dgkd", mask="example", **drop)
    other = terms_of("dgkd", mask="example", order=order, **drop)
    differ = False
    for name in NAMES:
        mask = np.asarray(one[f"kd/{name}"].mask)
        np.testing.assert_array_equal(other[f"kd/{name}"].mask, mask[order])
        differ |= bool(np.any(mask != mask[order]))
    assert differ


@pytest.mark.parametrize("mask", ["batch", "example"])
@pytest.mark.parametrize("survival", [0.75, 0.25])
def test_guides_survive_independently_with_their_probability(mask, survival):
    method = methods.create("dgkd", {"dgkd": {"survival": survival, "mask": mask}})
    index = jnp.arange(BATCH)
    sample = jax.jit(jax.vmap(lambda key: method.guide_masks(key, index, GUIDES)))
    kept = sample(jax.random.split(jax.random.key(0), 4000)).reshape(-1, GUIDES)
    # Four standard deviations of 4,000 samples.
    margin = 4 * np.sqrt(survival * (1 - survival) / 4000)
    np.testing.assert_allclose(kept.mean(axis=0), survival, atol=margin)
    covariance = np.cov(np.asarray(kept, float), rowvar=False)
    off = covariance[~np.eye(GUIDES, dtype=bool)]
    np.testing.assert_allclose(off, 0, atol=4 * 0.25 / np.sqrt(4000))


def test_exactly_k_guides_are_dropped():
    method = methods.create("dgkd", {"dgkd": {"drop": "fixed:2", "mask": "batch"}})
    kept = set()
    for seed in range(30):
        mask = method.guide_masks(jax.random.key(seed), jnp.arange(BATCH), GUIDES)
        assert mask.sum() == 1
        kept.add(int(mask.argmax()))
    assert kept == {0, 1, 2}
    with pytest.raises(UserError, match="would drop all 3 guides"):
        terms_of("dgkd", drop="fixed:3")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"survival": 0.0}, r"survival 0.0 is outside \(0, 1\]"),
        ({"survival": 1.5}, r"survival 1.5 is outside \(0, 1\]"),
        ({"temperature": 0.0}, "temperature 0.0 is not positive"),
        ({"alpha": 1.5}, r"dgkd: alpha \(lambda\) 1.5 is outside 0..1"),
        ({"drop": "some"}, "unknown drop.*'some'.*fixed:K"),
        ({"drop": "fixed:1", "survival": 0.5}, "does not use survival"),
        ({"mask": "image"}, "unknown mask.*'image'.*batch, example"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        methods.create("dgkd", {"dgkd": options})


# Whole steps.

GUIDING = {"zeta": "plain-3", "alpha": "plain-2"}


def test_three_steps_equal_a_loop_by_hand():
    """With Nesterov momentum, as PyTorch has it, and guides of two kinds."""
    recipe = tiny.replace(nesterov=True, weight_decay=1e-4, milestones=())
    prog = tiny.program("dgkd", student="plain-2", teachers=GUIDING, recipe=recipe)
    frozen = {
        name: models.init(jax.random.key(i), model, 5, tiny.SHAPE, dtype=jnp.float64)
        for i, (name, model) in enumerate(GUIDING.items())
    }
    start = prog.start(3, frozen)
    params, stats = start.params["student"], start.batch_stats["student"]

    def loss(params, stats, batch):
        model = models.create("plain-2", 5)
        out, new = model.apply(
            {"params": params, "batch_stats": stats},
            batch.images,
            True,
            mutable=["batch_stats"],
        )
        logits = out.logits
        log_p = logits - jax.scipy.special.logsumexp(logits, axis=1, keepdims=True)
        total = -2 * 0.3 * jnp.mean(log_p[jnp.arange(len(logits)), batch.labels])
        q = jax.nn.softmax(logits / 5)
        for name, guide in GUIDING.items():
            teacher = models.create(guide, 5).apply(frozen[name], batch.images, False)
            p = jax.nn.softmax(teacher.logits / 5)
            kl = jnp.sum(p * jnp.log(p / q)) / len(logits)
            total += 0.7 * 25 * kl
        return total, new["batch_stats"]

    slope = jax.jit(jax.grad(loss, has_aux=True))
    velocity = jax.tree.map(jnp.zeros_like, params)
    for batch in tiny.batches(prog, 3, seed=3):
        grads, stats = slope(params, stats, batch)
        grads = jax.tree.map(lambda g, p: g + 1e-4 * p, grads, params)
        velocity = jax.tree.map(lambda v, g: 0.9 * v + g, velocity, grads)
        params = jax.tree.map(
            lambda p, g, v: p - 0.05 * (g + 0.9 * v), params, grads, velocity
        )
    state, totals = tiny.many_steps(prog, 3, [3], frozen)[0]
    chex.assert_trees_all_close(state.params["student"], params, rtol=1e-9, atol=1e-12)
    chex.assert_trees_all_close(state.batch_stats["student"], stats, rtol=1e-9)
    assert {"kd/zeta", "kd/alpha"} < set(totals["sums"])


def test_stacked_teachers_say_what_they_say_in_turn(monkeypatch):
    prog = tiny.program("ensemble", student="plain-2", teachers=("a", "b", "c"))
    step = dataclasses.replace(prog.step, teachers=dict.fromkeys("abc", "plain-2"))
    frozen = tiny.frozen("abc", "plain-2")
    images = jnp.asarray(RNG.normal(size=(4, *tiny.SHAPE)))
    in_turn = jax.jit(step.targets)(frozen, images)
    monkeypatch.setattr(backend, "stack_teachers", lambda: True)
    stacked = jax.jit(lambda f, i: step.targets(f, i))(frozen, images)
    chex.assert_trees_all_close(in_turn, stacked, rtol=1e-10)
    assert np.any(in_turn["a"] != in_turn["b"])
