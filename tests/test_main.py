"""The command line: bad input ends with 2 and one clear line; configs build."""

import copy
import dataclasses

import in_process
import pytest

from configs import common, ctkd, ctkd_tables
from kdjax import main as command
from kdjax.experiment.config import parse_config
from kdjax.experiment.flags import parse_flags
from kdjax.runtime.errors import UserError

TINY = (
    "--config.stages.expert.model=wrn-10-1",
    "--config.stages.student.model=wrn-10-1",
    "--config.stages.student.ctkd.scratch=wrn-10-1",
)
DIGITS = "--config=configs/ctkd.py:digits"
SOURCES = "digits, cifar10, cifar100, svhn, tiny_imagenet, imagenet"
SHRINK = "epochs, batch_size, train_size, test_size, seeds"


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch, request):
    """From the repository's root, without signal handlers, cache or training."""
    in_process.enter(monkeypatch, request.config.rootpath)
    in_process.forbid_training(monkeypatch)


@pytest.fixture
def error(tmp_path, capsys):
    """Runs a command that must fail cleanly; returns its one line."""

    def run(*args: str, workdir: bool = True) -> str:
        folder = [f"--workdir={tmp_path / 'work'}"] if workdir else []
        assert command.main(["kdjax", *args, *folder]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("kdjax: ")
        assert err.count("\n") == 1
        assert err.endswith("\n")
        return err

    return run


def assert_has(text: str, *words: str):
    for word in words:
        assert word in text


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--config=configs/nope.py"], ["configs/nope.py", "configs/ctkd.py"]),
        (["--config=configs/ctkd.py:mnist"], ["'mnist'", *common.SETTINGS]),
        (["--config=configs/ctkd.py:digits,depth=3"], ["'depth'", SHRINK]),
        (["--config=configs/ctkd.py:digits,epochs=x"], ["epochs=x", "whole number"]),
        (["--config=configs/ctkd.py:digits,epochs=1.5"], ["epochs=1.5"]),
        (["--config=configs/ctkd.py:digits,epochs="], ["epochs=", "whole number"]),
        ([DIGITS, "stray"], ["'stray'"]),
        ([DIGITS, "--seed=3"], ["seed"]),
        ([DIGITS, "--config.recipe.lr=1"], ["'lr'", "learning_rate, milestones"]),
        ([DIGITS, "--config.data.dri", "../x"], ["'dri'", "augment, dir"]),
        ([DIGITS, "--config.reciep.lr=1"], ["'reciep'", "recipe, saving, seeds"]),
        ([DIGITS, "--config.stages.pupil.model=x"], ["'pupil'", "expert, student"]),
        ([DIGITS, "--config.recipe.epochs.x=1"], ["epochs.x=1", "'x'"]),
    ],
)
def test_flags_and_keys(error, args, words):
    assert_has(error(*args), *words)


def test_missing_flags(error):
    assert "--workdir is missing" in error(DIGITS, workdir=False)
    assert "--config is missing" in error()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("recipe.learning_rate=abc", ["learning_rate", "abc", "float"]),
        ("recipe.epochs=1.5", ["epochs", "1.5", "int"]),
        ("recipe.nesterov=maybe", ["nesterov", "maybe", "oolean"]),
        ("recipe.milestones=('a',)", ["milestones", "'a'", "float"]),
        ("recipe.milestones=(1.5,)", ["milestone 1.5", "0..1"]),
        ("recipe.optimizer=lamb", ["'lamb'", "sgd, adam"]),
        ("recipe.learning_rate=-1", ["learning_rate=-1"]),
        ("recipe.epochs=0", ["epochs=0"]),
        ("recipe.batch_size=0", ["batch_size=0"]),
        ("seeds=0", ["seeds=0"]),
        ("seeds=-2", ["seeds=-2"]),
        ("precision=float16", ["'float16'", "float32, float64"]),
        ("saving.evaluate_every=0", ["evaluate_every=0"]),
        ("saving.every_s=-1", ["every_s=-1"]),
        ("data.name=mnist", ["'mnist'", SOURCES]),
        ("data.train_size=0", ["train_size", "1 to 1437", "not 0"]),
        ("data.train_size=-5", ["train_size", "1 to 1437", "not -5"]),
        ("data.train_size=1438", ["train_size", "1 to 1437", "not 1438"]),
        ("data.test_size=0", ["test_size", "1 to 360", "not 0"]),
        ("data.augment.padding=edge", ["'edge'", "reflect, zero"]),
        ("stages.student.model=resnext", ["'resnext'", "choices: resnet-DEPTH"]),
        ("stages.student.model=wrn-17-1", ["wrn-17-1", "17", "10, 16, 22"]),
        ("stages.student.ctkd.scratch=wrn-17-1", ["wrn-17-1", "17", "10, 16, 22"]),
        ("stages.student.method=nope", ["'nope'", "choices: supervised, "]),
        ("stages.student.method=kd", ["options for 'ctkd'", "'kd'"]),
        ("stages.student.method=ctkd+ctkd", ["'ctkd' twice"]),
        ("stages.student.teachers=('nobody',)", ["'nobody'", "expert, student"]),
        ("stages.student.teachers=()", ["'ctkd'", "1 teacher", "not 0"]),
        ("stages.student.teachers=('expert','student')", ["1 teacher", "not 2"]),
        ("stages.expert.teachers=('student',)", ["'supervised'", "0 teachers"]),
        ("stages.student.teachers=('student',)", ["circle", "student -> student"]),
        ("stages.student.ctkd.attention_target=x", ["'x'", "student, scratch"]),
        ("stages.student.ctkd.norm=l7", ["'l7'", "mean_square, l2"]),
    ],
)
def test_values(error, override, words):
    assert_has(error(DIGITS, f"--config.{override}"), *words)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("recipe.batch_size=2000", ["batch_size=2000", "1437"]),
        ("recipe.batch_size=30", ["batch_size=30", "8 devices", "multiples of 8"]),
        ("data.augment.crop=9", ["crop=9", "(8, 8)"]),
        ("stages.student.ctkd.levels=('stage9',)", ["'stage9'", "stage1, stage1_pre"]),
        ("stages.student.ctkd.inherit=True", ["inherit", "at least as deep"]),
    ],
)
def test_parts_that_do_not_fit(error, override, words):
    """Known before the first stage is trained, from shapes alone."""
    deeper = "--config.stages.student.model=wrn-16-1"
    assert_has(error(DIGITS, *TINY, deeper, f"--config.{override}"), "stage", *words)


