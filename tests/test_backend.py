"""Options of XLA that this jaxlib does not know are left out."""

import subprocess
import sys
from pathlib import Path

import jax
import pytest

from kdjax.runtime import backend
from tests import processes

ROOT = Path(__file__).parents[1]
KNOWN = ("xla_backend_optimization_level", "0")


@pytest.fixture(autouse=True)
def _nothing_was_tried():
    backend._is_accepted.cache_clear()
    yield
    backend._is_accepted.cache_clear()


@pytest.mark.parametrize(
    "refused", [("xla_made_up", "1"), (KNOWN[0], "fast")], ids=["name", "value"]
)
def test_what_the_compiler_refuses_is_left_out_and_told_once(capsys, refused):
    for _ in range(3):
        assert backend._accepted(dict([refused]), "cpu") == {}
    told = capsys.readouterr().out
    assert told.count("\n") == 1
    assert "=".join(refused) in told
    assert "refuses" in told


def test_the_others_are_kept(capsys):
    options = {"xla_made_up": "1", KNOWN[0]: KNOWN[1]}
    assert backend._accepted(options, "cpu") == dict([KNOWN])
    capsys.readouterr()
    assert backend._accepted(dict([KNOWN]), "cpu") == dict([KNOWN])
    assert backend.compiler_options()
    assert backend.start_options()
    assert capsys.readouterr().out == ""


def test_for_another_platform_nothing_is_tried(capsys):
    with backend.compiling_for("tpu"):
        assert backend._accepted({"xla_tpu_made_up": "1"}, "tpu")
        assert backend.compiler_options() == {}
    assert backend._is_accepted.cache_info().misses == 0
    assert capsys.readouterr().out == ""


def test_they_can_be_asked_for_while_a_function_is_traced(capsys):
    def traced(x):
        assert backend._accepted(dict([KNOWN]), "cpu")
        assert not backend._accepted({"xla_made_up": "1"}, "cpu")
        return x

    jax.jit(jax.vmap(traced))(jax.numpy.ones(2))
    assert capsys.readouterr().out.count("\n") == 1


def test_a_run_goes_well_without_them():
    """Both options under names that no jaxlib knows, in a process of its own."""
    code = (
        "import jax, numpy as np\n"
        "from kdjax import models\n"
        "from kdjax.runtime import backend\n"
        "known = backend._accepted\n"
        "backend._accepted = lambda options, platform: known(\n"
        "    {f'{name}_v9': value for name, value in options.items()}, platform)\n"
        "models.init(jax.random.key(0), 'resnet-8', 10, (8, 8, 3))\n"
        "program = jax.jit(lambda x: x + 1).lower(1.0)\n"
        "for _ in range(2):\n"
        "    print(program.compile(backend.compiler_options())(1.0))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True
    )
    lines = ended.stdout.decode().splitlines()
    assert [line.startswith("left out: XLA's option") for line in lines] == [
        True,
        True,
        False,
        False,
    ]
    assert lines[-2:] == ["2.0", "2.0"]


def test_one_of_several_processes_can_try_alone():
    code = (
        "import sys, jax, numpy as np\n"
        "from jax.experimental import multihost_utils\n"
        "from kdjax.runtime import backend, distributed\n"
        "port, process = sys.argv[1:]\n"
        "distributed.start(f'127.0.0.1:{port}', 2, int(process))\n"
        "kept = 0\n"
        "if process == '1':\n"
        "    kept = len(backend._accepted({'xla_made_up': '1'}, 'cpu'))\n"
        "    kept += len(backend.compiler_options())\n"
        "print(multihost_utils.process_allgather(np.int32(kept)).tolist())\n"
    )
    port = str(processes.free_port())
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code, port, str(process)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for process in range(2)
    ]
    out = [process.communicate(timeout=60)[0].splitlines() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert all("[0, 1]" in lines for lines in out)  # beside Gloo's
    assert ["left out" in " ".join(lines) for lines in out] == [False, True]
