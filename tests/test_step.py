"""Whole steps against loops written by hand in plain JAX, in float64."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax.traverse_util import flatten_dict

from kdjax import models
from kdjax.methods import Context
from kdjax.methods.ctkd import CTKD
from kdjax.methods.rocket import Rocket
from kdjax.models import Outputs
from kdjax.runtime.errors import UserError
from kdjax.train import networks

pytestmark = pytest.mark.usefixtures("x64")

CTKD_OPTIONS = {"ctkd": {"scratch": "wrn-10-2", "beta": 100.0}}
STUDENT = EXPERT = "wrn-10-1"
NETWORKS = {"student": STUDENT, "teachers": {"expert": EXPERT}}
SEED, STEPS = 3, 3
LABELS = jnp.arange(24) % 5


def by_hand(loss_of, params, stats, batches, recipe):
    """SGD with momentum and coupled weight decay, as PyTorch has it."""
    velocity = jax.tree.map(jnp.zeros_like, params)
    grad = jax.jit(jax.grad(loss_of, has_aux=True))
    for batch in batches:
        grads, stats = grad(params, stats, batch)
        grads = jax.tree.map(lambda g, p: g + recipe.weight_decay * p, grads, params)
        velocity = jax.tree.map(lambda v, g: recipe.momentum * v + g, velocity, grads)
        rate = recipe.learning_rate
        params = jax.tree.map(lambda p, v, rate=rate: p - rate * v, params, velocity)
    return params, stats


def apply(name, params, stats, images):
    out, new = models.create(name, tiny.CLASSES).apply(
        {"params": params, "batch_stats": stats}, images, True, mutable=["batch_stats"]
    )
    return out, new["batch_stats"]


def nll(logits, labels):
    log_p = logits - jax.scipy.special.logsumexp(logits, axis=1, keepdims=True)
    return -jnp.mean(log_p[jnp.arange(len(labels)), labels])


def attention(x):
    q = jnp.mean(x**2, axis=3).reshape(len(x), -1)
    return q / jnp.sqrt(jnp.sum(q**2, axis=1, keepdims=True))


def start_of(name):
    key = jax.random.key(SEED)
    return models.init(key, name, tiny.CLASSES, tiny.SHAPE, dtype=jnp.float64)


@pytest.fixture(scope="module")
def ctkd():
    with jax.enable_x64(True):
        recipe = tiny.replace(milestones=())
        prog = tiny.program("ctkd", CTKD_OPTIONS, recipe=recipe, **NETWORKS)
        return prog, tiny.steps(prog, STEPS, SEED)


def test_ctkd_is_equation_4(ctkd):
    prog, (state, totals) = ctkd
    expert = tiny.frozen(NETWORKS["teachers"])["expert"]
    names = {"student": STUDENT, "scratch": "wrn-10-2"}

    def loss_of(params, stats, batch):
        student, student_stats = apply(
            STUDENT, params["student"], stats["student"], batch.images
        )
        scratch, scratch_stats = apply(
            "wrn-10-2", params["scratch"], stats["scratch"], batch.images
        )
        model = models.create(EXPERT, tiny.CLASSES)
        teacher = model.apply(expert, batch.images, train=False)
        hint = student.logits - jax.lax.stop_gradient(scratch.logits)
        loss = nll(student.logits, batch.labels) + nll(scratch.logits, batch.labels)
        loss += 0.03 * jnp.sum(hint**2) / len(batch.labels)
        for group in ("stage1", "stage2", "stage3"):
            maps = attention(student.features[group])
            loss += 100 * jnp.mean((maps - attention(teacher.features[group])) ** 2)
        return loss, {"student": student_stats, "scratch": scratch_stats}

    start = {role: start_of(name) for role, name in names.items()}
    params, stats = by_hand(
        loss_of,
        {role: part["params"] for role, part in start.items()},
        {role: part["batch_stats"] for role, part in start.items()},
        tiny.batches(prog, STEPS, SEED),
        tiny.RECIPE,
    )
    chex.assert_trees_all_close(state.params, params, rtol=1e-9, atol=1e-12)
    chex.assert_trees_all_close(state.batch_stats, stats, rtol=1e-9, atol=1e-12)
    terms = {"loss", "ce/student", "ce/scratch", "hint/scratch", "at/expert"}
    terms |= {"accuracy/student", "accuracy/scratch"}
    assert set(totals["sums"]) == terms


def test_the_scratch_teacher_learns_as_if_alone(ctkd):
    _, (state, _) = ctkd
    recipe = tiny.replace(milestones=())
    alone = tiny.program("supervised", student="wrn-10-2", recipe=recipe)
    expected, _ = tiny.steps(alone, STEPS, SEED)
    for ours, theirs in (
        (state.params["scratch"], expected.params["student"]),
        (state.batch_stats["scratch"], expected.batch_stats["student"]),
    ):
        chex.assert_trees_all_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_over_a_whole_run_the_scratch_teacher_retraces_the_expert(tmp_path):
    recipe = tiny.replace(epochs=6, learning_rate=0.05)
    expert = tiny.program("supervised", student=tiny.TEACHER, recipe=recipe)
    first = tiny.training(expert, tmp_path / "expert", recipe=recipe, seed=SEED).run()
    options = {"ctkd": {"scratch": tiny.TEACHER}}
    student = tiny.program("ctkd", options, student="tiny-6", recipe=recipe)
    second = tiny.training(student, tmp_path / "student", recipe=recipe, seed=SEED)
    history = second.run()["history"]
    for ours, theirs in zip(history, first["history"], strict=True):
        np.testing.assert_allclose(
            ours["train/ce/scratch"], theirs["train/ce/student"], rtol=1e-7
        )
        assert ours["test/accuracy/scratch"] == theirs["test/accuracy/student"]


def context(roles, targets=None):
    """A context of one batch of made-up outputs, by role."""
    labels = jnp.arange(4) % tiny.CLASSES
    return Context(labels, labels, roles, targets or {}, {}, {}, jnp.int32(0), None)


def outputs(seed):
    keys = jax.random.split(jax.random.key(seed), 4)
    logits = jax.random.normal(keys[0], (4, tiny.CLASSES))
    features = {
        f"stage{i}": jax.random.normal(keys[i], (4, 8 >> i, 8 >> i, 2))
        for i in (1, 2, 3)
    }
    return Outputs(logits, features)


@pytest.mark.parametrize("guided", ["student", "scratch"])
def test_the_hint_moves_the_student_alone_and_attention_whom_it_guides(guided):
    method = CTKD(attention_target=guided)
    networks = {"student": outputs(0), "scratch": outputs(1)}
    method = method.fit(networks, {"expert": outputs(2)})
    targets = {"expert": method.teacher_targets(outputs(2))}

    def term(name, roles):
        return jnp.mean(method.terms(context(roles, targets))[name].value)

    roles = {"student": outputs(0), "scratch": outputs(1)}
    for name, moved in (("hint/scratch", "student"), ("at/expert", guided)):
        grads = jax.grad(lambda roles, name=name: term(name, roles))(roles)
        for role, grad in grads.items():
            size = sum(jnp.sum(jnp.abs(leaf)) for leaf in jax.tree.leaves(grad))
            assert (size > 0) == (role == moved), (name, role)


def test_beta_zero_leaves_the_expert_unread():
    method = CTKD(beta=0.0)
    assert method.teacher_targets(outputs(0)) == ()
    terms = method.terms(context({"student": outputs(0), "scratch": outputs(1)}))
    assert set(terms) == {"ce/student", "ce/scratch", "hint/scratch"}


@pytest.mark.parametrize(
    ("tied", "shared"),
    [
        ("none", set()),
        ("lower", {"stem", "stage1"}),
        ("all", {"stem", "stage1", "stage2", "stage3"}),
    ],
)
def test_rocket_ties_convolutions_and_stores_them_once(tied, shared):
    options = {"rocket": {"scratch": "wrn-16-1", "tied": tied}}
    step = tiny.program("rocket", options, student=STUDENT).step
    key = jax.random.key(0)
    state = step.init(step.start(key), {}, key, LABELS)
    stored = flatten_dict(state.params["student"])
    complete = flatten_dict(step.networks(state)["student"]["params"])
    scratch = flatten_dict(state.params["scratch"])
    tied_paths = complete.keys() - stored.keys()
    assert {path[0].split("_")[0] for path in tied_paths} == shared
    for path in tied_paths:
        assert path[-1] == "kernel"
        assert path[0] != "head"
        np.testing.assert_array_equal(complete[path], scratch[path])
    # BatchNorm stays with each network.
    assert all(path in stored for path in complete if path[-2].startswith("bn"))
    velocity = flatten_dict(state.opt_state[1][0].trace["student"])
    assert velocity.keys() == stored.keys()


def test_double_dagger_starts_from_the_experts_lower_layers():
    options = {"ctkd": {"scratch": "wrn-10-2", "beta": 0.0, "inherit": True}}
    step = tiny.program("ctkd", options, **NETWORKS).step
    key = jax.random.key(SEED)
    (expert,) = tiny.frozen(NETWORKS["teachers"]).values()
    expert = jax.tree.map(lambda leaf: leaf + 0.5, expert)
    state = step.init(step.start(key), {"expert": expert}, key, LABELS)
    for kind, ours in (
        ("params", state.params["student"]),
        ("batch_stats", state.batch_stats["student"]),
    ):
        theirs = flatten_dict(expert[kind])
        own = flatten_dict(start_of(STUDENT)[kind])
        for path, leaf in flatten_dict(ours).items():
            inherited = path[0] == "stem" or path[0].startswith("stage1_")
            expected = theirs if inherited else own
            np.testing.assert_array_equal(leaf, expected[path], str(path))


def test_what_cannot_be_shared_or_inherited_is_refused():
    with pytest.raises(UserError, match=r"stem|stage1.*wrn-10-2.*tied='none'"):
        tiny.program("rocket", {"rocket": {"scratch": "wrn-10-2"}}, student=STUDENT)
    options = {"ctkd": {"scratch": "wrn-10-2", "inherit": True}}
    with pytest.raises(UserError, match="cannot inherit"):
        tiny.program("ctkd", options, **{**NETWORKS, "student": "wrn-16-2"})
    # The layers of plain networks have other names: nothing would be shared.
    plain = {"student": "plain-2", "teachers": {"expert": "plain-4"}}
    for tied in ("lower", "all"):
        options = {"rocket": {"scratch": "plain-4", "tied": tied}}
        with pytest.raises(
            UserError, match=rf"tied='{tied}' shares nothing.*stem\.\.\..*only .*conv1"
        ):
            tiny.program("rocket", options, student="plain-2")
    options = {"ctkd": {"scratch": "plain-4", "inherit": True, "beta": 0.0}}
    with pytest.raises(UserError, match=r"copies nothing.*stem\.\.\..*only .*conv1"):
        tiny.program("ctkd", options, **plain)
    with pytest.raises(UserError, match="'some'; choices: none, lower, all"):
        Rocket(tied="some")


def test_networks_are_traced_for_their_shapes_only_where_a_method_asks(monkeypatch):
    class TracedError(Exception):
        pass

    def trace(*args):
        raise TracedError

    monkeypatch.setattr(networks, "output_shapes", trace)
    tiny.program("kd")
    with pytest.raises(TracedError):
        tiny.program("vid")
