"""Terms of the methods that train in phases, each against its formula."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import (
    np_ab,
    np_factor_transfer,
)
from term_cases import (
    EXPERT,
    STUDENT,
    B,
    ce,
    mean,
    outputs,
    terms,
)

from kdjax import methods
from kdjax.runtime.errors import UserError

pytestmark = pytest.mark.usefixtures("x64")


LEVELS = ("stage1_pre", "stage2_pre", "stage3_pre")


def test_ab_prepares_and_then_learns_from_labels():
    own = {level: outputs(7, 3, 2).features[level] for level in LEVELS}
    adapted = {"ab/expert": jax.tree.map(jnp.asarray, own)}
    _, total, _ = terms("ab", adapted=adapted)
    expected = 0.0
    for weight, level in zip((0.25, 0.5, 1), LEVELS, strict=True):
        expected += weight * mean(np_ab, own[level], EXPERT.features[level])
    np.testing.assert_allclose(total, 3e-3 * expected, rtol=1e-9)
    values, total, _ = terms("ab", adapted=adapted, phase=1)
    assert set(values) == {"ce/student"}
    np.testing.assert_allclose(total, ce(STUDENT.logits), rtol=1e-9)


def test_ft_paraphrases_and_then_transfers():
    factor, rebuilt = (outputs(seed, 3, 2).features["stage3"] for seed in (8, 9))
    own = outputs(7, 3, 4).features["stage3"]
    adapted = {
        "ft/expert/paraphraser": (jnp.asarray(factor), jnp.asarray(rebuilt)),
        "ft/expert/translator": jnp.asarray(own),
    }
    _, total, _ = terms("ft", adapted=adapted)
    theirs = EXPERT.features["stage3"]
    np.testing.assert_allclose(total, np.mean((rebuilt - theirs) ** 2), rtol=1e-9)
    _, total, _ = terms("ft", adapted=adapted, phase=1)
    expected = ce(STUDENT.logits) + 200 * mean(np_factor_transfer, own, factor)
    np.testing.assert_allclose(total, expected, rtol=1e-9)


@pytest.mark.parametrize(
    ("options", "oracle"),
    [
        ({"form": "factor"}, {"form": "factor"}),
        ({"form": "factor", "p2": 2.0}, {"form": "factor", "p2": 2}),
        ({"p1": 3.0, "p2": 1.5}, {"p1": 3, "p2": 1.5}),
    ],
)
def test_ft_has_the_forms_of_its_loss(options, oracle):
    own, factor = (outputs(seed, 3, 4).features["stage3"] for seed in (7, 8))
    adapted = {
        "ft/expert/paraphraser": (jnp.asarray(factor), jnp.asarray(factor)),
        "ft/expert/translator": jnp.asarray(own),
    }
    values, _, _ = terms("ft", options, adapted=adapted, phase=1)
    expected = mean(lambda *pair: np_factor_transfer(*pair, **oracle), own, factor)
    np.testing.assert_allclose(values["ft/expert"], expected, rtol=1e-9)


def test_forms_that_are_not_chosen_are_not_hashed():
    """Stages of earlier versions, which had no choice, are found again."""
    for name, chosen in (("ft", "factor"), ("cc", "kernel")):
        assert "form" not in methods.options(methods.create(name, {}))[name]
        method = methods.create(name, {name: {"form": chosen}})
        assert methods.options(method)[name]["form"] == chosen
        with pytest.raises(UserError, match="'other'; choices: "):
            methods.create(name, {name: {"form": "other"}})


def test_fsp_compares_consecutive_levels():
    teacher = outputs(5, 2, 2)
    levels = ("stem", "stage1", "stage2", "stage3")

    def matrix(output, top, bottom):
        a, b = (output.features[n].reshape(B, -1, 2) for n in (top, bottom))
        return np.einsum("bip,biq->bpq", a, b) / a.shape[1]

    expected = sum(
        np.mean((matrix(STUDENT, *pair) - matrix(teacher, *pair)) ** 2)
        for pair in itertools.pairwise(levels)
    )
    _, total, _ = terms("fsp", {"beta": 2.0}, teacher=teacher)
    np.testing.assert_allclose(total, 2 * expected, rtol=1e-9)
    with pytest.raises(UserError, match=r"stage1.*\(2, 2\).*\(3, 3\).*equal widths"):
        terms("fsp")
