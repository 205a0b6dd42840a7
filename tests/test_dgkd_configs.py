"""DGKD's graphs: stages and passes that the bank saves, the paper's chains, tables."""

import dataclasses

import numpy as np
import pytest

from configs import dgkd, dgkd_tables
from kdjax.data.sources import SOURCES
from kdjax.experiment import chains
from kdjax.experiment.bank_plan import plan, without_bank
from kdjax.experiment.build import make_steps
from kdjax.experiment.config import ancestry, parse_config
from kdjax.runtime.errors import UserError


def experiment(arg, config=dgkd):
    return parse_config(config.get_config(arg).to_dict())


def planned(arg, config=dgkd, **bank):
    parsed = experiment(arg, config)
    bank = dataclasses.replace(parsed.bank, **bank)
    parsed = dataclasses.replace(parsed, bank=bank)
    source = SOURCES[parsed.data["name"]]
    return parsed, plan(parsed, make_steps(parsed, source), source.train_size)


@pytest.mark.parametrize(
    ("path", "n"), [("plain4/plain2", 0), ("plain5/plain4/plain3/plain2", 2)]
)
@pytest.mark.parametrize("augment", ["paper", "none"])
def test_each_guide_passes_once_over_each_stream(path, n, augment):
    arg = f"digits,path={path},epochs=4,seeds=2,augment={augment}"
    parsed, found = planned(arg)
    per_stream = 4 * (n + 1) if augment == "paper" else n + 1
    assert found.passes(parsed) == 2 * per_stream
    assert without_bank(parsed) == 2 * 4 * (n + 1) * (n + 2) / 2
    off = planned(arg, use=False)[1]
    assert off.passes(parsed) == without_bank(parsed)
    assert off.size == 0


def test_sizes_are_estimated_and_limited():
    arg = "digits,path=plain5/plain4/plain3/plain2,epochs=4"
    _, found = planned(arg)
    # Two guides are read more than once, the last assistant only by the student.
    assert found.size == 2 * 1437 * 10 * 2 * 4
    assert found.banked["S2"] == ("T5", "A4")
    one = planned(arg, max_gb=1437 * 10 * 2 * 4 / 1e9)[1]
    assert one.banked == {"T5": (), "A4": ("T5",), "A3": ("T5",), "S2": ("T5",)}
    assert one.too_large == ("A4",)


def test_the_chain_of_the_paper():
    stages = experiment("cifar100-plain,method=dgkd_stochastic").stages
    assert [stage.model for stage in stages.values()] == [
        f"plain-{depth}" for depth in (10, 8, 6, 4, 2)
    ]
    assert stages["A6"].teachers == ("T10", "A8")
    assert stages["S2"].teachers == ("T10", "A8", "A6", "A4")
    # Guides are dropped while the last student learns, and only then.
    assert stages["S2"].method.survival == 0.75
    assert stages["A4"].method.survival == stages["A6"].method.survival == 1
    assert stages["S2"].method.alpha == 0.7
    assert stages["S2"].method.temperature == 5
    recipe = stages["S2"].recipe
    assert (recipe.epochs, recipe.nesterov, recipe.weight_decay) == (160, True, 1e-4)
    assert recipe.learning_rates(1000)(999) == recipe.learning_rate
    takd = experiment("cifar100-plain,method=takd").stages
    assert [stage.teachers for stage in takd.values()] == [
        (),
        ("T10",),
        ("A8",),
        ("A6",),
        ("A4",),
    ]


def test_resnets_drop_the_rate_and_normalise():
    parsed = experiment("cifar10-resnet")
    schedule = parsed.stages["S8"].recipe.learning_rates(160)
    np.testing.assert_allclose(
        [schedule(step) for step in (79, 81, 119, 121)], [0.1, 0.01, 0.01, 0.001]
    )
    assert parsed.data["normalise"]
    assert not experiment("cifar100-plain").data["normalise"]


@pytest.mark.parametrize(
    ("arg", "message"),
    [
        ("path=plain10/plain11", "unknown model 'plain-11'"),
        ("path=plain10", "a teacher and a student"),
        ("path=plain4/plain2/plain4", "plain-4 comes twice"),
        ("method=nope", "unknown method 'nope'.*takd"),
        ("method=dgkd_stochastic,survival=0", r"survival 0.0 is outside \(0, 1\]"),
        ("temperature=-1", "temperature -1.0 is not positive"),
        ("lambda=2", "2.0 is outside 0..1"),
        ("augment=some", "unknown augment 'some'"),
        ("survival=much", "'survival=much': not a number"),
    ],
)
def test_bad_arguments_are_refused(arg, message):
    with pytest.raises(UserError, match=message):
        experiment(f"cifar100-plain,{arg}")


def test_stages_of_a_graph_with_all_that_teach_them():
    parsed = experiment("cifar100-plain")
    assert list(ancestry(parsed, ["A6"])) == ["T10", "A8", "A6"]
    assert list(ancestry(parsed, [])) == list(parsed.stages)
    with pytest.raises(UserError, match="unknown stage 'A7'; choices: T10"):
        ancestry(parsed, ["A7"])


@pytest.mark.parametrize("table", dgkd_tables.TABLES)
def test_tables_are_graphs(table):
    stages = experiment(table, dgkd_tables).stages
    student = chains.networks(dgkd.SETTINGS[dgkd_tables.TABLES[table].variant][0])[-1]
    ends = [name for name, stage in stages.items() if stage.model == student]
    # The path from teacher to student without assistants is one stage for both methods.
    expected = {"figure6": 2 * 8 - 1, "figure7": 4, "table4": 6, "table5": 2 * 3 + 1}
    expected |= {"table6-plain": 3, "table6-resnet": 3, "methods": 5, "digits": 5}
    expected |= {"table3": 10, "table7": 9, "table8": 14}
    assert len(ends) == expected.get(table, 3)


def test_ensembles_are_four_networks_trained_alone():
    stages = experiment("table4", dgkd_tables).stages
    equal, falling = stages["ensemble-equal"], stages["ensemble-falling"]
    assert [stages[name].init_index for name in equal.teachers] == [0, 1, 2, 3]
    assert {stages[name].model for name in equal.teachers} == {"plain-10"}
    assert falling.teachers == ("T10", "T8", "T6", "T4")
    for name in (*equal.teachers, *falling.teachers):
        assert stages[name].method_name == "supervised"
