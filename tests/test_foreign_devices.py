"""Networks of PyTorch in the compiled step: devices, seeds, bf16, several processes."""

import json
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import own_images
import processes
import pytest
import tiny
from quick import QUICK

pytest.importorskip("torch", reason="torch, of the torch extra, is not installed")

import torch
import torch_own
from torch_parts import needs_torchax

from kdjax.preflight import __main__ as preflight

pytestmark = needs_torchax
STUDENT, TEACHER = "torch_own:Net(width=3, rate=0.3)", "torch_own:Padded"
PAIR = {"student": STUDENT, "teachers": {"expert": TEACHER}}


@pytest.fixture(scope="module")
def alone():
    """The program of one seed on one device."""
    with jax.enable_x64(True):
        return tiny.program("kd", **PAIR)


def frozen(dtype=jnp.float64):
    return tiny.frozen(PAIR["teachers"], dtype=dtype)


def assert_moved(prog, found):
    """The step has moved parameters and running statistics at all."""
    first = prog.start(3, frozen())
    for part in ("params", "batch_stats"):
        old, new = (getattr(state, part)["student"] for state in (first, found[0]))
        moved = [np.abs(old[key] - new[key]).max() > 1e-5 for key in old]
        assert moved
        assert all(moved)


@pytest.mark.usefixtures("x64")
def test_seeds_on_two_devices_are_those_trained_alone(alone):
    together = tiny.program("kd", devices=2, replicas=2, **PAIR)
    found = tiny.many_steps(together, 4, [3, 5], frozen())
    for seed, one in zip((3, 5), found, strict=True):
        expected = tiny.steps(alone, 4, seed)
        chex.assert_trees_all_close(one, expected, rtol=1e-9, atol=1e-12)
    assert found[0][1]["sums"]["loss"] != found[1][1]["sums"]["loss"]
    assert_moved(alone, found[0])


@pytest.mark.usefixtures("x64")
def test_one_seed_over_two_devices_is_that_of_one(alone):
    shared = tiny.program("kd", devices=2, **PAIR)
    found = tiny.steps(shared, 4, 3)
    chex.assert_trees_all_close(found, tiny.steps(alone, 4, 3), rtol=1e-9, atol=1e-12)


def test_bf16_is_computed_in_student_and_teacher():
    def program(compute):
        return tiny.program("kd", dtype=jnp.float32, compute=compute, **PAIR)

    half, whole = program(jnp.bfloat16), program(jnp.float32)
    text = half.lower_train().as_text()
    convolutions = [
        line for line in text.splitlines() if "stablehlo.convolution" in line
    ]
    assert len(convolutions) > 3  # the student's and the teacher's, and gradients
    assert all("bf16>" in line for line in convolutions)
    losses, kept = [], np.dtype(np.float32)
    for prog in (half, whole):
        state, totals = tiny.many_steps(prog, 3, [3], frozen(jnp.float32))[0]
        assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {kept}
        losses.append(float(totals["sums"]["loss"]))
    np.testing.assert_allclose(*losses, rtol=0.02)
    assert losses[0] != losses[1]


@pytest.fixture
def arguments(tmp_path):
    """A config of a teacher and a student of PyTorch."""
    own_images.write(tmp_path / "photos", own_images.splits(), size=(8, 8))
    torch.manual_seed(0)
    torch.save(torch_own.Net(2, 3).state_dict(), tmp_path / "net.pth")
    options = {
        "data": tmp_path / "photos",
        "teacher": "torch_own:Net(width=2)",
        "teacher_weights": tmp_path / "net.pth",
        "student": "torch_own:Padded",
        "batch_size": 8,
        "epochs": 1,
    }
    text = ",".join(f"{key}={value}" for key, value in options.items())
    return f"--config=configs/own.py:{text}"


def test_preflight_compiles_for_hardware_that_is_not_there(
    arguments, tmp_path, monkeypatch, request
):
    monkeypatch.chdir(request.config.rootpath)
    out = tmp_path / "figures.json"
    more = "--topology=cpu:4", "--replicas=2", f"--out={out}"
    assert preflight.main([arguments, *more]) == 0
    figures = json.loads(out.read_text())
    assert figures["stage"] == "student"
    assert figures["replicas"] == 2


@pytest.mark.slow
def test_two_processes_equal_one(arguments, tmp_path):
    def start(folder, *args, **variables):
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "kdjax.main", arguments),
                *("--config.precision=float64", f"--workdir={tmp_path / folder}"),
                *args,
            ],
            cwd=processes.ROOT,
            env=processes.environment(XLA_FLAGS=QUICK, **variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def student(folder, *running):
        """The student's record, once all processes have ended well."""
        said = [process.communicate(timeout=300) for process in running]
        for process, (_, err) in zip(running, said, strict=True):
            assert process.returncode == 0, err
        (path,) = (tmp_path / folder).glob("stages/student-*/result.json")
        (record,) = json.loads(path.read_text())["history"]
        return record

    expected = student("alone", start("alone"))
    port = processes.free_port()
    both = [start("both", *processes.together(port, number)) for number in (0, 1)]
    found = student("both", *both)
    for name, value in expected.items():
        if name.startswith(("train/", "test/")):
            np.testing.assert_allclose(found[name], value, rtol=1e-9)
