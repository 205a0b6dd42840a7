"""What benchmarks.epochs trains, counts and keeps; no times."""

import argparse
import json
from pathlib import Path

import pytest

from benchmarks import epochs, measure
from kdjax.experiment.config import parse_config
from kdjax.experiment.flags import parse_flags
from tests.others import Watch


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
