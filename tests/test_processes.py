"""A whole chain on two processes of two devices: the results of one device alone."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import processes
import pytest
from quick import QUICK

pytestmark = pytest.mark.slow
ARG = "digits,path=plain3/plain2,epochs=10,train_size=192,test_size=50,seeds=2"
CONFIG = [f"--config=configs/dgkd.py:{ARG}", "--config.precision=float64"]
TOGETHER = {"JAX_NUM_CPU_DEVICES": "2"}


def start(folder, *args, **variables):
    return subprocess.Popen(
        [sys.executable, "-m", "kdjax.main", *CONFIG, f"--workdir={folder}", *args],
        cwd=processes.ROOT,
        env=processes.environment(XLA_FLAGS=QUICK, **variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def both(folder, *args):
    port = processes.free_port()
    return [
        start(folder, *processes.together(port, i), *args, **TOGETHER) for i in (0, 1)
    ]


def finish(*running):
    """Returns what each printed, once all have ended well."""
    said = [process.communicate(timeout=300) for process in running]
    for process, (_, err) in zip(running, said, strict=True):
        assert process.returncode == 0, err
    return [out for out, _ in said]


def records(folder):
    """Every replica's records, by stage and seed."""
    found = {}
    for path in sorted(folder.glob("stages/*/result.json")):
        result = json.loads(path.read_text())
        name = path.parent.name.split("-")[0]
        found[name, result["seed"]] = result["history"]
    return found


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert len(found) == 4
    for key, history in expected.items():
        for ours, theirs in zip(found[key], history, strict=True):
            for name, value in theirs.items():
                if name.startswith(("train/", "test/")):
                    # The bank rounds to float16: what lies between two numbers there
                    # may fall to either side.
                    np.testing.assert_allclose(ours[name], value, rtol=2e-3)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    finish(start(folder))
    return records(folder)


def test_two_processes_of_two_devices_equal_one_device(alone, tmp_path):
    first, second = finish(*both(tmp_path))
    assert_same(records(tmp_path), alone)
    assert "S2 seed 1  epoch 10/10" in first
    assert "epoch" not in second  # one of them speaks
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["devices"] == ["cpu"] * 4
    assert results["stages"]["T3"]["test_accuracy"]["final"]
    assert not list((tmp_path / "bank").glob("*/*"))
    # Without teachers nothing is rounded: equal to the rounding of float64.
    for seed in (0, 1):
        ours, theirs = records(tmp_path)["T3", seed], alone["T3", seed]
        np.testing.assert_allclose(
            [record["train/loss"] for record in ours],
            [record["train/loss"] for record in theirs],
            rtol=1e-9,
        )


def test_a_killed_process_ends_the_other_and_one_goes_on(alone, tmp_path):
    running = both(tmp_path, "--config.saving.every_s=0")
    deadline = time.monotonic() + 200
    while not list(tmp_path.glob("stages/S2-*/checkpoints/*/_CHECKPOINT_METADATA")):
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in running)
        time.sleep(0.02)
    os.kill(running[1].pid, signal.SIGKILL)
    begin = time.monotonic()
    _, err = running[0].communicate(timeout=60)
    assert time.monotonic() - begin < 60
    assert running[0].returncode == 1
    assert "another process of this run ended" in err
    running[1].communicate()
    finish(start(tmp_path))
    assert_same(records(tmp_path), alone)
