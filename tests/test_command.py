"""Every command ends alike, and answers wrong flags before JAX is imported."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from kdjax.runtime import command
from kdjax.runtime.errors import UserError
from kdjax.runtime.signals import Interrupted

BROKEN = OSError(errno.EIO, "Input/output error")
FOLDER = OSError(errno.EISDIR, "Is a directory", "runs/x.tmp", None, "runs/x.json")
FULL = OSError(errno.ENOSPC, "No space left on device", "runs/x")


def failing(error):
    def fail():
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("epochs=0"), 2, "epochs=0"),
        (FULL, 2, "No space left on device: runs/x; free some space"),
        (BROKEN, 2, "Input/output error; see to the disk and run the same command"),
        (
            FOLDER,
            2,
            "runs/x.json is a folder, but must be a file; delete runs/x.json ",
        ),
        (MemoryError("allocate 5 GiB"), 2, "there is not enough memory: allocate"),
        (UserError("a" * 5000 + "b"), 2, "aaa"),
        (Interrupted(15), 143, "stopped by SIGTERM; the same command continues from"),
    ],
)
def test_what_a_user_can_correct_is_one_line(capsys, error, code, line):
    assert command.run(failing(error)) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"kdjax: {line}")
    assert err.count("\n") == 1
    assert len(err) <= 300
    assert command.run(failing(error), prefix="") == code
    assert capsys.readouterr().err.startswith(line)


@pytest.mark.parametrize("error", [OSError(errno.EBADF, "broken"), KeyError("a")])
def test_a_mistake_of_the_program_is_raised(error):
    with pytest.raises(type(error)):
        command.run(failing(error))


def test_success(capsys):
    assert command.run(lambda: None) == 0
    assert capsys.readouterr() == ("", "")


def test_wrong_flags_are_answered_before_jax_is_imported():
    code = (
        "import sys\n"
        "from kdjax import main\n"
        "from kdjax.analysis import __main__ as analysis\n"
        "from kdjax.data import prepare\n"
        "from kdjax.preflight import __main__ as preflight\n"
        "from kdjax.sweep import __main__ as sweep\n"
        "assert main.main(['kdjax', '--workdir=w']) == 2\n"
        "assert sweep.main(['sweep', '--workdir=w']) == 2\n"
        "assert preflight.main(['--config=c']) == 2\n"
        "assert analysis.main(['--examples=-1', 'w']) == 2\n"
        "assert prepare.main(['nope']) == 2\n"
        "assert 'jax' not in sys.modules\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    *lines, last = ended.stderr.splitlines()
    assert len(lines) == 4
    assert all(line.startswith("kdjax: ") for line in lines)
    assert last.startswith("unknown data set 'nope'")
