"""Files are whole or not there, and nothing of killed processes stays."""

import os
import subprocess
import sys

import pytest

from kdjax.experiment.stage import parse_stage
from kdjax.runtime.errors import UserError
from kdjax.runtime.files import remove_leftovers, replace_whole

KILLED = """
import os, signal, sys
from pathlib import Path
from kdjax.runtime.files import replace_whole
with replace_whole(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_leftovers_of_killed_processes_are_removed(tmp_path):
    file = tmp_path / "stages" / "one" / "result.json"
    file.parent.mkdir(parents=True)
    subprocess.run([sys.executable, "-c", KILLED, file], check=False)
    (half,) = file.parent.iterdir()
    foreign = file.with_name("result.json.another-host.1.tmp")
    foreign.touch()
    own = file.with_name("notes.tmp")
    own.touch()
    with replace_whole(file) as writing:
        writing.write_text("whole")
        remove_leftovers(tmp_path)
        assert writing.exists()  # its process is alive
    assert not half.exists()
    assert sorted(file.parent.iterdir()) == sorted([file, foreign, own])
    remove_leftovers(tmp_path / "absent")
    assert str(os.getpid()) not in str(list(tmp_path.rglob("*")))


NAMES = ["a/b", "/tmp/a", "..", ".a", "a[1]", "a*", "a?", "", "a\0", "a b", "x" * 101]


@pytest.mark.parametrize("name", NAMES)
def test_names_of_stages_that_cannot_be_folders(name):
    with pytest.raises(UserError, match="a stage's name has 1 to 100 of") as caught:
        parse_stage(name, {"model": "plain-2"}, {})
    assert len(str(caught.value)) < 200


def test_names_of_stages_that_can_be_folders():
    names = ["a", "crd+kd-10-8.6", "_x", "-", "x" * 100]
    for name in names:
        parsed = parse_stage(
            name, {"model": "plain-2"}, {"recipe": {"epochs": 1}, "seeds": 1}
        )
        assert parsed.name == name
