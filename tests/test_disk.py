"""A disk that is full or broken: one line, exit code 2, and nothing saved is lost."""

import errno
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from kdjax.runtime import disk
from kdjax.runtime.files import replace_whole, write_json
from kdjax.train.checkpoint import Checkpoints

FOLDER = Path("runs/x")

# As the command does it, with a checkpoint in place of a run. A limit of a file's size
# fails writes as a full disk does, also those of orbax's storage library in C++.
PROGRAM = """
import resource, sys
from pathlib import Path

import numpy as np

from kdjax.runtime import command
from kdjax.train.checkpoint import Checkpoints


def save():
    with Checkpoints(Path(sys.argv[1]), keep=2) as keeper:
        keeper.save(1, {"w": np.arange(10.0)}, {})
        keeper._manager.wait_until_finished()
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        random = np.random.default_rng(0)
        large = {f"w{i}": random.normal(size=100_000) for i in range(20)}
        keeper.save(2, large, {})


sys.exit(command.finish(command.run(save)))
"""


def test_a_checkpoint_that_cannot_be_saved(tmp_path):
    begin = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, tmp_path / "kept"],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.count("\n") == 1, ended.stderr
    assert ended.stderr.startswith(
        f"kdjax: a checkpoint cannot be saved: File too large: {tmp_path / 'kept'}; "
        "free some space and run the same command again"
    )
    # Orbax's own threads would wait for ten minutes.
    assert time.monotonic() - begin < 60
    with Checkpoints(tmp_path / "kept") as keeper:
        assert keeper.steps() == [1]
        tree, _ = keeper.restore({"w": np.zeros(10)})
        np.testing.assert_array_equal(tree["w"], np.arange(10.0))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
def test_a_failed_write_names_the_file(tmp_path, number):
    path = tmp_path / "a.json"
    write_json(path, 1)
    with pytest.raises(OSError, match="words") as caught, replace_whole(path):
        raise OSError(number, "words")
    assert disk.is_fault(caught.value)
    assert f": {path}; " in disk.describe(caught.value)
    assert path.read_text() == "1\n"
    assert [one.name for one in tmp_path.iterdir()] == ["a.json"]


def test_folders_are_named_where_no_file_is():
    with pytest.raises(OSError, match="full") as caught, disk.writing_to(FOLDER):
        raise OSError(errno.ENOSPC, "full")
    assert disk.describe(caught.value).startswith(
        "No space left on device: runs/x; free some space and "
    )
    with pytest.raises(OSError, match="broken") as caught, disk.writing_to(FOLDER):
        raise OSError(errno.EIO, "broken", "runs/y")
    assert "runs/y; see to the disk" in disk.describe(caught.value)


def test_texts_of_libraries():
    text = "RESOURCE_EXHAUSTED: Failed to write: No space left on device [code='28']"
    assert disk.number_in(text) == errno.ENOSPC
    assert disk.number_in("an input/output error in lower case") == errno.EIO
    assert disk.number_in("Event loop is closed") is None
