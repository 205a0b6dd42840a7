"""Configs of any method on any pair: kd.py, the benchmark, born-again generations."""

import subprocess
import sys
from pathlib import Path

import pytest

from configs import born_again, cifar100_benchmark, ctkd, dgkd, dgkd_tables, kd
from kdjax import methods
from kdjax.data.sources import SOURCES
from kdjax.experiment import builders
from kdjax.experiment.build import make_steps
from kdjax.experiment.config import parse_config
from kdjax.methods import METHODS
from kdjax.runtime.errors import UserError

ROOT = Path(__file__).parents[1]


def experiment(module, arg):
    return parse_config(module.get_config(arg).to_dict())


@pytest.mark.parametrize("method", METHODS)
def test_any_method_on_the_default_pair(method):
    found = experiment(kd, f"{method},epochs=24")
    student = found.stages["student"]
    assert student.method_name == method
    assert student.recipe.epochs == 24
    assert student.recipe.milestones == (150 / 240, 180 / 240, 210 / 240)
    assert student.recipe.learning_rate == 0.05
    assert set(found.stages) == {"student", *student.teachers}
    for teacher in student.teachers:
        assert found.stages[teacher].model == "resnet-56"


def test_weights_are_those_of_the_authors_scripts():
    """RepDistiller's run_cifar_distill.sh, mdistiller's configs, ReviewKD's script."""

    def hyper(method, pair="teacher=resnet56,student=resnet20"):
        config = kd.get_config(f"{method},{pair}")
        return config.stages.student[method.split("+")[-1]]

    for method, beta in {
        "fitnet": 100,
        "at": 1000,
        "sp": 3000,
        "cc": 0.02,
        "vid": 1,
        "pkt": 30000,
        "ft": 200,
        "nst": 50,
        "crd": 0.8,
        "dkd": 2,
        "reviewkd": 0.6,
    }.items():
        assert hyper(method).beta == beta, method
    assert hyper("kd").alpha == 0.9
    assert hyper("crd+kd").alpha == 1.0
    # RepDistiller's `-r 1 -a 1 -b 0.8`, also without a config.
    made = methods.create("crd+kd", {}).methods
    assert (made["crd"].beta, made["kd"].alpha) == (0.8, 1.0)
    assert methods.create("kd+crd", {}).methods["kd"].alpha == 0.9
    assert methods.create("crd+kd", {"kd": {"alpha": 0.3}}).methods["kd"].alpha == 0.3
    stage = builders.stage("resnet-20", "crd+kd", ("teacher",))
    assert stage["kd"]["alpha"] == 1.0
    assert hyper("dkd", "teacher=resnet32x4,student=resnet8x4").beta == 8
    assert hyper("reviewkd", "teacher=resnet32x4,student=resnet8x4").beta == 5
    # 20 of 240 epochs of 781 steps; a tenth of the epochs has a tenth of them.
    assert hyper("dkd").warmup_steps == 20 * 781
    assert hyper("dkd", "epochs=24").warmup_steps == 2 * 781
    assert hyper("one").rampup_steps == 80 * 781
    # Means over positions, of which digits have a sixteenth.
    assert hyper("at", "dataset=digits").beta == 1000 / 16
    assert hyper("ctkd").beta == 1000
    assert hyper("ctkd", "dataset=digits").beta == 1000 / 16
    assert hyper("ab").init_epochs == 30
    assert hyper("ab", "epochs=8").init_epochs == 1


@pytest.mark.parametrize(
    ("pair", "stages"),
    [("teacher=resnet56,student=resnet20", 3), ("teacher=vgg13,student=vgg8", 4)],
)
def test_reviewkd_on_cifar_takes_the_teachers_maps_before_the_activation(pair, stages):
    """ReviewKD's models, and `STU_PREACT: False` in mdistiller's config."""
    parsed = experiment(kd, f"reviewkd,{pair}")
    method = make_steps(parsed, SOURCES["cifar100"])["student"].method
    numbers = range(1, stages + 1)
    assert method.levels == (*(f"stage{i}" for i in numbers), "pooled")
    assert method.teacher_levels == (*(f"stage{i}_pre" for i in numbers), "pooled")


