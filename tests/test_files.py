"""Files are whole or not there, and nothing of killed processes stays."""

import os
import subprocess
import sys

import numpy as np
import pytest

from kdjax.experiment.stage import parse_stage
from kdjax.runtime.errors import UserError
from kdjax.runtime.files import (
    read_checked_json,
    remove_leftovers,
    replace_whole,
    write_checked_json,
    write_json,
)
from kdjax.train import recordings

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


def flipped(path, place):
    """Flips the lowest bit of a byte."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_every_bit_of_a_checked_file_counts(tmp_path):
    file, value = tmp_path / "result.json", {"accuracy": 0.5, "of": (1, 2), "b": None}
    write_checked_json(file, value)
    whole = file.read_bytes()
    assert read_checked_json(file) == {"accuracy": 0.5, "of": [1, 2], "b": None}
    for place in range(len(whole)):
        flipped(file, place)
        try:
            found = read_checked_json(file)
        except ValueError:
            pass
        else:  # white space, or the name 'checksum'
            assert found == {"accuracy": 0.5, "of": [1, 2], "b": None} or (
                b'"checksum"' not in file.read_bytes()
            )
        file.write_bytes(whole)
    write_json(file, value)  # as earlier versions did
    assert read_checked_json(file)["accuracy"] == 0.5


def test_a_flipped_bit_of_a_recording_is_told(tmp_path):
    logits = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    recordings.write(tmp_path, 2, logits)
    file = recordings.path(tmp_path, 2)
    np.testing.assert_array_equal(recordings.read(tmp_path, 2, (6, 3)), logits)
    whole = file.read_bytes()
    first = whole.index(logits.tobytes())
    for place in range(first, first + logits.nbytes):
        flipped(file, place)
        with pytest.raises(UserError, match="cannot be read"):
            recordings.read(tmp_path, 2, (6, 3))
        file.write_bytes(whole)
    with pytest.raises(UserError, match=r"has shape \(6, 3\), not \(6, 4\)"):
        recordings.read(tmp_path, 2, (6, 4))


def test_recordings_of_earlier_versions_are_read(tmp_path):
    (tmp_path / "recording").mkdir()
    np.save(tmp_path / "recording" / "epoch-0001.npy", np.ones((6, 3), np.float32))
    assert recordings.read(tmp_path, 1, (6, 3)).sum() == 18
