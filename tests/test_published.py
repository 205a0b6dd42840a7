"""Published configs from any folder: which file is meant, and what it imports."""

import sys
from importlib.machinery import PathFinder
from pathlib import Path

import pytest

from kdjax.experiment import published
from kdjax.experiment.flags import parse_flags
from kdjax.runtime.errors import UserError

OWN = """
from ml_collections import ConfigDict

def get_config(arg=""):
    return ConfigDict({"mine": arg})
"""
COPY = (published.FOLDER / "ctkd.py").read_text()


def forget():
    for name in [name for name in sys.modules if name.split(".")[0] == "configs"]:
        del sys.modules[name]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder, seen by imports as by `python -m`; no checkout is."""
    kept = {name: sys.modules[name] for name in sys.modules if name[:7] == "configs"}
    monkeypatch.chdir(tmp_path)
    paths = [path for path in sys.path if not (Path(path) / "configs").is_dir()]
    monkeypatch.setattr(sys, "path", [str(tmp_path), *paths])
    forget()
    assert PathFinder.find_spec("configs", sys.path) is None
    yield tmp_path
    forget()
    sys.modules.update(kept)


def config(*words):
    before = list(sys.path)
    found = parse_flags(["kdjax", *words, "--workdir=w"]).config
    assert sys.path == before
    return found


def write(path, text):
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    "words",
    [
        ["--config=configs/ctkd.py:digits"],
        ["--config", "configs/ctkd.py:digits"],
        ["-config", "ctkd.py:digits"],
        ["--config=ctkd:digits"],
        ["--config=configs/ctkd:digits", "--config.recipe.epochs=10"],
    ],
)
def test_names_of_a_published_config(here, words):
    found = config(*words)
    assert list(found["stages"]) == ["expert", "student"]
    assert found["data"]["name"] == "digits"
    # Nothing stays that an own `configs` could be taken for.
    assert not [name for name in sys.modules if name[:7] == "configs"]


def test_every_published_config_is_read(here):
    for name in published.names():
        if name == "configs/own.py":  # whose images are the user's
            with pytest.raises(UserError, match="student= is missing"):
                config(f"--config={name}")
        else:
            fewer = ":methods=kd" * (name == "configs/cifar100_benchmark.py")
            assert config(f"--config={name}{fewer}")["stages"]


@pytest.mark.parametrize("name", ["configs/ctkd.py", "ctkd.py", "other/ctkd.py"])
def test_a_file_that_lies_here_wins(here, name):
    write(here / name, OWN)
    assert config(f"--config={name}:x") == {"mine": "x"}


@pytest.mark.parametrize("name", ["nope", "other/ctkd.py", "ctkd.json", "common.py"])
def test_unknown(here, name):
    (here / "configs").mkdir()  # a folder is no config
    write(here / "configs" / "mine.py", OWN)
    write(here / "configs" / "common.py", "")
    with pytest.raises(UserError) as raised:
        config(f"--config={name}:digits")
    line = str(raised.value)
    assert f"unknown config '{name}'" in line
    assert ("configs/mine.py" in line) == (name[:8] == "configs/")
    assert line.count("configs/ctkd.py") == 1


def test_choices_are_those_beside_it_and_the_published(here):
    for name in ("mine.py", "ctkd.py", "common.py"):
        write(here / "configs" / name, OWN)
    with pytest.raises(UserError) as raised:
        config("--config=configs/nope.py")
    line = str(raised.value)
    assert "configs/mine.py" in line
    assert line.count("configs/ctkd.py") == 1
    assert "common" not in line


@pytest.mark.parametrize("name", ["mine.py", "configs/mine.py"])
def test_a_copy_imports_what_does_not_lie_here(here, name):
    write(here / name, COPY)
    assert config(f"--config={name}:digits") == config("--config=ctkd.py:digits")


def test_a_copy_imports_what_lies_here_first(here):
    common = (published.FOLDER / "common.py").read_text()
    write(here / "configs" / "ctkd.py", COPY)
    write(here / "configs" / "common.py", common.replace('"wrn-16-1"', '"wrn-22-1"'))
    found = config("--config=configs/ctkd.py:digits")
    assert found["stages"]["student"]["model"] == "wrn-22-1"


@pytest.mark.parametrize("package", [True, False])
def test_another_package_of_that_name_is_not_in_the_way(here, package):
    write(here / "configs" / "common.py", "mine = 1")
    if package:
        write(here / "configs" / "__init__.py", "")
    from configs import common  # the user's

    assert config("--config=configs/ctkd.py:digits")["data"]["name"] == "digits"
    assert sys.modules["configs.common"] is common
    assert "configs.ctkd" not in sys.modules


def test_errors_of_a_config_file_are_one_line(here):
    write(here / "mine.py", "def get_config():\n    open('/nothing/there')")
    with pytest.raises(UserError, match=r"mine.py: .*'/nothing/there'"):
        config("--config=mine.py")
    write(here / "mine.py", "def get_config():\n    return {'a': 1}")
    with pytest.raises(UserError, match=r"mine.py: .*no ConfigDict but a dict"):
        config("--config=mine.py")
    write(here / "mine.py", "import configs.nope")
    with pytest.raises(UserError, match=r"No module named 'configs.nope'"):
        config("--config=mine.py")


def test_all_about_one(here):
    text = published.listing(["ctkd", "configs/dgkd.py:digits"])
    assert "tiny_imagenet  WRN-16-1 / WRN-40-1" in text
    assert "survival=0.75" in text
    assert str(published.FOLDER / "dgkd.py") in text
    write(here / "mine.py", OWN)
    assert "mine.py" in published.listing(["mine.py"])
    with pytest.raises(UserError, match="unknown config 'nope'"):
        published.listing(["nope"])