def test_dkds_weights_are_those_of_its_configs():
    """mdistiller's `DKD.BETA` by pair."""
    for pair, beta in {
        "teacher=resnet56,student=resnet20": 2,
        "teacher=resnet110,student=resnet32": 2,
        "teacher=resnet32x4,student=resnet8x4": 8,
        "teacher=wrn-40-2,student=wrn-16-2": 6,
        "teacher=wrn-40-2,student=wrn-40-1": 6,
        "teacher=vgg13,student=vgg8": 6,
        "teacher=vgg13,student=mobilenetv2-0.5": 6,
        "teacher=bottleneck_resnet-50,student=mobilenetv2-0.5": 8,
        "teacher=resnet32x4,student=shufflenetv1": 8,
        "teacher=resnet32x4,student=shufflenetv2": 8,
        "teacher=wrn-40-2,student=shufflenetv1": 8,
    }.items():
        assert kd.get_config(f"dkd,{pair}").stages.student.dkd.beta == beta, pair


def test_the_benchmarks_start_of_wide_resnets():
    found = experiment(kd, "dkd,teacher=wrn-40-2,student=wrn-16-2").stages
    assert found["teacher"].model == "wrn-40-2-fan_out"
    assert found["student"].model == "wrn-16-2-fan_out"
    # CTKD's own config has its own.
    assert experiment(ctkd, "cifar10").stages["student"].model == "wrn-16-1"


def test_mobile_students_learn_more_slowly_than_their_teachers():
    found = experiment(kd, "at,teacher=wrn-40-2,student=mobilenetv2-0.5")
    assert found.stages["student"].recipe.learning_rate == 0.01
    assert found.stages["teacher"].recipe.learning_rate == 0.05


def test_all_methods_side_by_side():
    found = experiment(kd, "all,teacher=resnet56/resnet44").stages
    assert set(found) == {"teacher1", "teacher2", *METHODS}
    assert found["kd"].teachers == ("teacher1",)
    assert found["dgkd"].teachers == ("teacher1", "teacher2")
    two = experiment(kd, "crd+kd/dml").stages
    assert set(two) == {"teacher", "crd+kd", "dml"}


def test_teachers_that_learn_longer():
    found = experiment(kd, "kd,epochs=6,teacher_epochs=40")
    assert found.stages["teacher"].recipe.epochs == 40
    assert found.stages["student"].recipe.epochs == 6


def test_several_teachers():
    found = experiment(kd, "ensemble,teacher=resnet56/resnet44,student=resnet20")
    assert [found.stages[name].model for name in found.stages["student"].teachers] == [
        "resnet-56",
        "resnet-44",
    ]


@pytest.mark.parametrize(
    ("arg", "message"),
    [
        ("nope", "unknown method 'nope'"),
        ("kd,nope=1", "unknown argument 'nope'"),
        ("kd,dataset=nope", "unknown dataset 'nope'"),
        ("kd,student=nope", "unknown model 'nope'"),
        ("ensemble,teacher=resnet56/resnet56", "a network comes twice"),
    ],
)
def test_mistakes(arg, message):
    with pytest.raises(UserError, match=message):
        experiment(kd, arg)


