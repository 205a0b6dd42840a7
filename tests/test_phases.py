"""Phases, further networks and views in the graph, the plan and the training."""

import dataclasses

import pytest
import tiny

from kdjax import methods
from kdjax.data.sources import SOURCES
from kdjax.experiment.bank_plan import plan, without_bank
from kdjax.experiment.build import make_steps
from kdjax.experiment.config import parse_config
from kdjax.methods import Method
from kdjax.runtime.errors import UserError

RECIPE = {"epochs": 4, "batch_size": 64, "milestones": (0.5,)}


def experiment(**stages):
    wrn = {"model": "wrn-10-1"}
    config = {
        "data": {"name": "digits"},
        "recipe": RECIPE,
        "seeds": 1,
        "stages": {name: {**wrn, **stage} for name, stage in stages.items()},
    }
    return parse_config(config)


def taught(method, *teachers, **options):
    return {"method": method, "teachers": teachers, **options}


def test_a_stage_by_simkd_teaches_and_lends_its_classifier():
    parsed = experiment(
        last=taught("simkd+kd", "reuse"),
        reuse=taught("simkd", "expert", model="resnet-8", simkd={"factor": 4}),
        expert={},
    )
    models = {name: stage.model for name, stage in parsed.stages.items()}
    assert models == {
        "expert": "wrn-10-1",
        "reuse": "simkd-4:resnet-8:wrn-10-1",
        "last": "simkd-2:wrn-10-1:simkd-4:resnet-8:wrn-10-1",
    }
    steps = make_steps(parsed, SOURCES["digits"])
    assert steps["last"].teachers == {"reuse": models["reuse"]}
    assert steps["last"].roles == {"student": models["last"]}


def test_phases_have_their_own_recipes_and_count_as_epochs():
    parsed = experiment(
        expert={},
        student=taught("ft+ab", "expert", ft={"init_epochs": 3}, ab={"init_epochs": 2}),
    )
    stage = parsed.stages["student"]
    assert [recipe.epochs for recipe in stage.recipes] == [3, 2, 4]
    assert [recipe.learning_rate for recipe in stage.recipes] == [0.01, 0.1, 0.1]
    assert [recipe.milestones for recipe in stage.recipes] == [(), (), (0.5,)]
    assert stage.epochs == 9
    assert without_bank(parsed) == 9
    step = make_steps(parsed, SOURCES["digits"])["student"]
    first, second, last = (
        dataclasses.replace(step, phase=phase).trains for phase in range(3)
    )
    paths = {
        ("student", "stem", "kernel"): (False, True, True),
        # As in the published code: it is behind the last stage.
        ("student", "bn", "scale"): (False, False, True),
        ("student", "bn", "mean"): (False, False, True),
        ("student", "head", "kernel"): (False, False, True),
        ("ft/expert/paraphraser", "adapter"): (True, False, False),
        ("ft/expert/translator", "adapter"): (False, False, True),
        ("ab/expert", "adapter"): (False, True, False),
    }
    for path, expected in paths.items():
        assert (first(path), second(path), last(path)) == expected, path


@pytest.mark.parametrize("method", ["sskd", "bss", "kd+bss"])
def test_methods_that_need_the_teacher_bypass_the_bank(method):
    parsed = experiment(
        expert={},
        one=taught("kd", "expert"),
        two=taught("kd", "expert", kd={"alpha": 0.5}),
        other=taught(method, "expert"),
    )
    found = plan(parsed, make_steps(parsed, SOURCES["digits"]), 1437)
    assert found.banked == {"expert": (), "one": ("expert",), "two": ("expert",)} | {
        "other": ()
    }
    assert found.uncacheable == ("other",)


def test_two_parts_cannot_both_change_images_or_network():
    class Mirrored(Method):
        num_views = 2

    views = methods.create("sskd+kd", {})
    assert views.num_views == 4
    both = type(views)({**views.methods, "mirrored": Mirrored()})
    with pytest.raises(UserError, match="sskd and mirrored both make views"):
        assert both.num_views
    two = type(views)(dict.fromkeys("ab", methods.create("simkd", {})))
    assert two.network("resnet-8", ["resnet-8"]).startswith("simkd-2")
    other = methods.create("simkd", {"simkd": {"factor": 4}})
    two = type(views)({**two.methods, "b": other})
    with pytest.raises(UserError, match="two parts change the network"):
        two.network("resnet-8", ["resnet-8"])


@pytest.mark.usefixtures("x64")
def test_the_learning_rate_starts_anew_with_every_phase(tmp_path):
    recipe = tiny.replace(milestones=(0.5,), decay_factor=0.1, epochs=2)
    options = {"level": "stage2", "init_epochs": 2, "init_learning_rate": 0.3}
    prog = tiny.program("ft", {"ft": options}, student="plain-2", recipe=recipe)
    result = tiny.training(prog, tmp_path, recipe=recipe).run()
    rates = [record["learning_rate"] for record in result["history"]]
    assert rates == pytest.approx([0.3, 0.3, 0.05, 0.005])
    losses = [set(record) for record in result["history"]]
    assert all("train/reconstruction/expert" in names for names in losses[:2])
    assert all("train/ft/expert" in names for names in losses[2:])
    assert result["epochs"] == 4
