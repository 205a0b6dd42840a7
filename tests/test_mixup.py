"""mixup: blended pairs, one step by hand, devices, the bank, and what it refuses."""

import functools
import inspect
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from kdjax import methods, models
from kdjax.data.sources import SOURCES
from kdjax.data.stream import Batch
from kdjax.experiment.bank_plan import plan, why_uncacheable
from kdjax.experiment.build import make_steps
from kdjax.experiment.config import parse_config
from kdjax.methods.base import Context, cross_entropy
from kdjax.models import Outputs
from kdjax.runtime.errors import UserError
from kdjax.runtime.rng import fold
from kdjax.runtime.signals import Interrupted
from kdjax.train.mixup import check_stored, mix

ALPHA = 0.4
SIZE = 8


@functools.partial(jax.jit, static_argnums=(0,))
def blended(alpha, key, number=0):
    """A batch of images 0, 1, ... and as many classes, after `mix`."""
    rows = jnp.arange(SIZE)
    images = jnp.broadcast_to(rows[:, None, None, None], (SIZE, 2, 3, 1))
    batch = Batch(images.astype(jnp.float32), rows, 10 + rows)
    return mix(batch, alpha, key, num_classes=SIZE, number=number)


def parts(batch):
    """The share and the partners, as the labels tell them."""
    labels = np.asarray(batch.labels)
    others = labels - np.diag(np.diag(labels))
    partners = np.where(others.any(1), others.argmax(1), np.arange(SIZE))
    moved = partners != np.arange(SIZE)
    (share,) = {float(x) for x in np.diag(labels)[moved]}
    return share, partners, moved


@pytest.fixture
def one_device():
    """A mesh: `mix` says how a batch lies over the devices."""
    axis = (jax.sharding.AxisType.Auto,)
    with jax.set_mesh(jax.make_mesh((1,), ("data",), axis, devices=jax.devices()[:1])):
        yield


@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize("seed", range(3))
def test_images_and_labels_are_blended_alike_in_pairs(seed):
    batch = blended(ALPHA, jax.random.key(seed))
    share, partners, moved = parts(batch)
    rows = np.arange(SIZE)
    assert sorted(partners) == [*rows]
    assert moved.any()
    expected = share * np.eye(SIZE) + (1 - share) * np.eye(SIZE)[partners]
    np.testing.assert_allclose(batch.labels, expected, atol=1e-6)
    expected = share * rows + (1 - share) * partners
    for y, x in ((0, 0), (1, 2)):
        np.testing.assert_allclose(batch.images[:, y, x, 0], expected, atol=1e-5)
    np.testing.assert_array_equal(batch.index, 10 + rows)


@pytest.mark.usefixtures("one_device")
def test_the_share_is_the_steps_and_the_partners_are_the_micro_batchs():
    key = jax.random.key(0)
    (share, first, _), (same, second, _) = (
        parts(blended(ALPHA, key, number)) for number in (0, 1)
    )
    assert share == same
    assert (first != second).any()
    other, *_ = parts(blended(ALPHA, jax.random.key(1)))
    assert other != share