def test_the_benchmark_trains_every_teacher_once():
    found = experiment(cifar100_benchmark, "all,methods=kd/crd+kd/takd")
    alone = [s.model for s in found.stages.values() if not s.teachers]
    assert len(set(alone)) == len(alone)
    pairs = {
        (found.stages[stage.teachers[0]].model, stage.model)
        for stage in found.stages.values()
        if stage.method_name == "crd+kd"
    }
    assert len(pairs) == 13
    assert ("vgg-13", "mobilenetv2-0.5") in pairs
    assert ("resnet-32x4", "shufflenetv2") in pairs
    # TAKD's paths are known for three pairs.
    last = found.stages["takd-wrn-40-2-wrn-34-2-wrn-28-2-wrn-22-2-wrn-16-2"]
    assert found.stages[last.teachers[0]].model == "wrn-22-2-fan_out"
    # Wide ResNets all start as the benchmark's do; a stage's name does not say so.
    wide = {s.model for s in found.stages.values() if s.model.startswith("wrn")}
    assert all(model.endswith("-fan_out") for model in wide)
    assert found.stages["wrn-16-2"].model == "wrn-16-2-fan_out"
    own = experiment(cifar100_benchmark, "table8,methods=ctkd").stages
    assert own["ctkd-wrn-40-2-wrn-16-2"].method.scratch == "wrn-40-2-fan_out"
    assert found.stages["resnet-20"].recipe == found.stages["resnet-56"].recipe


def test_table8_has_all_its_methods():
    found = experiment(cifar100_benchmark, "table8")
    for method in cifar100_benchmark.TABLE8:
        ends = [name for name in found.stages if name.startswith(f"{method}-")]
        assert {found.stages[name].model for name in ends} >= {
            "wrn-16-2-fan_out",
            "resnet-20",
            "vgg-8",
        }, method
    ours = found.stages["dgkd_stochastic-vgg-13-vgg-11-vgg-8"]
    assert ours.method.survival == 0.75
    assert len(ours.teachers) == 2


def test_dgkds_tables_with_methods_of_others():
    table3 = experiment(dgkd_tables, "table3").stages
    assert {"cc-34-18", "one-34-18", "sskd-34-18", "takd-34-26-18"} < set(table3)
    table7 = experiment(dgkd_tables, "table7").stages
    for size in (8, 14):
        for method in ("kd", "fitnet", "at", "fsp", "bss"):
            stage = table7[f"{method}-26-{size}"]
            assert (stage.model, stage.teachers) == (f"resnet-{size}", ("T26",))
        assert table7[f"dml-26-{size}"].method.peers == ("resnet-26",)
    last = table7["stochastic75-26-20-14"]
    assert last.method.survival == 0.75
    assert [table7[name].model for name in last.teachers] == ["resnet-26", "resnet-20"]
    # The assistant of the longer path is not the student of the shorter one.
    assert table7["dgkd-26-20-14"].method.survival == 1.0
    table8 = experiment(dgkd_tables, "table8").stages
    assert {"T40x2", "T56", "T13", "crd-56-20", "sskd-13-8"} < set(table8)


def test_any_method_teaches_along_a_path():
    arg = "digits,path=plain4/plain3/plain2,method=crd+kd"
    found = experiment(dgkd, arg).stages
    assert list(found) == ["T4", "A3", "S2"]
    assert [stage.method_name for stage in found.values()] == [
        "supervised",
        "crd+kd",
        "crd+kd",
    ]
    assert found["S2"].teachers == ("A3",)
    assert found["S2"].method.methods["crd"].beta == 0.8
    with pytest.raises(UserError, match="unknown method 'nope'; choices: dgkd, "):
        experiment(dgkd, "digits,method=nope")


def test_born_again_generations_start_apart():
    found = experiment(born_again, "generations=3").stages
    assert [stage.init_index for stage in found.values()] == [0, 1, 2]
    assert [stage.teachers for stage in found.values()] == [
        (),
        ("generation0",),
        ("generation1",),
    ]
    assert {stage.model for stage in found.values()} == {"resnet-20"}
    with pytest.raises(UserError, match="generations=1"):
        experiment(born_again, "generations=1")


@pytest.mark.parametrize("student", ["resnet8", "mobilenetv2-0.5"])
def test_no_device_is_asked_for(student):
    """Before several processes have joined, jax may not know its devices."""
    code = (
        "from kdjax.experiment.flags import parse_flags\n"
        f"line = '--config=configs/kd.py:all,teacher=resnet20,student={student}'\n"
        "parse_flags(['kdjax', line, '--workdir=w'])\n"
        "from jax._src import xla_bridge\n"
        "assert not xla_bridge.backends_are_initialized()\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
