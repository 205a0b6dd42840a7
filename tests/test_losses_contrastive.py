"""CRD's scores, loss, bank and negatives; SSKD's similarities, selection and terms."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from loss_cases import B
from oracles import kl, np_crd, np_select, softened, unit

from kdjax import losses

D, N, K = 4, 10, 6  # dimensions, size of the bank, negatives
INDEX = np.array([[7, 0, 1, 2, 3, 3, 9], [0, 1, 1, 2, 5, 6, 8], [4, 9, 8, 7, 6, 5, 0]])


def embedded(seed=0):
    random = np.random.default_rng(seed)
    return unit(random.normal(size=(B, D))), unit(random.normal(size=(N, D)))


def test_crd_equals_numpy():
    anchor, bank = embedded()
    for temperature in (0.07, 1.0):
        out = [
            [np.exp(anchor[b] @ bank[i] / temperature) for i in INDEX[b]]
            for b in range(B)
        ]
        z = np.mean(out) * N
        expected = [np_crd(row, N) for row in out / z]

        def loss(anchor, bank, temperature=temperature):
            scores = losses.crd_scores(anchor, bank, INDEX, temperature=temperature)
            partition = losses.crd_log_partition(scores, num_data=N)
            return losses.crd(scores, num_data=N, log_partition=partition)

        with jax.enable_x64(True):
            call = jax.jit(loss)
            found = call(anchor, bank)
            assert found.shape == (B,)
            np.testing.assert_allclose(found, expected, rtol=1e-11)
            pair = jnp.asarray(anchor), jnp.asarray(bank)
            check_grads(call, pair, 1, ["rev"], atol=1e-5, rtol=1e-5)


def test_crd_by_hand():
    # h = 1 for all, two negatives of four: c = 1/2; -ln 2/3 - 2 ln 1/3 = 3 ln 3 - ln 2.
    sure = jax.jit(partial(losses.crd, num_data=4, eps=0.0))
    found = sure(np.zeros((2, 3)))
    np.testing.assert_allclose(found, [3 * np.log(3) - np.log(2)] * 2, rtol=1e-6)
    # With Z = 2, h = 1/2 = c: every term is ln 2.
    found = sure(np.zeros((1, 3)), log_partition=np.log(2))
    np.testing.assert_allclose(found, [3 * np.log(2)], rtol=1e-6)
    # eps = 1/2: -ln 1/2 - 2 ln (1/2 / 2).
    found = jax.jit(partial(losses.crd, num_data=4, eps=0.5))(np.zeros((1, 3)))
    np.testing.assert_allclose(found, [5 * np.log(2)], rtol=1e-6)
    # exp(0) and exp(ln 3) have the mean 2, of four entries.
    scores = np.log([[1.0, 3.0], [3.0, 1.0]])
    found = losses.crd_log_partition(scores, num_data=4)
    np.testing.assert_allclose(found, np.log(8), rtol=1e-6)


def test_crd_at_extreme_scores():
    scores = np.array([[1e4, -1e4, -1e4], [-1e4, 1e4, 1e4], [0, 0, 0]], np.float32)
    loss = jax.jit(partial(losses.crd, num_data=50_000))
    found = loss(scores)
    # The right order is free but for (c + eps) / c; the wrong one costs its gaps.
    c = 2 / 50_000
    np.testing.assert_allclose(found[0], 2 * np.log1p(1e-7 / c), rtol=1e-3)
    expected = 3e4 + np.log(c) - 2 * np.log(c)
    np.testing.assert_allclose(found[1], expected, rtol=1e-5)
    slope = jax.jit(jax.grad(lambda scores: loss(scores).sum()))(scores)
    np.testing.assert_allclose(slope[1], [-1, 1, 1], rtol=1e-6)
    assert np.isfinite(slope).all()
    half = jnp.zeros((1, 3), jnp.bfloat16)
    assert loss(half).dtype == losses.crd_log_partition(half, num_data=4).dtype
    assert loss(half).dtype == jnp.float32


def test_crd_scores_gather_scalars():
    # Not the [batch, 1 + negatives, dimensions] vectors.
    shapes = jax.make_jaxpr(losses.crd_scores)(*embedded(), INDEX)
    assert f"{B},{K + 1},{D}]" not in str(shapes)
    assert f"{B},{N}]" in str(shapes)


def test_crd_update():
    new, bank = embedded()
    index = np.array([7, 0, 4])
    for momentum in (0.5, 0.9):
        expected = bank.copy()
        for i, row in zip(index, new, strict=True):
            expected[i] = unit(momentum * bank[i] + (1 - momentum) * row)
        update = jax.jit(partial(losses.crd_update, momentum=momentum))
        np.testing.assert_allclose(update(bank, index, new), expected, rtol=1e-5)
    # Opposite vectors leave no direction; the bank keeps its dtype.
    found = losses.crd_update(jnp.ones((2, 2), jnp.bfloat16), [1], -np.ones((1, 2)))
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found.astype(np.float32), [[1, 1], [0, 0]])


DATA = np.array([2, 0, 1, 1, 0, 0, 2, 0])  # the labels of a data set


@pytest.mark.parametrize("mode", ["relax", "exact"])
def test_negatives_are_even_over_what_is_allowed(mode):
    index, count = np.arange(len(DATA)), 4000
    options = {}
    if mode == "exact":
        classes = losses.class_order(DATA, num_classes=4)  # class 3 is empty
        options = {"labels": DATA, "classes": classes}
    draw = partial(losses.draw_negatives, num_data=len(DATA), num_negatives=count)
    drawn = jax.jit(draw)(jax.random.key(0), index, **options)
    assert drawn.shape == (len(DATA), count)
    for i in index:
        allowed = index != i if mode == "relax" else DATA[i] != DATA
        shares = np.bincount(drawn[i], minlength=len(DATA)) / count
        # Four standard deviations of a share of at most 1/4 in 4,000 draws.
        np.testing.assert_allclose(shares, allowed / allowed.sum(), atol=0.028)
        assert (shares[~allowed] == 0).all()
    again = jax.jit(draw)(jax.random.key(0), index, **options)
    np.testing.assert_array_equal(drawn, again)
    other = jax.jit(draw)(jax.random.key(1), index, **options)
    assert (drawn != other).any()


# SSKD.


def test_view_similarities():
    augmented = np.array([[3.0, 4.0], [0.0, -2.0], [0.0, 0.0]])
    normal = np.array([[1.0, 0.0], [0.0, 0.5]])
    found = jax.jit(losses.view_similarities)(augmented, normal)
    np.testing.assert_allclose(found, [[0.6, 0.8], [0, -1], [0, 0]], rtol=1e-6)
    slope = jax.jit(jax.grad(lambda a: losses.view_similarities(a, normal).sum()))(
        augmented
    )
    assert np.abs(slope).max() < 2  # a zero vector has no direction to learn
    with jax.enable_x64(True):
        pair = jnp.asarray(augmented[:2]), jnp.asarray(normal)
        check_grads(jax.jit(losses.view_similarities), pair, 1, ["rev"])


def test_selection_by_hand():
    scores = np.array([[3, 2, 1], [3, 2, 1], [3, 2, 1], [3, 2, 1]], np.float32)
    targets = np.array([2, 0, 1, 1])  # ranks 2, 0, 1, 1
    for ratio, expected in (
        (0.0, [0, 1, 0, 0]),
        (0.5, [0, 1, 1, 0]),  # int(3 * 0.5) = 1, the first of equal ranks
        (0.75, [0, 1, 1, 1]),
        (1.0, [1, 1, 1, 1]),
    ):
        found = jax.jit(partial(losses.select_ranked, ratio=ratio))(scores, targets)
        np.testing.assert_array_equal(found, np.array(expected, bool))
    # Of equal scores the first is the best.
    even = np.zeros((2, 3), np.float32)
    found = losses.select_ranked(even, np.array([0, 1]), ratio=0.0)
    np.testing.assert_array_equal(found, [True, False])


@pytest.mark.parametrize("ratio", [0.0, 0.29, 0.75, 1.0])
def test_selection_equals_sorting(ratio):
    random = np.random.default_rng(0)
    select = jax.jit(partial(losses.select_ranked, ratio=ratio))
    for _ in range(5):
        # Few different scores, so that there are ties of both kinds.
        teacher = random.integers(0, 4, (100, 5)).astype(np.float32)
        targets = random.integers(0, 5, 100)
        expected = np_select(teacher, targets, ratio)
        np.testing.assert_array_equal(select(teacher, targets), expected)


@pytest.mark.parametrize("temperature", [4.0, 0.5])
def test_terms_of_the_selected_rows(temperature):
    random = np.random.default_rng(0)
    student, teacher = random.normal(size=(2, 4, 3))
    selected = np.array([True, False, True, True])
    rows = [
        temperature**2 * kl(softened(t, temperature), softened(s, temperature))
        for s, t in zip(student, teacher, strict=True)
    ]
    expected = np.mean([rows[i] for i in (0, 2, 3)])
    loss = partial(losses.selected_kd, temperature=temperature)
    with jax.enable_x64(True):
        call = jax.jit(loss)
        found = call(student, teacher, selected)
        np.testing.assert_allclose(found, expected, rtol=1e-11)
        pair = jnp.asarray(student), jnp.asarray(teacher)
        check_grads(lambda s, t: call(s, t, selected), pair, 1, ["rev"])
    assert call(student, teacher, np.zeros(4, bool)) == 0.0
    slope = jax.jit(jax.grad(loss))(student, teacher, selected)
    np.testing.assert_array_equal(slope[1], np.zeros(3))


# What the caller gets wrong.


def test_shapes_and_numbers_are_checked():
    anchor, bank = embedded()
    for call, told in (
        (lambda: losses.crd_scores(anchor[:, :3], bank, INDEX), r"anchor \(3, 3\)"),
        (lambda: losses.crd_scores(anchor, bank, INDEX[:2]), r"index \(2, 7\)"),
        (lambda: losses.crd_scores(anchor, bank, INDEX[0]), r"index \(7,\)"),
        (lambda: losses.crd_scores(anchor, bank, INDEX / 2), "index must be integers"),
        (lambda: losses.crd_scores(anchor, bank, INDEX, temperature=0), "temperature"),
        (lambda: losses.crd(anchor[0], num_data=N), r"scores \(4,\)"),
        (lambda: losses.crd(anchor[:, :1], num_data=N), "one negative or more"),
        (lambda: losses.crd(anchor, num_data=0), "num_data must be 1 or more, not 0"),
        (lambda: losses.crd(anchor, num_data=N, eps=-1.0), "eps .* not -1.0"),
        (lambda: losses.crd_update(bank, INDEX[0], anchor), r"index \(7,\)"),
        (lambda: losses.crd_update(bank, INDEX[:, 0], anchor[0]), "embedding"),
        (lambda: losses.class_order(INDEX, num_classes=2), "labels"),
        (lambda: losses.view_similarities(anchor, bank[:, :2]), r"normal \(10, 2\)"),
        (lambda: losses.select_ranked(anchor, [0, 1], ratio=1.0), r"labels \(2,\)"),
        (lambda: losses.select_ranked(anchor, [0, 1, 2], ratio=2.0), "ratio .* 2.0"),
        (lambda: losses.selected_kd(anchor, anchor, [True]), r"selected \(1,\)"),
        (lambda: losses.selected_kd(anchor, bank, [True]), "must both be"),
    ):
        with pytest.raises(ValueError, match=told):
            call()


def test_options_of_negatives_are_checked():
    draw = partial(losses.draw_negatives, jax.random.key(0), num_negatives=2)
    with pytest.raises(ValueError, match="num_data must be 2 or more, not 1"):
        draw([0], num_data=1)
    with pytest.raises(ValueError, match="given together"):
        draw([0], num_data=4, labels=[1])
    classes = losses.class_order(DATA, num_classes=3)
    with pytest.raises(ValueError, match=r"labels \(2,\)"):
        draw([0], num_data=4, labels=[1, 2], classes=classes)
