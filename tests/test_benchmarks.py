"""What the benchmarks count and report; no times."""

import argparse
import importlib.util
import json
import re

import jax
import numpy as np
import pytest

from benchmarks import (
    _kdjax,
    crd,
    host,
    kernels,
    measure,
    methods,
    start,
    steps,
    torch_chain,
)
from benchmarks.cases import CASES, tiny
from kdjax.runtime.errors import UserError
from tests.others import Watch


def test_spread_and_ratio_are_medians_with_quartiles():
    found = measure.spread([4, 1, 2, 3, 100])
    assert (found["median"], found["quartiles"]) == (3.0, [2.0, 4.0])
    # Round by round: a slow round of both leaves the ratio alone.
    assert measure.quotient([2, 20, 4], [1, 10, 2])["values"] == [2.0, 2.0, 2.0]
    assert measure.figure(found, ".1f", 10) == "30.0 [20.0, 40.0]"


def test_rounds_are_interleaved_and_disturbed_ones_measured_again():
    log = []

    def turn(name):
        def measured():
            log.append(name)
            return float(len(log))

        return measured

    turns = {name: turn(name) for name in "ab"}
    found = measure.interleave(turns, 2, 0.1, Watch([0.0, 0.5, 0.1]))
    assert "".join(log) == "ababab"
    assert found == {
        "values": {"a": [1.0, 5.0], "b": [2.0, 6.0]},
        "kept": [0, 2],
        "discarded": 1,
        "others": [0.0, 0.1],
    }


def test_a_machine_that_stays_busy_ends_the_benchmark():
    turns = {"a": lambda: 1.0}
    with pytest.raises(UserError, match=re.escape("5 of 6 rounds were disturbed")):
        measure.interleave(turns, 2, 0.1, Watch([0.0, 0.9, 0.9, 0.9, 0.9, 0.9]))


def test_others_leave_out_our_own_work(monkeypatch):
    clock = {"busy": 100.0, "own": 10.0, "now": 0.0}
    monkeypatch.setattr(measure, "busy_seconds", lambda: clock["busy"])
    monkeypatch.setattr(measure, "own_seconds", lambda: clock["own"])
    monkeypatch.setattr(measure.time, "perf_counter", lambda: clock["now"])
    monkeypatch.setattr(measure.os, "cpu_count", lambda: 2)
    watch = measure.Others()
    # Ten seconds of two cores: twelve of ours, three of others, five idle.
    clock.update(busy=115.0, own=22.0, now=10.0)
    assert watch.share() == pytest.approx(3 / 20)
    monkeypatch.setattr(measure, "busy_seconds", lambda: None)
    assert watch.share() == 0.0


def test_figures_are_saved_with_versions_and_load(tmp_path):
    measure.save(tmp_path / "out.json", {"cases": [1]})
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["cases"] == [1]
    assert found["versions"]["jax"] == jax.__version__
    assert len(found["load"]) == 3
    measure.save(None, {})


def test_steps_are_compared_with_the_fastest_of_the_same_precision(capsys):
    found = steps.compare(
        {
            "kdjax": [2.0, 4.0],
            "kdjax bf16": [1.0, 1.0],
            "torch eager": [6.0, 12.0],
            "torch CUDA graph": [3.0, 6.0],
            "torch CUDA graph bf16": [2.5, 2.5],
        }
    )
    assert found["fastest"] == {
        "kdjax": "torch CUDA graph",
        "kdjax bf16": "torch CUDA graph bf16",
    }
    assert found["ratio"]["kdjax"]["torch CUDA graph"]["values"] == [1.5, 1.5]
    assert list(found["ratio"]["kdjax bf16"]) == ["torch CUDA graph bf16"]
    steps.show([{"method": "kd", "discarded": 4, **found}])
    rows = [
        [cell.strip() for cell in line.strip("│").split("│")]
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("│")
    ]
    assert [row[3] for row in rows] == [
        "",
        "",
        "3.00 [3.00, 3.00]",
        "1.50 [1.50, 1.50] *",
        "2.50 [2.50, 2.50] *",
    ]
    assert rows[0] == ["kd", "kdjax", "3000.00 [2500.00, 3500.00]", "", "4"]


def test_a_turn_leaves_its_first_call_out(monkeypatch):
    seconds = iter([0.0, 8.0])  # asked for after the first call
    calls = []
    monkeypatch.setattr(steps.time, "perf_counter", lambda: next(seconds))
    assert steps.turn(lambda: calls.append(1), 2, steps=4)() == 1.0
    assert len(calls) == 3


def test_every_case_is_one_that_kdjax_trains():
    for case in CASES.values():
        assert set(case.roles()) == (
            {"student", "scratch"} if case.method == "ctkd" else {"student"}
        )
        assert tiny(case).models() == {"wrn-10-1"}
    assert CASES["dgkd"].teachers == {
        "T40": "wrn-40-1",
        "A34": "wrn-34-1",
        "A28": "wrn-28-1",
        "A22": "wrn-22-1",
    }


def test_the_clock_of_the_host_counts_questions_and_never_interrupts():
    clock = host.Clock()
    clock.raise_if_set()
    assert clock.number is None
    assert len(clock.times) == 2
    assert np.all(np.diff(clock.times, axis=0) >= 0)


def test_kernels_of_a_gpu_need_its_compiler(monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda module: None)
        assert kernels.main(["--cases", "supervised"]) == 2
    assert "jax-cuda12-plugin" in capsys.readouterr().out


