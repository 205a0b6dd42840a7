"""Optimisers and learning rates as the papers' code has them, and checked settings."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kdjax.runtime.errors import UserError
from kdjax.runtime.settings import build
from kdjax.train.recipe import Recipe

STEPS = 4  # the rate drops at step 2, the third


def torch_sgd(params, gradients, rates, recipe):
    """torch.optim.SGD without dampening."""
    velocity = None
    for gradient, rate in zip(gradients, rates, strict=True):
        gradient = gradient + recipe.weight_decay * params
        if recipe.momentum:
            # The first gradient starts the momentum whole.
            old = gradient if velocity is None else None
            velocity = recipe.momentum * velocity + gradient if old is None else old
            ahead = gradient + recipe.momentum * velocity
            gradient = ahead if recipe.nesterov else velocity
        params = params - rate * gradient
    return params


def torch_adam(params, gradients, rates, recipe):
    """torch.optim.Adam: weight decay goes through the moments (it is not AdamW)."""
    first = second = 0.0
    for t, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), 1):
        gradient = gradient + recipe.weight_decay * params
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        root = np.sqrt(second / (1 - 0.999**t)) + 1e-8
        params = params - rate * (first / (1 - 0.9**t)) / root
    return params


RECIPES = {
    "momentum": Recipe(),
    "nesterov": Recipe(nesterov=True),
    "plain": Recipe(momentum=0.0),
    "no decay": Recipe(weight_decay=0.0),
    "adam": Recipe(optimizer="adam", learning_rate=0.01),
    "adam, no decay": Recipe(optimizer="adam", learning_rate=0.01, weight_decay=0.0),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("name", RECIPES)
def test_steps_are_pytorchs_on_every_parameter(name, steps, rng):
    recipe = dataclasses.replace(RECIPES[name], milestones=(0.5,), decay_factor=0.2)
    shapes = {"conv": {"kernel": (3, 3, 2, 4)}, "bn": {"scale": (4,), "bias": (4,)}}

    def draw():
        return jax.tree.map(
            lambda shape: rng.normal(size=shape),
            shapes,
            is_leaf=lambda s: type(s) is tuple,
        )

    start, gradients = draw(), [draw() for _ in range(steps)]

    tx = recipe.optimiser(STEPS)
    params = jax.tree.map(jnp.asarray, start)
    state = tx.init(params)
    for gradient in gradients:
        updates, state = tx.update(gradient, state, params)
        params = optax.apply_updates(params, updates)

    rule = torch_adam if recipe.optimizer == "adam" else torch_sgd
    rate = recipe.learning_rate
    rates = [rate, rate, 0.2 * rate][:steps]

    def compare(found, first, *gradients):
        expected = rule(first, gradients, rates, recipe)
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)

    jax.tree.map(compare, params, start, *gradients)


@pytest.mark.parametrize("steps_per_epoch", [390, 391, 7, 1])
@pytest.mark.parametrize(
    ("epochs", "drops"),
    # 29 / 100 * 100 is less than 29 in floating point.
    [(200, (60, 120, 160)), (240, (150, 180, 210)), (100, (29, 58))],
)
def test_the_rate_drops_exactly_at_its_epochs(epochs, drops, steps_per_epoch):
    recipe = Recipe(
        epochs=epochs,
        learning_rate=0.1,
        milestones=tuple(drop / epochs for drop in drops),
        decay_factor=0.2,
    )
    schedule = recipe.schedule(epochs * steps_per_epoch)

    rate = 0.1
    np.testing.assert_allclose(schedule(0), rate, rtol=1e-6)
    for drop in drops:
        step = drop * steps_per_epoch
        np.testing.assert_allclose(schedule(step - 1), rate, rtol=1e-6)
        rate *= 0.2
        np.testing.assert_allclose(schedule(step), rate, rtol=1e-6)
        np.testing.assert_allclose(schedule(step + 1), rate, rtol=1e-6)
    np.testing.assert_allclose(schedule(epochs * steps_per_epoch), rate, rtol=1e-6)


def test_the_defaults_are_the_ctkd_papers():
    recipe = Recipe()

    drops = [round(milestone * recipe.epochs) for milestone in recipe.milestones]
    assert (recipe.epochs, recipe.batch_size, drops) == (200, 128, [60, 120, 160])
    assert (recipe.optimizer, recipe.momentum, recipe.nesterov) == ("sgd", 0.9, False)
    assert (recipe.learning_rate, recipe.decay_factor) == (0.1, 0.2)
    assert recipe.weight_decay == 5e-4


def test_two_milestones_at_one_step_both_count():
    schedule = Recipe(
        learning_rate=1.0, milestones=(0.5, 0.55), decay_factor=0.1
    ).schedule(4)

    rates = [float(schedule(step)) for step in range(4)]
    np.testing.assert_allclose(rates, [1, 1, 0.01, 0.01], rtol=1e-6)


def test_without_milestones_the_rate_stays():
    schedule = Recipe(learning_rate=0.3, milestones=()).schedule(10)

    np.testing.assert_allclose([schedule(0), schedule(9)], 0.3, rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"optimizer": "lamb"}, "'lamb'; choices: sgd, adam"),
        ({"epochs": 0}, "epochs=0"),
        ({"epochs": -3}, "epochs=-3"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"learning_rate": 0.0}, r"learning_rate=0\.0"),
        ({"learning_rate": float("nan")}, "learning_rate=nan"),
        ({"decay_factor": -0.1}, r"decay_factor=-0\.1"),
        ({"momentum": -0.9}, r"momentum=-0\.9"),
        ({"weight_decay": -5e-4}, r"weight_decay=-0\.0005"),
        ({"weight_decay": float("nan")}, "weight_decay=nan"),
        ({"milestones": (0.3, 60.0)}, r"milestone 60\.0"),
        ({"milestones": (-0.1,)}, r"milestone -0\.1"),
    ],
)
def test_impossible_values_are_told(settings, named):
    with pytest.raises(UserError, match=named):
        Recipe(**settings)


@dataclasses.dataclass(frozen=True)
class Settings:
    count: int = 1
    rate: float = 0.5
    name: str = "a"
    on: bool = False
    levels: tuple[str, ...] = ("stage1",)
    points: tuple[float, ...] = ()
    other: str | None = None


def test_settings_become_a_dataclass():
    found = build(Settings, "thing", {"count": 3, "name": "b", "on": True})

    assert found == Settings(count=3, name="b", on=True)
    assert build(Settings, "thing", {}) == Settings()
    assert build(Settings, "thing", {"other": "x"}).other == "x"


def test_an_int_stands_for_a_float_and_a_list_for_a_tuple():
    settings = {"rate": 2, "levels": ["stage1", "stage3"], "points": [0.5]}

    found = build(Settings, "thing", settings)

    assert found == Settings(rate=2.0, levels=("stage1", "stage3"), points=(0.5,))
    assert type(found.rate) is float
    milestones = build(Recipe, "recipe", {"milestones": [0, 1]}).milestones
    assert milestones == (0.0, 1.0)
    assert {type(milestone) for milestone in milestones} == {float}


def test_an_unknown_setting_is_told_with_the_choices():
    with pytest.raises(UserError) as error:
        build(Settings, "thing", {"colour": 1})

    assert str(error.value) == (
        "unknown option of thing 'colour'; choices: count, rate, name, on, levels, "
        "points, other"
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"count": 1.5}, "thing.count=1.5 is not of type int"),
        ({"count": True}, "thing.count=True is not of type int"),
        ({"count": "3"}, "thing.count='3' is not of type int"),
        ({"rate": "fast"}, "thing.rate='fast' is not of type float"),
        ({"rate": True}, "thing.rate=True is not of type float"),
        ({"rate": None}, "thing.rate=None is not of type float"),
        ({"on": 1}, "thing.on=1 is not of type bool"),
        ({"name": 7}, "thing.name=7 is not of type str"),
        ({"levels": "stage1"}, "thing.levels='stage1' is not of type tuple"),
        ({"levels": ["a", 2]}, "thing.levels[1]=2 is not of type str"),
    ],
)
def test_a_value_of_another_type_is_told(settings, message):
    with pytest.raises(UserError) as error:
        build(Settings, "thing", settings)

    assert str(error.value) == message


def test_milestones_that_are_no_numbers_are_told():
    with pytest.raises(UserError, match=r"recipe.milestones\[0\]='half'"):
        build(Recipe, "recipe", {"milestones": ["half"]})
