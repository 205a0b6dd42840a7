"""What the benchmarks count and report; no times."""

import argparse
import importlib.util
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks import (
    _kdjax,
    crd,
    epochs,
    host,
    kernels,
    measure,
    methods,
    start,
    steps,
    torch_chain,
)
from benchmarks.cases import CASES, tiny
from kdjax.experiment.config import parse_config
from kdjax.experiment.flags import parse_flags
from kdjax.runtime.errors import UserError


def test_spread_and_ratio_are_medians_with_quartiles():
    found = measure.spread([4, 1, 2, 3, 100])
    assert (found["median"], found["quartiles"]) == (3.0, [2.0, 4.0])
    # Round by round: a slow round of both leaves the ratio alone.
    assert measure.quotient([2, 20, 4], [1, 10, 2])["values"] == [2.0, 2.0, 2.0]
    assert measure.figure(found, ".1f", 10) == "30.0 [20.0, 40.0]"


class Watch:
    """Says in turn how busy others were."""

    def __init__(self, shares):
        self._shares = iter(shares)

    def __call__(self):
        return self

    def share(self):
        return next(self._shares)


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
    kernels.show("ctkd", parts)
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


def _epochs_options(**options):
    sizes = {"train_size": 8, "test_size": 4, "epochs": 1}
    common = {"precision": "float32", "rounds": 2, "busy": 0.1, "out": None}
    return argparse.Namespace(**{**sizes, **common, **options})


def test_epochs_take_the_rounds_that_are_kept(monkeypatch, capsys):
    def rates(speed):
        return {
            stage: {
                "images_per_second": speed,
                "accuracy": 0.5,
                "compile_seconds": 7.0,
            }
            for stage in epochs.STAGES
        }

    # The first round is disturbed.
    fast = {"joint": iter([1.0, 600.0, 900.0]), "replay": iter([2.0, 1200.0, 2400.0])}
    monkeypatch.setattr(
        epochs, "ours", lambda options, scratch, cache: rates(next(fast[scratch]))
    )
    monkeypatch.setattr(epochs, "theirs", lambda options, flags, cache: rates(300.0))
    monkeypatch.setattr(epochs, "rivals", lambda precision: {"torch NCHW": []})
    monkeypatch.setattr(measure.interleave, "__defaults__", (Watch([0.9, 0.0, 0.0]),))
    found = epochs.run(_epochs_options())
    ratio = found["stages"]["ctkd"]["ratio"]
    assert ratio["kdjax"]["torch NCHW"]["values"] == [2.0, 3.0]
    assert ratio["replay"]["torch NCHW"]["values"] == [4.0, 8.0]
    assert ratio["replay"]["kdjax"]["values"] == pytest.approx([2.0, 8 / 3])
    epochs.show(found)
    assert "2.50 [2.25, 2.75]" in capsys.readouterr().out


def test_epochs_that_are_stopped_leave_what_they_have(monkeypatch, tmp_path):
    figures = {"images_per_second": 100.0, "accuracy": 0.5, "compile_seconds": 1.0}
    rates = dict.fromkeys(epochs.STAGES, figures)

    def stopped(options, flags, cache):
        raise KeyboardInterrupt

    monkeypatch.setattr(epochs, "ours", lambda options, scratch, cache: rates)
    monkeypatch.setattr(epochs, "theirs", stopped)
    monkeypatch.setattr(epochs, "rivals", lambda precision: {"torch NCHW": []})
    out = tmp_path / "epochs.json"
    with pytest.raises(KeyboardInterrupt):
        epochs.run(_epochs_options(out=out))
    saved = json.loads(out.read_text())
    assert saved["runs_so_far"] == {"kdjax": [rates], "replay": [rates]}
    assert saved["epochs"] == 1


@pytest.mark.parametrize("scratch", ["joint", "replay"])
def test_epochs_train_the_form_that_they_name(monkeypatch, tmp_path, scratch):
    found = {
        "steps": 4,
        "seconds": 2.0,
        "compile_seconds": 1.0,
        "networks": {"student": {"test_accuracy": 0.5}},
    }

    def run(command, **kwargs):
        args = command[command.index("kdjax.main") :]
        stages = parse_config(parse_flags(args).config).stages
        assert stages["student"].method.replay == (scratch == "replay")
        assert stages["expert"].recipe.epochs == 3
        assert "--config.precision=bf16" in args
        workdir = args[-1].removeprefix("--workdir=")
        for stage in epochs.STAGES:
            folder = Path(workdir, "stages", f"{stage}-0123")
            folder.mkdir(parents=True)
            (folder / "result.json").write_text(json.dumps(found))

    monkeypatch.setattr(epochs.subprocess, "run", run)
    sizes = {"train_size": 512, "test_size": None, "data_dir": None}
    sizes["precision"] = "bf16"
    options = argparse.Namespace(epochs=3, **sizes)
    rates = epochs.ours(options, scratch, tmp_path)
    assert rates["student"]["images_per_second"] == 4 * 128 / 2.0


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
