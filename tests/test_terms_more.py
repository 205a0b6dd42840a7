"""Terms of the methods with peers, memory, views or phases, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import (
    np_crd,
    np_mutual,
    np_ofd,
    np_one,
    np_pool,
    softened,
    unit,
)
from term_cases import (
    EXPERT,
    LABELS,
    PEER,
    STUDENT,
    THIRD,
    B,
    C,
    ce,
    mean,
    outputs,
    terms,
)

from kdjax import methods, models
from kdjax.methods import Context, MemoryInit
from kdjax.methods.crd import CRD
from kdjax.models import Outputs
from kdjax.runtime.errors import UserError

pytestmark = pytest.mark.usefixtures("x64")


LEVELS = ("stage1_pre", "stage2_pre", "stage3_pre")


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_dml_is_every_networks_own_loss(reduction):
    networks = {"student": STUDENT, "peer1": PEER, "peer2": THIRD}
    options = {"peers": ("student", "wrn-16-1"), "reduction": reduction, "weight": 2.0}
    values, total, _ = terms("dml", options, roles=networks)
    expected = 0.0
    for role, own in networks.items():
        peers = [p.logits for r, p in networks.items() if r != role]
        divergence = sum(mean(np_mutual, own.logits, peer) for peer in peers)
        np.testing.assert_allclose(values[f"dml/{role}"], divergence, rtol=1e-9)
        scale = 2 if reduction == "sum" else 1
        expected += ce(own.logits) + scale * divergence
    np.testing.assert_allclose(total, expected, rtol=1e-9)


def test_dmls_networks_start_apart_and_move_by_their_own_terms():
    method = methods.create("dml", {"dml": {"peers": ("student", "wrn-10-2")}})
    roles = {"student": "wrn-16-1", "peer1": "wrn-16-1", "peer2": "wrn-10-2"}
    assert method.roles("wrn-16-1") == roles
    assert method.init_indices(4) == {"student": 4, "peer1": 5, "peer2": 6}
    labels = jnp.asarray(LABELS)

    def loss(logits, name):
        seen = {role: Outputs(z, {}) for role, z in logits.items()}
        context = Context(labels, labels, seen, {}, {}, {}, 0, None)
        return jnp.mean(method.terms(context)[name].value)

    logits = {r: jnp.asarray(outputs(i).logits) for i, r in enumerate(roles)}
    for role in roles:
        grads = jax.grad(loss)(logits, f"dml/{role}")
        assert {r for r, g in grads.items() if np.any(g)} == {role}


def test_one_is_branches_and_their_gated_ensemble():
    networks = {"student": STUDENT, "branch2": PEER}
    gate = np.random.default_rng(5).normal(size=(B, 2))
    options = {"branches": 2, "rampup_steps": 10}
    values, total, _ = terms(
        "one", options, roles=networks, step=5, adapted={"one/gate": jnp.asarray(gate)}
    )
    shares = np.array([softened(row) for row in gate])
    ensemble = shares[:, :1] * STUDENT.logits + shares[:, 1:] * PEER.logits
    expected = ce(ensemble)
    for network in networks.values():
        divergence = mean(np_one, network.logits, ensemble)
        expected += ce(network.logits) + np.exp(-5 * 0.25) * divergence
    np.testing.assert_allclose(values["ce/ensemble"], ce(ensemble), rtol=1e-9)
    # The weight is of the step, an int32: a float32.
    np.testing.assert_allclose(total, expected, rtol=1e-6)


def test_ones_branches_share_what_lies_below():
    method = methods.create("one", {"one": {"branches": 2, "trunk": "stage2"}})
    params = {
        role: models.shapes(model, C, (8, 8, 3))["params"]
        for role, model in method.roles("wrn-10-1").items()
    }
    ties = method.ties(params)
    shared = {path[1].split("_")[0] for path in ties}
    assert shared == {"stem", "stage1", "stage2"}
    assert all(owner == ("student", *path[1:]) for path, owner in ties.items())
    # All of these layers, BatchNorm included.
    assert {path[1] for path in ties if path[-1] == "scale"} == {
        "stage1_block1",
        "stage2_block1",
    }


def test_ofd_takes_its_margins_from_the_teachers_batch_norms():
    rng = np.random.default_rng(0)
    name, method = "resnet-8", methods.create("ofd", {"ofd": {"levels": LEVELS}})
    frozen = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape), models.shapes(name, C, (8, 8, 3))
    )
    init = MemoryInit(None, None, C, {}, {}, {"expert": name}, {"expert": frozen})
    for stage, found in enumerate(method.init_memory(init).values(), 1):
        part = frozen["params"][f"stage{stage}_block1"]["layer2"]["bn"]
        for margin, gamma, beta in zip(found, part["scale"], part["bias"], strict=True):
            x = np.linspace(beta - 12 * abs(gamma), 0, 200_001)
            density = np.exp(-(((x - beta) / gamma) ** 2) / 2)
            share = density.sum() * (x[1] - x[0]) / (abs(gamma) * np.sqrt(2 * np.pi))
            expected = -3 * abs(gamma)
            if share > 0.001:
                expected = (x * density).sum() / density.sum()
            np.testing.assert_allclose(margin, expected, rtol=1e-3)


@pytest.mark.parametrize(
    "name", ["wrn-10-1", "resnet-14", "imagenet_resnet-18", "vgg-8", "plain-4"]
)
def test_the_batch_norms_are_those_before_the_levels(name):
    shapes = models.shapes(name, C, (8, 8, 3))
    seen = jax.eval_shape(
        lambda v, x: models.create(name, C).apply(v, x, train=False),
        shapes,
        jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32),
    )
    for level, path in models.norms(name, C).items():
        part = shapes["params"]
        for key in path:
            part = part[key]
        assert part["scale"].shape == seen.features[level].shape[-1:]
    assert {level for level in seen.features if level.endswith("_pre")} == set(
        models.norms(name, C)
    )


def test_ofd_refuses_levels_without_a_known_batch_norm():
    init = MemoryInit(None, None, C, {}, {}, {"t": "mobilenetv2-0.5"}, {"t": {}})
    with pytest.raises(UserError, match=r"ofd: stage1_pre of 'mobilenetv2-0\.5'"):
        methods.create("ofd", {"ofd": {"levels": LEVELS}}).init_memory(init)


def test_ofd_has_its_weights():
    own = {level: outputs(7, 3).features[level] for level in LEVELS}
    margins = {level: np.full(3, -0.5) for level in LEVELS}
    _, total, memory = terms(
        "ofd", adapted={"ofd/expert": own}, memory=jax.tree.map(jnp.asarray, margins)
    )
    expected = ce(STUDENT.logits)
    for weight, level in zip((0.25, 0.5, 1), LEVELS, strict=True):
        for ours, theirs in zip(own[level], EXPERT.features[level], strict=True):
            distance = np_ofd(np_pool(ours, 2, 2), theirs, margins[level])
            expected += weight * distance / B / 1000
    np.testing.assert_allclose(total, expected, rtol=1e-9)
    assert memory.keys() == margins.keys()


@pytest.mark.parametrize("mode", ["exact", "relax"])
def test_crd_scores_with_the_banks_and_moves_them(mode):
    labels = np.array([0, 3, 5, 1, 0, 3, 5, 1, 2, 2])
    options = {"negatives": 5, "dimensions": 7, "mode": mode}
    method = methods.create("crd", {"crd": options})
    target = {"expert": jnp.zeros((2, 3))}
    init = MemoryInit(jax.random.key(1), labels, C, {}, target, {}, {})
    memory = method.init_memory(init)
    banks = {side: np.asarray(bank) for side, bank in memory["banks"].items()}
    for bank in banks.values():
        assert bank.shape == (10, 7)
        assert 0.9 < np.abs(bank).max() * np.sqrt(7 / 3) <= 1
    rng = np.random.default_rng(2)
    own = {side: unit(rng.normal(size=(B, 7))) for side in ("student", "teacher")}
    adapted = {"crd/expert": jax.tree.map(jnp.asarray, own)}
    drawn = []
    real = methods.crd.losses.crd_scores

    def spy(anchor, bank, index, **options):
        drawn.append(np.asarray(index))
        return real(anchor, bank, index, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(methods.crd.losses, "crd_scores", spy)
        values, total, moved = terms("crd", options, adapted=adapted, memory=memory)
        later = terms("crd", options, adapted=adapted, memory=moved)[0]
    index = drawn[0]
    np.testing.assert_array_equal(index[:, 0], np.arange(B))
    assert np.all(index[:, 1:] != index[:, :1])
    if mode == "exact":
        assert np.all(labels[index[:, 1:]] != labels[index[:, :1]])

    def expected(banks, constants=None):
        loss, found = 0.0, {}
        for side, other in (("student", "teacher"), ("teacher", "student")):
            out = np.exp(np.einsum("bd,bkd->bk", own[side], banks[other][index]) / 0.07)
            found[side] = constants[side] if constants else out.mean() * 10
            loss += np.mean([np_crd(row / found[side], 10) for row in out])
        return loss, found

    loss, constants = expected(banks)
    np.testing.assert_allclose(values["crd/expert"], loss, rtol=1e-8)
    np.testing.assert_allclose(total, ce(STUDENT.logits) + 0.8 * loss, rtol=1e-8)
    new = {side: bank.copy() for side, bank in banks.items()}
    for side in new:
        new[side][:B] = unit(0.5 * banks[side][:B] + 0.5 * own[side])
        np.testing.assert_allclose(moved["banks"][side], new[side], rtol=1e-12)
    # The first batch's constants stay.
    np.testing.assert_allclose(
        later["crd/expert"], expected(new, constants)[0], rtol=1e-8
    )


def test_crd_takes_negatives_that_are_sampled_otherwise():
    class Next(CRD):
        def sample_negatives(self, key, index, labels, memory):
            return (index[:, None] + jnp.arange(1, 3)[None]) % len(
                memory["banks"]["student"]
            )

    rng = np.random.default_rng(2)
    unit_rows = {side: unit(rng.normal(size=(B, 7))) for side in ("student", "teacher")}
    memory = {
        "banks": {side: unit(rng.normal(size=(6, 7))) for side in unit_rows},
        "log_partition": dict.fromkeys(unit_rows, jnp.zeros(())),
        "started": jnp.array(True),
    }
    context = Context(
        labels=jnp.asarray(LABELS),
        index=jnp.arange(B),
        outputs={"student": jax.tree.map(jnp.asarray, STUDENT)},
        targets={"expert": jnp.zeros((B, 3))},
        recorded={},
        adapted={"crd/expert": jax.tree.map(jnp.asarray, unit_rows)},
        step=jnp.int32(0),
        key=jax.random.key(0),
        memory=jax.tree.map(jnp.asarray, memory),
    )
    index = (np.arange(B)[:, None] + np.arange(3)) % 6
    expected = 0.0
    for side, other in (("student", "teacher"), ("teacher", "student")):
        bank = memory["banks"][other][index]
        scores = np.exp(np.einsum("bd,bkd->bk", unit_rows[side], bank) / 0.07)
        expected += np.array([np_crd(row, 6) for row in scores])
    value = Next(mode="relax").terms(context)["crd/expert"].value
    np.testing.assert_allclose(value, expected, rtol=1e-8)
