"""Mistakes end with one line, in a dry run as in a run."""

import os
import subprocess
import sys

import in_process
import pytest

from configs import kd
from kdjax import main as command
from kdjax.experiment import builders
from kdjax.experiment.build import open_data
from kdjax.experiment.config import MOST_GENERATIONS, parse_config
from kdjax.experiment.flags import parse_flags
from kdjax.experiment.store import Store
from kdjax.runtime.errors import UserError, listed, shorten, unknown


def config(method: str = "supervised", more: str = "") -> str:
    networks = "teacher=plain4,student=plain2,batch_size=64"
    return f"--config=configs/kd.py:{method},dataset=digits,{networks}{more}"


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch, request):
    """From the repository's root, without signal handlers, cache or training."""
    in_process.enter(monkeypatch, request.config.rootpath)
    in_process.forbid_training(monkeypatch)


@pytest.fixture
def line(tmp_path, capsys):
    """Runs a command, which must fail with one short line, and returns it."""

    def run(*args: str) -> str:
        assert command.main(["kdjax", f"--workdir={tmp_path / 'work'}", *args]) == 2
        err = capsys.readouterr().err
        assert err.startswith("kdjax: ")
        assert err.count("\n") == 1
        assert len(err) <= 300
        return err

    return run


STUDENT = "--config.stages.student"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([config("kd"), f"{STUDENT}.teachers=(1,2)"], ["(1, 2)", "names of stages"]),
        ([config("kd"), f"{STUDENT}.teachers=(None,)"], ["(None,)"]),
        ([config(), "--workdir=~nosuchuser/x"], ["~nosuchuser", "home"]),
        ([config(), f"--workdir=/tmp/{'x' * 5000}"], ["name too long"]),
        ([config(), "--workdir=gs://bucket/runs"], ["gs:", "remote"]),
        ([config(), "--flagfile=/"], ["--flagfile", "directory"]),
        ([config(), "--flagfile=/nowhere"], ["--flagfile", "/nowhere"]),
        ([config(), "--config.seeds=4294967296"], ["4294967296", "10,000"]),
        ([config(), "--config.seeds=99999999999"], ["99999999999"]),
        ([config(), "--config.recipe.epochs=99999999999"], ["99999999999"]),
        ([config(), "--config.recipe.batch_size=99999999999"], ["99999999999"]),
        (["--config=configs/own.py:learning_rate=0,001"], ["'learning_rate=0,001'"]),
        (["--config=configs/own.py:epochs=3,lr"], ["'lr'", "KEY=VALUE"]),
        (["--config=configs/born_again.py:generations=9999999999"], ["9999999999"]),
        ([f"--config=configs/{'y' * 5000}.py"], ["unknown config", "..."]),
        ([config("x" * 5000)], ["unknown method", " ... ", "rocket, ctkd"]),
        ([config(), "--config.recipe.momentum=2.0"], ["momentum=2.0"]),
        ([config(), "--config.recipe.milestones=(0.5,0.2)"], ["(0.5, 0.2)", "order"]),
    ],
)
def test_flags_and_values(line, args, words):
    for more in ([], ["--dry-run"]):
        told = line(*args, *more)
        for word in words:
            assert word.lower() in told.lower()


@pytest.mark.parametrize(
    ("method", "override", "words"),
    [
        ("at", "stages.student.at.power=0.5", ["power", "0.5"]),
        ("simkd", "stages.student.simkd.factor=2147483648", ["2147483648 is outside"]),
        ("supervised", "data.train_size=10", ["batch_size=64", "10 images"]),
        ("supervised", "recipe.accumulate=3", ["accumulate=3", "multiples of"]),
        ("supervised", "data.augment.crop=100", ["crop=100", "(8, 8)"]),
    ],
)
def test_a_dry_run_refuses_what_a_run_refuses(line, method, override, words):
    args = config(method), f"--config.{override}"
    told = line(*args, "--dry-run")
    for word in words:
        assert word in told
    assert line(*args) == told


@pytest.mark.parametrize(
    ("override", "teacher", "words"),
    [
        ("simkd.factor=257", "resnet8x4", ["factor=257", "'resnet-8x4'", "1 to 256"]),
        ("kdsvd.k=1000", "resnet14", ["k=1000", "stage1", "1 to 16"]),
    ],
)
def test_an_option_that_the_networks_do_not_fit(line, override, teacher, words):
    """The networks have what the method needs: the option alone is wrong."""
    method = override.partition(".")[0]
    networks = f"teacher={teacher},student=resnet8,batch_size=64"
    args = (
        f"--config=configs/kd.py:{method},dataset=digits,{networks}",
        f"--config.stages.student.{override}",
    )
    told = line(*args, "--dry-run")
    for word in words:
        assert word in told
    assert line(*args) == told


