"""Methods and networks that other installed packages add."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kdjax import methods, models
from kdjax.runtime.entry_points import Registry
from kdjax.runtime.errors import UserError

METHOD = """
import dataclasses

from kdjax import losses
from kdjax.methods import KD, Term


@dataclasses.dataclass(frozen=True)
class Halved(KD):
    VERSION = 4

    def distances(self, context):
        terms = super().distances(context)
        return {name: term._replace(weight=0.5) for name, term in terms.items()}
"""
FAMILY = """
from kdjax.models import resnet

VERSION = 7


def create(name, num_classes):
    return resnet.create(name.replace("outer", "resnet"), num_classes)
"""
POINTS = """
[kdjax.methods]
halved = outer_parts.method:Halved
renamed = outer_parts.method:Halved
function = outer_parts.family:create
gone = outer_parts.gone:Gone
kd = outer_parts.method:Halved

[kdjax.models]
outer = outer_parts.family
bare = outer_parts.method
"""


@pytest.fixture
def outer(tmp_path, monkeypatch):
    """An installed package with parts for kdjax."""
    package, info = tmp_path / "outer_parts", tmp_path / "outer-1.5.dist-info"
    package.mkdir()
    info.mkdir()
    (package / "__init__.py").touch()
    (package / "method.py").write_text(METHOD)
    (package / "family.py").write_text(FAMILY)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outer\nVersion: 1.5\n")
    (info / "entry_points.txt").write_text(POINTS)
    (info / "top_level.txt").write_text("outer_parts\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("outer_parts")]:
        del sys.modules[name]


def test_rows_are_listed_without_being_imported(outer):
    assert "outer" in models.MODELS
    assert {"halved", "gone"} <= set(methods.METHODS)
    assert list(methods.METHODS)[:2] == ["supervised", "label_smoothing"]
    assert len(methods.METHODS) == len(list(methods.METHODS))
    assert not any(name.startswith("outer_parts") for name in sys.modules)


def test_a_method_is_made_and_hashed_by_its_name_and_version(outer):
    method = methods.create("at+halved", {"halved": {"temperature": 2.0}})
    found = methods.options(method)
    assert found["halved"]["version"] == 4
    assert found["halved"]["temperature"] == 2.0
    # No other package takes the place of a row.
    assert methods.METHODS["kd"].__module__ == "kdjax.methods.logits"
    assert list(methods.METHODS).count("kd") == 1


def test_a_family_is_like_the_packages(outer):
    network = models.create("outer-8", 3)
    assert network == models.create("resnet-8", 3)
    assert models.version("outer-8") == 7
    assert models.version("simkd-2:outer-8:resnet-8") == 10
    assert models.packages("outer-8") == {"outer_parts": "1.5"}
    with pytest.raises(UserError, match=r"choices: .*outer, .*package\.module:Class"):
        models.create("nope-3", 3)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        (
            "gone",
            r"'gone' of kdjax\.methods \(outer_parts\.gone:Gone\) cannot be loaded",
        ),
        ("renamed", "has the NAME 'halved'"),
        ("function", "is not a subclass of"),
    ],
)
def test_a_broken_row_is_told_and_hinders_no_other(outer, name, line):
    with pytest.raises(UserError, match=line) as error:
        methods.create(name, {})
    assert "\n" not in str(error.value)
    assert methods.options(methods.create("kd", {}))["kd"]["version"] == 1


def test_a_module_that_is_no_family_is_told(outer):
    with pytest.raises(UserError, match="has no function create"):
        models.create("bare-3", 3)
    assert models.create("resnet-8", 3)


def test_a_table_can_be_changed():
    table = Registry("kdjax.none", {"one": 1}, lambda name, value: None)
    table["two"] = 2
    assert dict(table) == {"one": 1, "two": 2}
    del table["one"]
    assert dict(table) == {"two": 2}
    with pytest.raises(KeyError):
        table["one"]
    assert table.loaded() == {"two": 2}
    assert table.outside() == []


def test_the_battery_of_methods_runs_over_an_installed_one(outer):
    (outer / "outer-1.5.dist-info" / "entry_points.txt").write_text(
        "[kdjax.methods]\nhalved = outer_parts.method:Halved\n"
    )
    found = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "tests/test_methods.py"),
            *("-k", "halved and moves or has_a_row", "-p", "no:cacheprovider"),
        ],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "PYTHONPATH": f"{outer}:{os.environ.get('PYTHONPATH', '')}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "2 passed" in found.stdout, found.stdout + found.stderr
