"""The campaign's short form: a few trials of every part end as they should."""

import random
import shutil

import numpy as np
import pytest

from tests.campaign import damage, disks, fuzz, kills, kinds, rivals, shim
from tests.campaign.outcome import Outcome, Trials, judge

pytestmark = pytest.mark.skipif(
    shim.library() is None, reason="there is no C compiler for the faults"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("campaign")


@pytest.fixture(scope="module")
def supervised(folder):
    kind = kinds.make("supervised", folder)
    yield kind
    kind.commands.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trials", "number"),
    [
        (kills.trials, 1),
        (damage.trials, 2),
        (disks.trials, 1),
        (rivals.trials, 1),
    ],
)
def test_a_few_trials_of_each_part(supervised, folder, trials, number):
    tried = Trials(folder / "trials.json")
    trials([supervised], number, random.Random(1), folder, tried)
    assert tried.table().splitlines()[2:]
    assert not tried.bad


@pytest.mark.slow
def test_what_is_not_as_it_should_be_is_seen(supervised, folder):
    """The judge itself: another result, an error that is no line, a dead end."""
    whole = supervised.commands.run(supervised.to(supervised.whole))
    assert judge(supervised, supervised.whole, whole) == (Outcome.EQUAL, "")
    other = folder / "other"
    shutil.copytree(supervised.whole, other)
    (records,) = other.glob("stages/*/metrics.jsonl")
    lines = records.read_text()
    records.write_text(lines.replace('"epoch": 2', '"epoch": 3'))
    assert judge(supervised, other, whole)[0] is Outcome.WRONG
    assert judge(supervised, other, whole, lines=False)[0] is Outcome.EQUAL
    for code, err, outcome in (
        (1, "Traceback\n", Outcome.TRACEBACK),
        (2, "kdjax: two\nlines\n", Outcome.TRACEBACK),
        (2, "kdjax: no advice\n", Outcome.LOST),
        (0, "a warning\n", Outcome.TRACEBACK),
    ):
        ended = whole.__class__(code, "", err)
        assert judge(supervised, supervised.whole, ended)[0] is outcome


@pytest.mark.slow
def test_a_few_mistyped_commands(tmp_path):
    tried = Trials(tmp_path / "trials.json")
    fuzz.trials(25, "short", tmp_path, tried)
    assert "| fuzzed commands | 25 |" in tried.table()
    assert not tried.bad


def test_every_damage_changes_the_file(tmp_path):
    rng = random.Random(0)
    for name, change in damage.DAMAGES.items():
        file = tmp_path / name
        content = np.arange(1, 200, dtype=np.uint8).tobytes()
        file.write_bytes(content)
        change(file, rng)
        assert not file.is_file() or file.read_bytes() != content


def test_the_table_has_a_row_for_every_part(tmp_path):
    trials = Trials(tmp_path / "trials.json")
    trials.add("killed", Outcome.EQUAL, at=1)
    trials.add("killed", Outcome.TOLD, at=2)
    trials.add("full", Outcome.WRONG, at=3)
    assert trials.table().splitlines() == [
        "|  | tried | equal | told | lost | wrong | traceback |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| killed | 2 | 1 | 1 | 0 | 0 | 0 |",
        "| full | 1 | 0 | 0 | 0 | 1 | 0 |",
    ]
    assert [trial["at"] for trial in trials.bad] == [3]
    assert "WRONG".lower() in (tmp_path / "trials.json").read_text()


def test_only_seeds_side_by_side_may_differ_by_rounding(tmp_path, monkeypatch):
    whole = {"student": {"digest": ["a"], "replicas": [[{"loss": 2.0, "epoch": 1}]]}}
    rounded = {
        "student": {"digest": ["b"], "replicas": [[{"loss": 2.00001, "epoch": 1}]]}
    }
    other = {"student": {"digest": ["b"], "replicas": [[{"loss": 2.1, "epoch": 1}]]}}
    found = {"whole": whole, "rounded": rounded, "other": other}
    monkeypatch.setattr(kinds, "result_of", lambda folder, lines: found[folder])
    for name, close in (("supervised", False), ("replicas", True)):
        kind = kinds.Kind(name, (), None, "whole", 0, 0)
        assert kinds.same(kind, "whole")
        assert not kinds.same(kind, "rounded")
        assert kinds.same_but_rounding(kind, "rounded") == close
        assert not kinds.same_but_rounding(kind, "other")


def test_every_file_is_damaged_once_before_one_is_twice(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / name).write_text(name)
    folders = {"finished": tmp_path}
    once = list(damage.chosen(folders, 3, random.Random(0)))
    assert {file for _, file, _ in once} == {"a", "b", "c"}
    every = list(damage.chosen(folders, 100, random.Random(0)))
    assert len(set(every)) == len(every) == 3 * len(damage.DAMAGES)
    assert every[:3] == once