def test_kernels_are_added_up(capsys):
    parts = {"reductions": kernels.Part(2, 500_000), "update": kernels.Part(1, 10**6)}
    kernels.show("ctkd", parts, 2)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["all", "3", "1.5"] in [[w for w in row if w not in "│|"] for row in rows]


def test_a_cached_start_is_compared_with_the_cold_one_before_it(monkeypatch):
    asked = []

    def fake(name, cache, tiny):
        cold = cache not in [folder for folder, _ in asked]
        asked.append((cache, cold))
        return {"compile": 8.0 if cold else 2.0, "first_step": 10.0 if cold else 5.0}

    monkeypatch.setattr(start, "start", fake)
    options = argparse.Namespace(rounds=2, busy=1.0, tiny=True)
    found = start.run("ctkd", options)
    assert [cold for _, cold in asked] == [True, False, True, False]
    assert found["compile"]["ratio"]["median"] == 0.25
    assert found["first_step"]["ratio"]["median"] == 0.5


def test_the_chain_is_compared_with_each_form_of_pytorch(monkeypatch, capsys):
    def ours(options, assistants, augment, bank):
        assert (assistants, augment, bank) == (3, "none", True)
        return {"seconds": 10.0, "accuracy": 0.1, "compile_seconds": 4.0, "passes": 4}

    def theirs(options, assistants, flags):
        return {"seconds": 30.0 if "--with-grad" in flags else 20.0, "accuracy": 0.2}

    monkeypatch.setattr(torch_chain.chain, "run", ours)
    monkeypatch.setattr(torch_chain, "theirs", theirs)
    monkeypatch.setattr(measure.interleave, "__defaults__", (Watch([0.0]),))
    found = torch_chain.run(argparse.Namespace(rounds=1, busy=0.1), 3)
    ratios = {name: figures["median"] for name, figures in found["ratio"].items()}
    assert ratios == {
        "torch, released": 3.0,
        "torch, no_grad": 2.0,
        "torch, no_grad, channels_last": 2.0,
    }
    torch_chain.show([found])
    assert "3.00 [3.00, 3.00]" in capsys.readouterr().out


def test_methods_are_compared_with_kd_and_with_labels_alone(tmp_path, capsys):
    def stage(method, accuracy, speed, trained):
        return {
            "method": method,
            "parameters": 100,
            "trained_parameters": trained,
            "images_per_second": [speed],
            "test_accuracy": {"final": [accuracy], "median": accuracy},
            "test_top5": {"median": 0.9},
        }

    stages = {
        "teacher": stage("supervised", 0.5, 100.0, 300),
        "supervised": stage("supervised", 0.25, 500.0, 100),
        "kd": stage("kd", 0.375, 400.0, 100),
        "vid": stage("vid", 0.3, 200.0, 150),
    }
    path, out = tmp_path / "results.json", tmp_path / "out.json"
    data = {"name": "digits", "dir": "a/folder/of/mine"}
    path.write_text(json.dumps({"stages": stages, "config": {"data": data}}))
    assert methods.main([str(tmp_path), "--markdown", f"--out={out}"]) == 0
    assert json.loads(out.read_text())["config"] == {"data": {"name": "digits"}}
    assert capsys.readouterr().out.splitlines()[2:] == [
        "| supervised | 25.00 | 90.00 | 0.80 | 0 |",
        "| kd | 37.50 | 90.00 | 1.00 | 0 |",
        "| vid | 30.00 | 90.00 | 2.00 | 50 |",
    ]
    # The times of another run: there VID takes four times as long as KD.
    stages["vid"]["images_per_second"] = [100.0]
    (tmp_path / "quiet").mkdir()
    quiet = tmp_path / "quiet" / "results.json"
    quiet.write_text(json.dumps({"stages": stages, "config": {}}))
    times = f"--times={quiet.parent}"
    assert methods.main([str(tmp_path), "--markdown", times]) == 0
    assert "| vid | 30.00 | 90.00 | 4.00 | 50 |" in capsys.readouterr().out
    del stages["vid"]
    quiet.write_text(json.dumps({"stages": stages, "config": {}}))
    assert methods.main([str(tmp_path), times]) == 2
    assert "no stage 'vid'" in capsys.readouterr().out
    del stages["kd"]
    path.write_text(json.dumps({"stages": stages, "config": {}}))
    assert methods.main([str(tmp_path)]) == 2
    assert "no stage 'kd'" in capsys.readouterr().out


def test_crd_and_kd_are_measured_with_the_same_networks(monkeypatch, tmp_path):
    found = crd.cases(16)
    assert found["kd"].models() == found["crd"].models() == {"resnet-20", "resnet-56"}
    assert found["crd"].options == {"negatives": 16}
    ran = []

    class Runner:
        steps = 1

        def __init__(self, case):
            self.case = case

        def __call__(self):
            ran.append(self.case.method)

    monkeypatch.setattr(_kdjax, "program", lambda case: case)
    monkeypatch.setattr(_kdjax, "Runner", Runner)
    out = tmp_path / "crd.json"
    argv = ["--tiny", "--rounds=1", "--calls=1", "--busy=9", f"--out={out}"]
    assert crd.main(argv) == 0
    assert set(ran) == {"kd", "crd"}
    assert json.loads(out.read_text())["ratio"]["median"] > 0