def test_missing_data_set_tells_where_and_how(error, tmp_path):
    line = error("--config=configs/ctkd.py", f"--config.data.dir={tmp_path}")
    how = f"python -m kdjax.data.prepare cifar10 --data-dir {tmp_path}"
    assert_has(line, "'cifar10'", f"{tmp_path}/cifar10", how)


def test_workdir_that_is_a_file_is_left_alone(error, tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    for workdir in (file, file / "below"):
        line = error(DIGITS, f"--workdir={workdir}", workdir=False)
        assert_has(line, str(workdir), "cannot be written")
    assert file.read_text() == "mine"


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "def get_config(",
        "import nothing_of_this_name",
        "raise KeyError('a')",
        "def get_config():\n    return {}['a']",
    ],
)
def test_config_file_with_a_mistake(error, tmp_path, text):
    file = tmp_path / "mine.py"
    file.write_text(text)
    error(f"--config={file}", "--config.recipe.epochs=1")
    error(f"--config={file}")


def test_workdir_keeps_what_it_holds(error, tmp_path):
    kept = tmp_path / "work" / "results.json"
    kept.parent.mkdir()
    kept.write_text("{}")
    error(DIGITS, "--config.data.train_size=0")
    assert kept.read_text() == "{}"


def test_good_input_reaches_training(tmp_path):
    """The stub that the other tests rely on is really in the way."""
    with pytest.raises(AssertionError, match="training would start"):
        command.main(["kdjax", DIGITS, *TINY, f"--workdir={tmp_path}"])


@pytest.mark.parametrize("split", ["train", "test"])
def test_each_size_is_overridden_alone(split):
    flags = ["kdjax", DIGITS, "--workdir=w", f"--config.data.{split}_size=100"]
    config = parse_flags(flags).config
    other = {"train": "test", "test": "train"}[split]
    assert config["data"][f"{split}_size"] == 100
    assert config["data"][f"{other}_size"] is None


@pytest.mark.parametrize("separate", [False, True])
def test_overrides_may_come_before_the_config(separate):
    name = ["--config", DIGITS.removeprefix("--config=")] if separate else [DIGITS]
    flags = ["--config.recipe.epochs=3", "--workdir=w", *name]
    assert parse_flags(["kdjax", *flags]).config["recipe"]["epochs"] == 3


@pytest.mark.parametrize("args", [["--help"], [DIGITS, "--help"], ["-h"]])
def test_help(capsys, args):
    assert command.main(["kdjax", *args]) == 0
    out, err = capsys.readouterr()
    assert_has(out, "usage:", "--config", "--workdir")
    assert err == ""


# Paper: Zhao et al., section IV; the weight decay is the released code's.
# variant: student, teacher, optimizer, epochs, learning rate, weight decay, drops
PAPER = {
    "cifar10": (16, 40, 1, "sgd", 200, 0.1, 5e-4, (60, 120, 160)),
    "cifar10-w2": (16, 40, 2, "sgd", 200, 0.1, 5e-4, (60, 120, 160)),
    "cifar100": (16, 40, 2, "sgd", 200, 0.1, 5e-4, (60, 120, 160)),
    "svhn": (16, 40, 1, "adam", 100, 0.01, 0.0, (20, 40, 60)),
    "tiny_imagenet": (16, 40, 1, "sgd", 300, 0.1, 5e-4, (60, 120, 160, 200, 250)),
}


