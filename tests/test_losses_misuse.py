"""What a caller of the losses between logits gets wrong; what the package imports."""

import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import loss_cases
import numpy as np
import pytest
from loss_cases import KD, MAPS, PAIRS, RELATIONS, SEVERAL, B, C, dkd, nkd

from kdjax import losses

CASES = [
    case
    for case in PAIRS + SEVERAL + MAPS
    if case.name != "standardised_kd"  # which looks at either side first
]


@loss_cases.each(CASES)
def test_shapes_are_never_broadcast(case):
    loss_cases.check_shapes(case, loss_cases.other_shapes(case))


def test_equal_shapes_of_another_rank_are_refused():
    for case in CASES + RELATIONS:
        vector = jnp.ones(C)
        with pytest.raises(ValueError, match=r"batch, "):
            case.call(vector, vector)
    with pytest.raises(ValueError, match=r"features \(3, 5\)"):
        losses.attention_map(jnp.ones((B, C)))
    with pytest.raises(ValueError, match=r"logits \(5,\) must be \[batch, classes\]"):
        losses.standardise_logits(jnp.ones(C))


@pytest.mark.parametrize("shape", [(), (1,), (B, 1), (B, C), (B + 1,)])
def test_labels_must_fit(shape):
    logits, labels = jnp.ones((B, C)), jnp.zeros(shape, int)
    with pytest.raises(ValueError, match="must be") as error:
        losses.cross_entropy(logits, labels)
    told = loss_cases.assert_both_shapes_are_told
    told(error, ("logits", logits), ("labels", labels))
    with pytest.raises(ValueError, match="must be") as error:
        losses.dkd(logits, logits, labels)
    told(error, ("student", logits), ("labels", labels))
    with pytest.raises(ValueError, match="must be") as error:
        losses.nkd(logits, logits, labels)
    told(error, ("student", logits), ("labels", labels))


def test_labels_must_be_integers():
    with pytest.raises(ValueError, match="integers, not float32"):
        losses.cross_entropy(jnp.ones((B, C)), jnp.zeros(B))
    with pytest.raises(ValueError, match="integers, not float32"):
        losses.dkd(jnp.ones((B, C)), jnp.ones((B, C)), jnp.zeros(B))
    with pytest.raises(ValueError, match="integers, not float32"):
        losses.nkd(jnp.ones((B, C)), jnp.ones((B, C)), jnp.zeros(B))


@pytest.mark.parametrize("bad", [-0.1, 1.5, float("nan")])
def test_label_smoothing_must_be_a_share(bad):
    with pytest.raises(ValueError, match=rf"label_smoothing .* not {bad}"):
        losses.cross_entropy(jnp.ones((B, C)), jnp.zeros(B, int), label_smoothing=bad)


@pytest.mark.parametrize("loss", [dkd, nkd])
def test_a_label_and_others_want_two_classes(loss):
    with pytest.raises(ValueError, match=r"student \(3, 1\) must have two classes"):
        loss(jnp.ones((B, 1)), jnp.ones((B, 1)))


@pytest.mark.parametrize("loss", [losses.ttm, losses.wttm])
@pytest.mark.parametrize("bad", [0, -1.0, float("nan"), float("inf")])
def test_the_power_must_be_positive(loss, bad):
    with pytest.raises(ValueError, match=rf"power .* greater than 0, not {bad}"):
        loss(*KD.inputs(np.float32), power=bad)


@pytest.mark.parametrize(
    "loss", [losses.kd, losses.soft_cross_entropy, losses.dist, losses.one, dkd, nkd]
)
@pytest.mark.parametrize("bad", [0, -1.0, float("nan"), float("inf")])
def test_temperature_must_be_positive(loss, bad):
    with pytest.raises(ValueError, match=rf"temperature .* greater than 0, not {bad}"):
        loss(*KD.inputs(np.float32), temperature=bad)


def test_temperature_must_be_a_scalar():
    with pytest.raises(ValueError, match="temperature must be a finite number"):
        losses.kd(*KD.inputs(np.float32), temperature=jnp.ones((B, 1)))


def test_options_are_keywords():
    for loss in (
        *(losses.kd, losses.soft_cross_entropy, losses.attention_transfer),
        *(losses.dist, losses.mutual, losses.one, losses.correlation, losses.pkt),
        *(losses.ttm, losses.wttm),
    ):
        with pytest.raises(TypeError, match="positional"):
            loss(*KD.inputs(np.float32), 2.0)


def test_import_needs_jax_and_optax_only():
    program = """
import sys
import jax, optax
before = set(sys.modules)
import kdjax.losses
print(*sorted(set(sys.modules) - before))
print(*sorted(sys.modules))
"""
    added, every = (
        line.split()
        for line in subprocess.run(
            [sys.executable, "-c", program],
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
    )
    ours = [name for name in added if name.split(".")[0] == "kdjax"]
    assert "kdjax.losses.logits" in ours
    strangers = {name.split(".")[0] for name in added} - sys.stdlib_module_names
    assert strangers <= {"kdjax", "jax", "optax"}
    packages = {name.split(".")[0] for name in every}
    assert not packages & {
        *("flax", "orbax", "tensorflow", "tensorflow_datasets", "ml_collections"),
        *("sklearn", "scipy", "matplotlib", "grain", "PIL", "tensorboardX"),
    }
    siblings = {name.split(".")[1] for name in ours if "." in name}
    assert not siblings & {"models", "methods", "data", "analysis", "interop"}


def test_everything_exported_is_there():
    assert all(callable(getattr(losses, name)) for name in losses.__all__)
    assert sorted(losses.__all__) == losses.__all__
