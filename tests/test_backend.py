"""Options of XLA that this jaxlib does not know are left out."""

import os
import shutil
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


@pytest.fixture
def gpu(monkeypatch):
    """As if this process ran on a GPU; returns how often cuDNN was started."""
    started = []
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(backend, "_start_cudnn", lambda: started.append(1))
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    return started


def test_on_a_gpu_convolutions_join_command_buffers_once_cudnn_has_started(gpu):
    (options,) = backend.compiler_options().items()
    assert options[0] == "xla_gpu_enable_command_buffer"
    assert {"CONVOLUTION", "FUSION", "CUBLAS"} <= set(options[1].split(","))
    assert gpu


def test_a_user_s_own_choice_of_command_buffers_stays(gpu, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_enable_command_buffer=+WHILE")
    assert backend.compiler_options() == {}
    assert gpu  # it may be a choice with convolutions


def test_compiling_for_a_gpu_elsewhere_starts_nothing(monkeypatch):
    monkeypatch.setattr(backend, "_start_cudnn", pytest.fail)
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    with backend.compiling_for("gpu"):
        assert backend.compiler_options()


def test_cudnn_is_started_on_every_device_outside_of_command_buffers(monkeypatch):
    compiled = []
    jit = jax.jit

    def noted(function, **options):
        compiled.append(options["compiler_options"])
        return jit(function, **options)  # the option is known on CPU, too

    monkeypatch.setattr(backend.jax, "jit", noted)
    backend._start_cudnn.__wrapped__()
    none = {"xla_gpu_enable_command_buffer": ""}
    assert compiled == [none] * len(jax.local_devices())


@pytest.mark.skipif(
    not shutil.which("nvidia-smi"), reason="needs a GPU: command buffers are CUDA's"
)
def test_a_second_start_runs_what_the_first_has_compiled(tmp_path):
    """The program comes from the cache, and cuDNN has tuned nothing in the process."""
    env = {**os.environ, "KDJAX_CACHE": str(tmp_path)}
    env = {k: v for k, v in env.items() if k not in ("JAX_PLATFORMS", "XLA_FLAGS")}
    code = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "import jax, tiny\n"
        "from kdjax.runtime import backend\n"
        "assert jax.default_backend() == 'gpu'\n"
        "backend.use_compilation_cache()\n"
        "made = tiny.program(student='resnet-8', dtype=jax.numpy.float32)\n"
        "tiny.steps(made, 3)\n"
    )
    for _ in range(2):
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, check=True)


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
