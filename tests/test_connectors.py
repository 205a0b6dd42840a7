"""Connectors, paraphraser, translator and projector: shapes, without computing."""

import jax
import jax.numpy as jnp
import pytest

from kdjax.methods.connectors import (
    BoundaryConnector,
    OverhaulConnector,
    Paraphraser,
    Translator,
)
from kdjax.models.simkd import Projector
from kdjax.runtime.errors import UserError

MAP = jnp.ones((2, 8, 6, 4))


def shapes(module, *args):
    """Of the result, and of the convolutions' kernels in order."""
    found, variables = jax.eval_shape(
        lambda key: module.init_with_output(key, MAP, *args), jax.random.key(0)
    )
    params = variables.get("params", {})
    kernels = {
        name: part["kernel"].shape for name, part in params.items() if "kernel" in part
    }
    return jax.tree.map(lambda leaf: leaf.shape, found), kernels, params


@pytest.mark.parametrize(
    ("teacher", "kernel"),
    [
        ((8, 6, 5), (1, 1, 4, 5)),
        ((4, 3, 4), (3, 3, 4, 4)),
        ((16, 12, 4), (4, 4, 4, 4)),
        ((7, 4, 5), (2, 3, 4, 5)),
    ],
)
def test_boundary_connectors_give_the_teachers_shape(teacher, kernel):
    found, kernels, params = shapes(BoundaryConnector(teacher), True)
    assert found == (2, *teacher)
    assert list(kernels.values()) == [kernel]
    assert params["bn"]["scale"].shape == teacher[2:]


def test_a_boundary_connector_passes_on_what_fits():
    found, _, params = shapes(BoundaryConnector((8, 6, 4)), True)
    assert found == MAP.shape
    assert not params
    assert BoundaryConnector((8, 6, 4)).apply({}, MAP, True) is MAP


def test_a_boundary_connector_that_cannot_fit_names_the_shapes():
    with pytest.raises(UserError, match=r"ab: .*\(8, 6\).*\(9, 6\); choices: half"):
        shapes(BoundaryConnector((9, 6, 4)), True)


def test_overhaul_connectors_change_the_width_alone():
    found, kernels, params = shapes(OverhaulConnector(7), True)
    assert found == (2, 8, 6, 7)
    assert kernels == {"conv": (1, 1, 4, 7)}
    assert set(params) == {"conv", "bn"}
    assert set(params["conv"]) == {"kernel"}


def test_the_paraphraser_has_half_the_width_in_its_middle():
    (factor, reconstruction), kernels, params = shapes(Paraphraser())
    assert factor == (2, 8, 6, 2)
    assert reconstruction == MAP.shape
    widths = {name: kernel[2:] for name, kernel in kernels.items()}
    assert widths == {
        "encode1": (4, 4),
        "encode2": (4, 2),
        "encode3": (2, 2),
        "decode1": (2, 2),
        "decode2": (2, 4),
        "decode3": (4, 4),
    }
    assert {kernel[:2] for kernel in kernels.values()} == {(3, 3)}
    assert all("bias" in part for part in params.values())


def test_the_translator_comes_to_the_factors_width():
    found, kernels, params = shapes(Translator(6), True)
    assert found == (2, 8, 6, 6)
    assert list(kernels.values()) == [(3, 3, 4, 4), (3, 3, 4, 6), (3, 3, 6, 6)]
    assert {"bn1", "bn2", "bn3"} < set(params)


def test_the_projector_is_narrow_in_its_middle():
    found, kernels, params = shapes(Projector(10), True)
    assert found == (2, 8, 6, 10)
    assert kernels == {
        "conv1": (1, 1, 4, 5),
        "conv2": (3, 3, 5, 5),
        "conv3": (1, 1, 5, 10),
    }
    assert {"bn1", "bn2", "bn3"} < set(params)
    # The last ReLU is there: the teacher's features have seen one, too.
    out, _ = Projector(10).init_with_output(jax.random.key(0), MAP * 0 - 1, True)
    assert jnp.all(out >= 0)