@pytest.mark.usefixtures("one_device")
def test_shares_have_the_moments_of_the_beta_distribution():
    alpha = 0.3
    keys = jax.random.split(jax.random.key(0), 2000)
    batch = Batch(jnp.zeros((2, 1)), jnp.arange(2), jnp.arange(2))

    def own(key):  # the first image's share of its own class, unless it has no partner
        return mix(batch, alpha, key, num_classes=2).labels[0, 0]

    shares = np.asarray(jax.jit(jax.vmap(own))(keys))
    shares = shares[shares < 1 - 1e-6]
    np.testing.assert_allclose(shares.mean(), 0.5, atol=0.05)
    variance = 1 / (4 * (2 * alpha + 1))
    np.testing.assert_allclose(shares.var(), variance, rtol=0.1)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_cross_entropy_of_blended_labels_is_that_of_both(smoothing, rng):
    logits, (own, other), share = (
        rng.normal(size=(4, 5)),
        ([0, 1, 2, 3], [1, 1, 4, 0]),
        0.3,
    )
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))

    def ce(labels):
        plain = -log_p[np.arange(4), labels]
        return (1 - smoothing) * plain - smoothing * log_p.mean(1)

    labels = share * np.eye(5)[own] + (1 - share) * np.eye(5)[other]
    context = Context(
        jnp.asarray(labels),
        jnp.arange(4),
        {"student": Outputs(jnp.asarray(logits), {})},
        {},
        {},
        {},
        jnp.int32(0),
        jax.random.key(0),
        label_smoothing=smoothing,
    )
    expected = share * ce(own) + (1 - share) * ce(other)
    np.testing.assert_allclose(cross_entropy(context, "student"), expected, rtol=1e-9)
    half = {"student": Outputs(jnp.asarray(logits, jnp.bfloat16), {})}
    found = jax.eval_shape(
        lambda: cross_entropy(Context(**{**vars(context), "outputs": half}), "student")
    )
    assert found.dtype == jnp.float64


# One step, on networks.


def blended_batches(prog, count, seed=0):
    """The batches of the first steps, blended, and their keys."""
    root = jax.random.key(seed)
    make = jax.jit(lambda batch, key: mix(batch, ALPHA, key, num_classes=tiny.CLASSES))
    for step, batch in enumerate(tiny.batches(prog, count, seed)):
        with jax.set_mesh(prog.mesh):
            blended = make(batch, fold(root, "step", step))
        yield jax.device_get(blended)


@pytest.mark.usefixtures("x64")
def test_a_step_by_kd_blends_for_student_and_teacher_alike():
    recipe = tiny.replace(milestones=(), mixup=ALPHA, label_smoothing=0.1)
    prog = tiny.program("kd", recipe=recipe)
    found, totals = tiny.steps(prog, 2)
    (expert,) = tiny.frozen().values()
    model = models.create(tiny.STUDENT, tiny.CLASSES)

    def loss_of(params, stats, batch):
        out, new = model.apply(
            {"params": params, "batch_stats": stats},
            batch.images,
            True,
            mutable=["batch_stats"],
        )
        teacher = model.apply(expert, batch.images, train=False).logits
        log_p = jax.nn.log_softmax(out.logits)
        targets = 0.9 * batch.labels + 0.1 / tiny.CLASSES
        ce = -jnp.mean(jnp.sum(targets * log_p, axis=1))
        soft = jax.nn.softmax(teacher / 4)
        difference = jnp.log(soft) - jax.nn.log_softmax(out.logits / 4)
        kl = 16 * jnp.mean(jnp.sum(soft * difference, axis=1))
        hit = jnp.take_along_axis(
            batch.labels, jnp.argmax(out.logits, axis=1)[:, None], 1
        )
        return 0.1 * ce + 0.9 * kl, (new["batch_stats"], ce, jnp.mean(hit))

    start = models.init(
        jax.random.key(0), tiny.STUDENT, tiny.CLASSES, tiny.SHAPE, dtype=jnp.float64
    )
    params, stats = start["params"], start["batch_stats"]
    velocity = jax.tree.map(jnp.zeros_like, params)
    grad = jax.jit(jax.grad(loss_of, has_aux=True))
    sums = np.zeros(2)
    for batch in blended_batches(prog, 2):
        grads, (stats, ce, hit) = grad(params, stats, batch)
        sums += ce, hit
        velocity = jax.tree.map(
            lambda v, g, p: 0.9 * v + g + 5e-4 * p, velocity, grads, params
        )
        params = jax.tree.map(lambda p, v: p - 0.05 * v, params, velocity)
    chex.assert_trees_all_close(found.params["student"], params, rtol=1e-9, atol=1e-12)
    chex.assert_trees_all_close(
        found.batch_stats["student"], stats, rtol=1e-9, atol=1e-12
    )
    names = ("ce/student", "accuracy/student")
    np.testing.assert_allclose([totals["sums"][name] for name in names], sums)