@pytest.mark.parametrize("below", ["", "/below"])
def test_a_dry_run_looks_at_the_working_folder(line, tmp_path, below):
    file = tmp_path / "file"
    file.touch()
    for more in ([], ["--dry-run"]):
        told = line(config(), f"--workdir={file}{below}", *more)
        assert f"{file}{below} cannot be written: Not a directory" in told


def test_a_dry_run_makes_nothing(tmp_path):
    flags = config(), f"--workdir={tmp_path / 'a' / 'b'}", "--dry-run"
    assert command.main(["kdjax", *flags]) == 0
    assert not list(tmp_path.iterdir())


def test_keys_in_a_flag_file(line, tmp_path):
    file = tmp_path / "flags"
    file.write_text("--config.nosuch=1\n")
    told = line(config(), f"--flagfile={file}")
    assert "'nosuch'; choices: bank, data" in told
    file.write_text(f"{config()}\n--config.recipe.epochs=0\n")
    assert "epochs=0" in line(f"--flagfile={file}")


@pytest.mark.parametrize(("returned", "kind"), [("{}", "dict"), ("None", "NoneType")])
def test_a_config_that_returns_something_else(line, tmp_path, returned, kind):
    file = tmp_path / "mine.py"
    file.write_text(f"def get_config():\n    return {returned}\n")
    assert f"no ConfigDict but a {kind}" in line(f"--config={file}")


def chain(length: int) -> dict:
    setting = kd.setting("digits")
    stages = {"s0": builders.stage("plain-2")}
    for number in range(1, length):
        stages[f"s{number}"] = builders.stage("plain-2", "kd", (f"s{number - 1}",))
    # From the last to the first: every one is met before its teachers.
    backwards = dict(reversed(stages.items()))
    return builders.experiment(setting, {}, backwards).to_dict()


def test_long_chains():
    stages = parse_config(chain(MOST_GENERATIONS)).stages
    assert list(stages) == [f"s{number}" for number in range(MOST_GENERATIONS)]
    with pytest.raises(UserError, match=f"more than {MOST_GENERATIONS} generations"):
        parse_config(chain(1437))


def test_fingerprints_are_computed_once(monkeypatch, tmp_path):
    """In a chain taught by all before they would be 2 ** 8 times."""
    path = "/".join(f"plain{depth}" for depth in range(10, 1, -1))
    arg = f"configs/dgkd.py:digits,path={path}"
    flags = parse_flags(["kdjax", f"--config={arg}", "--workdir=w"])
    experiment = parse_config(flags.config)
    asked = []

    def settings(self, name, seed):
        asked.append(name)
        teachers = experiment.stages[name].teachers
        return {"teachers": [self.fingerprint(teacher, 0) for teacher in teachers]}

    monkeypatch.setattr(Store, "settings", settings)
    Store(experiment, open_data(experiment), tmp_path).fingerprint("S2", 0)
    assert sorted(asked) == sorted(experiment.stages)


def test_a_platform_that_is_not_there():
    """In a process of its own: this one has its devices already."""
    code = (
        "import sys\n"
        "from kdjax.runtime import command, parallel\n"
        "sys.exit(command.run(parallel.is_first))\n"
    )
    for platform in ("nowhere", "cuda"):
        ended = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "JAX_PLATFORMS": platform},
            capture_output=True,
            text=True,
        )
        assert ended.returncode == 2, ended.stderr
        assert f"JAX_PLATFORMS='{platform}'" in ended.stderr.splitlines()[-1]
        assert "Traceback" not in ended.stderr


def test_long_lists_and_values():
    names = [f"name{number}" for number in range(1000)]
    assert listed(names[:3]) == "name0, name1, name2"
    assert listed([]) == "none"
    told = str(unknown("thing", "nmae777", names))
    assert "choices: name777, " in told
    assert told.endswith(" more")
    assert len(told) < 290
    shown = told.count("name")
    assert f"and {1000 - shown} more" in told
    assert shorten("a\nb") == "a b"
    assert shorten("x" * 100 + "y" * 100, 25) == "x" * 10 + " ... " + "y" * 10
