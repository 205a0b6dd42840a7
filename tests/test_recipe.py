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


def torch_adamw(params, gradients, rates, recipe):
    """torch.optim.AdamW, without decay for biases and scales."""
    decay = recipe.weight_decay if params.ndim > 1 else 0.0
    plain = dataclasses.replace(recipe, weight_decay=0.0)
    for count, rate in enumerate(rates, 1):
        # The moments do not see the parameters: Adam's last step alone moves them.
        before = torch_adam(0.0, gradients[: count - 1], rates[: count - 1], plain)
        moved = torch_adam(0.0, gradients[:count], rates[:count], plain) - before
        params = params - rate * decay * params + moved
    return params


RULES = {"sgd": torch_sgd, "adam": torch_adam, "adamw": torch_adamw}
RECIPES = {
    "momentum": Recipe(),
    "nesterov": Recipe(nesterov=True),
    "plain": Recipe(momentum=0.0),
    "no decay": Recipe(weight_decay=0.0),
    "adam": Recipe(optimizer="adam", learning_rate=0.01),
    "adam, no decay": Recipe(optimizer="adam", learning_rate=0.01, weight_decay=0.0),
    "adamw": Recipe(optimizer="adamw", learning_rate=0.01, weight_decay=0.05),
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

    rule = RULES[recipe.optimizer]
    rate = recipe.learning_rate
    rates = [rate, rate, 0.2 * rate][:steps]

    def compare(found, first, *gradients):
        expected = rule(first, gradients, rates, recipe)
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)

    jax.tree.map(compare, params, start, *gradients)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_every_networks_gradient_is_clipped_by_its_own_norm(optimizer, rng):
    recipe = Recipe(
        optimizer=optimizer, clip_norm=2.0, momentum=0.5, milestones=(), nesterov=False
    )
    # An adapter may have no parameters.
    shapes = {"student": {"w": (3, 4), "b": (4,)}, "scratch": {"w": (2, 2)}, "none": {}}
    start = jax.tree.map(
        lambda shape: rng.normal(size=shape),
        shapes,
        is_leaf=lambda leaf: type(leaf) is tuple,
    )
    gradients = []
    for _ in range(3):
        gradients.append(
            {
                role: {
                    name: size * rng.normal(size=shapes[role][name]) for name in part
                }
                for (role, part), size in zip(
                    shapes.items(), (3.0, 0.1, 0.0), strict=True
                )
            }
        )
    tx, params = recipe.optimiser(3), jax.tree.map(jnp.asarray, start)
    state = tx.init(params)
    for gradient in gradients:
        updates, state = tx.update(gradient, state, params)
        params = optax.apply_updates(params, updates)

    def clipped(gradient):
        norm = np.sqrt(sum(np.sum(leaf**2) for leaf in gradient.values()))
        return {name: leaf * min(1, 2 / norm) for name, leaf in gradient.items()}, norm

    norms = {role: [clipped(g[role])[1] for g in gradients] for role in shapes}
    assert min(norms["student"]) > 2 > max(norms["scratch"])
    for role, parts in shapes.items():
        for name in parts:
            own = [clipped(gradient[role])[0][name] for gradient in gradients]
            rule = RULES[optimizer]
            expected = rule(start[role][name], own, [0.1] * 3, recipe)
            np.testing.assert_allclose(params[role][name], expected, rtol=1e-9)


@pytest.mark.parametrize("warmup", [0.0, 0.25])
def test_the_rate_rises_linearly_and_falls_along_half_a_cosine(warmup):
    steps, rising = 40, round(40 * warmup)
    recipe = Recipe(schedule="cosine", warmup=warmup, learning_rate=0.3)
    rates = [float(recipe.learning_rates(steps)(step)) for step in range(steps)]
    expected = [
        0.3 * step / rising
        if step < rising
        else 0.15 * (1 + np.cos(np.pi * (step - rising) / (steps - rising)))
        for step in range(steps)
    ]
    np.testing.assert_allclose(rates, expected, rtol=1e-5, atol=1e-7)
    assert rates[rising] == pytest.approx(0.3)
    assert rates[-1] > 0


def test_milestones_count_from_the_first_step_of_a_warm_up():
    recipe = Recipe(
        learning_rate=1.0, warmup=0.2, milestones=(0.1, 0.5), decay_factor=0.5
    )
    schedule = recipe.learning_rates(20)
    rates = [float(schedule(step)) for step in (0, 1, 2, 4, 9, 10, 19)]
    np.testing.assert_allclose(rates, [0, 0.25, 0.25, 0.5, 0.5, 0.25, 0.25], rtol=1e-6)


@pytest.mark.parametrize("schedule", ["steps", "cosine"])
def test_a_warm_up_leaves_a_step_however_short_the_run_is(schedule):
    recipe = Recipe(schedule=schedule, warmup=0.9, milestones=())
    assert float(recipe.learning_rates(1)(0)) == pytest.approx(0.1)
    assert float(recipe.learning_rates(2)(1)) == pytest.approx(0.1)


def test_fields_that_were_added_are_hashed_only_where_they_are_changed():
    plain = Recipe().settings()
    assert plain.keys() == {
        *("version", "epochs", "batch_size", "accumulate", "optimizer"),
        *("learning_rate", "momentum", "nesterov", "weight_decay"),
        *("milestones", "decay_factor"),
    }
    changed = {"schedule": "cosine", "warmup": 0.1, "clip_norm": 1.0}
    changed |= {"label_smoothing": 0.1, "mixup": 0.2, "ema": 0.99}
    assert changed.keys() == {*Recipe.ADDED}
    for name, value in changed.items():
        assert Recipe(**{name: value}).settings() == {**plain, name: value}


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
    schedule = recipe.learning_rates(epochs * steps_per_epoch)

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
    ).learning_rates(4)

    rates = [float(schedule(step)) for step in range(4)]
    np.testing.assert_allclose(rates, [1, 1, 0.01, 0.01], rtol=1e-6)


def test_without_milestones_the_rate_stays():
    schedule = Recipe(learning_rate=0.3, milestones=()).learning_rates(10)

    np.testing.assert_allclose([schedule(0), schedule(9)], 0.3, rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"optimizer": "lamb"}, "'lamb'; choices: sgd, adam, adamw"),
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
        ({"schedule": "linear"}, "'linear'; choices: steps, cosine"),
        ({"warmup": 1.0}, r"warmup=1\.0 is outside"),
        ({"warmup": -0.1}, r"warmup=-0\.1 is outside"),
        ({"label_smoothing": 1.0}, r"label_smoothing=1\.0 is outside"),
        ({"clip_norm": -1.0}, r"clip_norm=-1\.0 is negative"),
        ({"clip_norm": float("nan")}, "clip_norm=nan"),
        ({"mixup": -0.2}, r"mixup=-0\.2 is negative"),
        ({"ema": 1.0}, r"ema=1\.0 is outside"),
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