RECIPE = tiny.replace(mixup=ALPHA, ema=0.9, clip_norm=1.0, optimizer="adamw")


@functools.cache
def program(devices):
    return tiny.program("kd", recipe=RECIPE, devices=devices, micro_batches=2)


@pytest.mark.usefixtures("x64")
def test_one_device_equals_four():
    one, four = (tiny.steps(program(devices), 2) for devices in (1, 4))
    chex.assert_trees_all_close(one, four, rtol=1e-9, atol=1e-12)


@pytest.mark.usefixtures("x64")
def test_interrupted_equals_uninterrupted(tmp_path):
    whole = tiny.training(program(1), tmp_path / "whole", recipe=RECIPE).run()
    stopped = tiny.InterruptAfter(15, 1)
    with pytest.raises(Interrupted):
        tiny.training(
            program(1), tmp_path / "cut", recipe=RECIPE, interrupt=stopped, every_s=1e9
        ).run()
    resumed = tiny.training(program(1), tmp_path / "cut", recipe=RECIPE).run()
    assert resumed["steps"] == whole["steps"]
    assert resumed["digest"] == whole["digest"]
    losses = [[r["train/loss"] for r in run["history"]] for run in (whole, resumed)]
    assert losses[0] == losses[1]


# What it goes with.


def experiment(method="kd", mixup=ALPHA, **options):
    config = {
        "data": {"name": "digits"},
        "recipe": {"epochs": 2, "batch_size": 64},
        "seeds": 1,
        "stages": {
            "expert": {"model": "wrn-10-1"},
            **{
                name: {
                    "model": "wrn-10-1",
                    "method": method,
                    "teachers": ("expert",) if teachers else (),
                    "recipe": {"mixup": share},
                    **options,
                }
                for name, share, teachers in (
                    ("plain", 0.0, method != "label_smoothing"),
                    ("other", 0.0, method != "label_smoothing"),
                    ("mixed", mixup, method != "label_smoothing"),
                )
            },
        },
    }
    return parse_config(config)


def test_teachers_of_blended_images_run_in_the_step():
    parsed = experiment()
    found = plan(parsed, make_steps(parsed, SOURCES["digits"]), 1437)
    assert found.uncacheable == ("mixed",)
    assert found.banked["plain"] == ("expert",)
    assert found.banked["mixed"] == ()
    reason = why_uncacheable(parsed.stages["mixed"])
    assert "recipe.mixup=0.4" in reason
    assert why_uncacheable(parsed.stages["plain"]) is None
    assert why_uncacheable(experiment(mixup=0.0).stages["mixed"]) is None


def test_stored_targets_are_refused():
    with pytest.raises(UserError, match=r"mixup=0\.4 .* of expert are stored"):
        tiny.program("kd", recipe=tiny.replace(mixup=ALPHA), banked=("expert",))
    check_stored(0.0, ("expert",))
    check_stored(ALPHA, ())


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("dkd", "one label"),
        ("bss", "one label"),
        ("crd", "one label"),
        ("kd+dkd", "one label"),
        ("label_smoothing", "one label"),
        ("sskd", "makes views"),
        ("ctkd", "replays"),
    ],
)
def test_methods_that_cannot_learn_from_blended_images_are_named(method, reason):
    options = {"ctkd": {"ctkd": {"replay": True, "scratch": "wrn-10-1"}}}
    with pytest.raises(UserError, match=reason) as error:
        experiment(method, **options.get(method, {}))
    assert str(error.value).startswith("stage 'mixed': recipe.mixup=0.4 ")
    assert repr(method) in str(error.value)
    assert "\n" not in str(error.value)
    experiment(method, mixup=0.0, **options.get(method, {}))


@pytest.mark.parametrize("name", methods.METHODS)
def test_a_method_that_reads_labels_itself_says_so(name):
    cls = methods.METHODS[name]
    classes = cls.__mro__[: cls.__mro__.index(methods.Method)]
    source = "".join(map(inspect.getsource, classes))
    assert cls.reads_labels == bool(re.search(r"(context|init)\.labels", source))