@pytest.mark.parametrize("variant", PAPER)
def test_ctkd_has_the_papers_numbers(variant):
    student, teacher, widen, optimizer, epochs, rate, decay, drops = PAPER[variant]
    parsed = parse_config(ctkd.get_config(variant).to_dict())
    assert parsed.data["name"] == variant.split("-")[0]
    assert list(parsed.stages) == ["expert", "student"]
    for stage in parsed.stages.values():
        recipe = stage.recipe
        assert recipe.optimizer == optimizer
        assert recipe.epochs == epochs
        assert recipe.learning_rate == rate
        assert recipe.weight_decay == decay
        assert recipe.batch_size == 128
        assert recipe.momentum == 0.9
        assert recipe.decay_factor == 0.2
        assert [round(m * epochs, 6) for m in recipe.milestones] == list(drops)
        assert stage.seeds == 5
    assert parsed.stages["expert"].model == f"wrn-{teacher}-{widen}"
    assert parsed.stages["student"].model == f"wrn-{student}-{widen}"
    assert parsed.stages["student"].teachers == ("expert",)
    method = parsed.stages["student"].method
    assert method.scratch == f"wrn-{teacher}-{widen}"
    assert method.beta == 1e3
    assert method.hint_weight == 0.03


def suffix(name):
    return "-w2" if name.endswith("-w2") else ""


@pytest.mark.parametrize("variant", [*ctkd_tables.TABLES, ""])
def test_tables_build(variant):
    parsed = parse_config(ctkd_tables.get_config(variant).to_dict())
    names, rows = ctkd_tables.TABLES[variant or "table1"]
    assert set(parsed.stages) == {
        f"{row}{suffix(name)}" for name in names for row in ("expert", *rows)
    }
    for name in names:
        setting = common.SETTINGS[name]
        assert parsed.augment == setting.augment
        for row in rows:
            stage = parsed.stages[f"{row}{suffix(name)}"]
            assert stage.recipe == setting.recipe
            assert stage.model == setting.student
            assert set(stage.teachers) <= {f"expert{suffix(name)}"}


def test_tables_share_the_stages_of_ctkd():
    """One working folder trains the expert and CTKD of both configs once."""
    for table, (names, rows) in ctkd_tables.TABLES.items():
        stages = parse_config(ctkd_tables.get_config(table).to_dict()).stages
        for name in names:
            own = parse_config(ctkd.get_config(name).to_dict()).stages
            for row, stage in (("expert", own["expert"]), ("ctkd", own["student"])):
                if row != "ctkd" or row in rows:
                    ours = stages[f"{row}{suffix(name)}"]
                    named = {"name": stage.name, "teachers": stage.teachers}
                    assert dataclasses.replace(ours, **named) == stage


def test_default_is_cifar10():
    assert ctkd.get_config().to_dict() == ctkd.get_config("cifar10").to_dict()


def test_argument_shrinks():
    arg = "cifar10,epochs=4,train_size=5000,test_size=10,seeds=3,batch_size=64"
    config = ctkd.get_config(arg).to_dict()
    assert config["data"]["train_size"] == 5000
    assert config["data"]["test_size"] == 10
    for stage in parse_config(config).stages.values():
        assert (stage.recipe.epochs, stage.recipe.batch_size) == (4, 64)
        assert stage.seeds == 3
        assert stage.recipe.milestones == (0.3, 0.6, 0.8)


@pytest.mark.parametrize("missing", ["data", "recipe", "seeds", "stages"])
def test_parse_names_a_missing_key(missing):
    config = ctkd.get_config("digits").to_dict()
    del config[missing]
    with pytest.raises(UserError, match=f"'{missing}' is missing"):
        parse_config(config)


@pytest.mark.parametrize(
    ("path", "key", "message"),
    [
        (("stages", "student"), "model", "stage 'student' 'model' is missing"),
        (("data",), "name", "data key 'name' is missing"),
    ],
)
def test_parse_names_a_missing_entry(path, key, message):
    config = ctkd.get_config("digits").to_dict()
    part = config
    for step in path:
        part = part[step]
    del part[key]
    with pytest.raises(UserError, match=message):
        parse_config(config)


def test_parse_refuses_a_circle_and_unknown_options():
    config = ctkd.get_config("digits").to_dict()
    student = config["stages"]["student"]
    circle = copy.deepcopy(config)
    circle["stages"]["expert"] = {**student, "teachers": ["student"]}
    with pytest.raises(UserError, match=r"circle: \w+ -> \w+ -> \w+$"):
        parse_config(circle)
    student["ctkd"]["gamma"] = 1.0
    with pytest.raises(UserError, match=r"'gamma'; choices: .*beta"):
        parse_config(config)
