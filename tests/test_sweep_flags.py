"""The search's command line: ranges, config lines and mistakes."""

import functools
import shlex
import sys

import in_process
import pytest
from sweeps import CONFIG, parsed, refused

import kdjax.sweep
from kdjax.experiment.config import parse_config
from kdjax.experiment.flags import parse_flags
from kdjax.sweep import __main__ as sweep


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch, request):
    """From the repository's root, without signal handlers or a cache."""
    in_process.enter(monkeypatch, request.config.rootpath)


@pytest.fixture
def error(tmp_path, capsys):
    return functools.partial(refused, capsys, tmp_path / "w")


def test_ranges():
    text = "lambda=0.3:0.95,learning_rate=1e-3:0.123456"
    assert sweep.parse_ranges(text) == {
        "lambda": (0.3, 0.95),
        "learning_rate": (1e-3, 0.123),
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lambda", "'lambda' is not NAME=LOW:HIGH"),
        ("lambda=", "'lambda=' is not"),
        ("lambda=0.3", "'lambda=0.3' is not"),
        ("lambda=0.1:0.2:0.3", "is not NAME"),
        ("lambda=a:b", "is not NAME"),
        ("lambda=0.3:0.9,", "'' is not"),
        ("lambda=0.9:0.3", "0.9 is not less than 0.3"),
        ("lambda=0.5:0.5", "0.5 is not less than 0.5"),
        ("temperature=2:inf", "2 is not less than inf"),
        ("temperature=nan:3", "nan is not less than 3"),
        ("lambda=0.3:0.4,lambda=0.5:0.6", "'lambda' comes twice"),
    ],
)
def test_bad_ranges(error, text, words):
    assert words in error(f"--search={text}")


@pytest.mark.parametrize(
    ("config", "names"),
    [
        ("configs/dgkd.py:digits", ["lambda", "temperature"]),
        ("configs/dgkd.py", ["lambda", "temperature"]),
        ("configs/dgkd.py:digits,method=kd", ["lambda", "temperature"]),
        ("configs/dgkd.py:temperature=4", ["lambda"]),
        (
            "configs/dgkd.py:digits,method=dgkd_stochastic",
            ["lambda", "temperature", "survival"],
        ),
    ],
)
def test_usual_ranges_that_are_open(config, names):
    assert list(parsed(config=config)[0].ranges) == names


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--trials=0"], ["trials", "0"]),
        (["--trials=-3"], ["trials", "-3"]),
        (["--trials=x"], ["trials", "x"]),
        (["--validation=0"], ["validation", "0"]),
        (["--validation=2000"], ["validation of digits", "1436", "2000"]),
        (["--seed=-1"], ["seed", "-1"]),
        (["--trails=3"], ["trails"]),
        (["stray"], ["stray"]),
        (["--dry-run"], ["--dry-run"]),
        (["--stages=S2"], ["--stages"]),
        (["--config.recipe.lr=1"], ["'lr'", "learning_rate"]),
        (["--config.data.validation=9"], ["data.validation", "--validation"]),
        (["--search=survival=0.5:1"], ["'survival' changes nothing"]),
        (["--search=beta=1:2"], ["'beta'", "lambda"]),
        (["--search=batch_size=8:9.5"], ["batch_size=9.5", "whole number"]),
        (["--search=lambda=0.5:1.5"], ["lambda", "1.5", "0..1"]),
        (["--search=temperature=-1:2"], ["temperature -1", "not positive"]),
    ],
)
def test_bad_values(error, tmp_path, args, words):
    line = error(*args)
    for word in words:
        assert word in line
    assert not (tmp_path / "w" / "sweep.db").exists()


@pytest.mark.parametrize(
    ("config", "args", "words"),
    [
        ("configs/nope.py", [], ["configs/nope.py", "configs/dgkd.py"]),
        ("configs/ctkd.py:digits", [], ["leaves none of lambda="]),
        ("configs/dgkd.py:digits,lambda=0.5,temperature=2", [], ["leaves none of"]),
        (
            "configs/dgkd.py:digits,lambda=0.5",
            ["--search=lambda=0.3:0.4"],
            ["fixes 'lambda' already"],
        ),
        ("configs/dgkd.py:digits,method=supervised", [], ["leaves none of"]),
        ("configs/dgkd.py:digits,depth=3", [], ["'depth'", "survival"]),
    ],
)
def test_configs_that_cannot_be_searched(error, config, args, words):
    line = error(*args, config=config)
    for word in words:
        assert word in line


def test_missing_flags_and_help(capsys):
    assert sweep.main(["sweep", "--workdir=w"]) == 2
    assert "--config is missing" in capsys.readouterr().err
    assert sweep.main(["sweep", "--config=configs/dgkd.py"]) == 2
    assert "--workdir is missing" in capsys.readouterr().err
    assert sweep.main(["sweep", "--help"]) == 0
    assert "usage:" in capsys.readouterr().out


def test_optuna_is_an_extra(monkeypatch, error):
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.delitem(sys.modules, "kdjax.sweep.trials")
    monkeypatch.delattr(kdjax.sweep, "trials")
    assert "pip install 'kdjax[sweep]'" in error()


def test_validation_is_a_tenth_unless_told():
    assert parsed()[0].validation == 143
    assert parsed("--validation=99")[0].validation == 99
    assert parsed()[1] == 20


def test_line_says_what_a_trial_trains(tmp_path):
    """The printed command differs from the trial in the images alone."""
    override = ["--config.recipe.milestones", "(0.25, 0.5)"]
    searched, _ = parsed(*override, f"--workdir={tmp_path / 'a folder'}")
    params = {"lambda": 0.123456, "temperature": 9.87654}
    assert searched.line(params) == f"{CONFIG},lambda=0.123,temperature=9.88"
    words = shlex.split(searched.command(params))
    assert words[:3] == ["python", "-m", "kdjax.main"]
    final = parse_flags(words[2:])
    assert final.workdir == tmp_path / "a folder" / "best"
    assert final.config["recipe"]["milestones"] == (0.25, 0.5)
    student = parse_config(final.config).stages["S2"].method
    assert (student.alpha, student.temperature) == (0.123, 9.88)
    trial = searched.config(params)
    for config, validation, size in ((trial, 143, None), (final.config, 0, 50)):
        assert config["data"].pop("validation") == validation
        assert config["data"].pop("test_size") == size
    assert trial == final.config


def test_line_without_an_argument():
    bare = sweep.Sweep("configs/dgkd.py", "", (), None)
    assert bare.line({}) == "configs/dgkd.py"
    assert bare.line({"lambda": 0.5}) == "configs/dgkd.py:lambda=0.5"
