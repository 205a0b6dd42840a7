"""The baseline by kdjax and by PyTorch: what is run, kept and compared."""

import json
import subprocess

import pytest

pytest.importorskip("torch", reason="torch, of the benchmarks' extra, is not installed")

import archives
import torch

from benchmarks import baseline, torch_steps, torch_training
from kdjax.data import prepare
from kdjax.experiment.config import parse_config
from kdjax.experiment.flags import parse_flags
from tests import processes

SIZES = ("--train-size=140", "--test-size=30", "--epochs=1")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with 150 training and 30 test images in CIFAR-10's form."""
    archive, folder = (tmp_path_factory.mktemp(name) for name in ("archive", "data"))
    archives.write_cifar10(archive, per_batch=30)
    prepare.prepare("cifar10", folder, archive)
    return folder


@pytest.fixture
def command(data, tmp_path, monkeypatch):
    """Runs the command with stand-ins for the programs; returns status and calls.

    PyTorch's seeds reach 0.5, 0.6 and so on, kdjax's 0.002 more. A call with `failing`
    among its words fails.
    """

    def call(command, failing, calls):
        words = command[2:]
        calls.append(words)
        if failing in words:
            raise subprocess.CalledProcessError(7, words)
        if words[0] == "benchmarks.torch_training":
            options = torch_training.parser().parse_args(words[1:])
            options.out.write_text(
                json.dumps(
                    {
                        "student": {
                            "accuracy": {"student": 0.5 + options.seed / 10},
                            "images": 30,
                            "seconds": 2.0,
                            "device": "a GPU",
                        }
                    }
                )
            )
            return
        parsed = parse_flags(words)
        count = parsed.config["seeds"]
        stage = {
            "test_accuracy": {"final": [0.502 + seed / 10 for seed in range(count)]},
            "images_per_second": [10.0] * count,
        }
        parsed.workdir.mkdir(parents=True, exist_ok=True)
        (parsed.workdir / "results.json").write_text(
            json.dumps({"stages": {"baseline": stage}, "devices": ["a GPU"]})
        )

    def run(*args, failing=""):
        calls = []
        with monkeypatch.context() as patch:
            patch.chdir(processes.ROOT)
            patch.setattr(
                baseline.subprocess,
                "run",
                lambda words, **_: call(words, failing, calls),
            )
            out, workdir = tmp_path / "out.json", tmp_path / "work"
            folders = f"--data-dir={data}", f"--workdir={workdir}", f"--out={out}"
            return baseline.main([*folders, *SIZES, *args]), calls

    return run


def programs(calls):
    return [words[0].rpartition(".")[2] for words in calls]


def test_a_tiny_run_trains_both(data, tmp_path, monkeypatch, capfd):
    for name, value in processes.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(processes.ROOT)
    out = tmp_path / "out.json"
    folders = f"--data-dir={data}", f"--workdir={tmp_path / 'work'}", f"--out={out}"
    assert baseline.main([*folders, *SIZES, "--seeds=1"]) == 0
    found = json.loads(out.read_text())
    for seeds in found["seeds"].values():
        (seed,) = seeds
        # Each of the 30 test images counts once.
        assert 30 * seed["accuracy"] == pytest.approx(round(30 * seed["accuracy"]))
        assert seed["images_per_second"] > 0
        assert seed["device"] == "cpu"
    assert "points, " in capfd.readouterr().out


def test_both_are_given_the_same(command):
    assert command("--seeds=1", "--precision=bf16")[0] == 0
    _, ((_, *ours), (_, _, *theirs)) = command(
        "--seeds=1", "--precision=bf16", "--train-size=128"
    )
    parsed = parse_flags(["kdjax", *ours])
    (stage,) = parsed.stages
    theirs = torch_training.parser().parse_args(["labels", *theirs])
    config = parsed.config
    assert parse_config(config).stages[stage].recipe.epochs == theirs.epochs == 1
    assert config["data"]["dir"] == theirs.data_dir
    assert config["data"]["train_size"] == theirs.train_size == 128
    assert config["data"]["test_size"] == theirs.test_size == 30
    assert config["precision"] == "bf16"
    assert theirs.bf16


def test_the_stage_has_the_recipe_that_pytorch_takes(data, monkeypatch):
    monkeypatch.chdir(processes.ROOT)
    words = ["--config=configs/ctkd_tables.py:table1", "--workdir=w"]
    config = parse_flags(["kdjax", *words]).config
    theirs = baseline.settings(baseline.parse([f"--data-dir={data}"]))
    stage = parse_config(config).stages["baseline"]
    assert stage.recipe.settings() == theirs["recipe"]
    assert config["data"]["augment"] == theirs["augment"]
    assert config["stages"]["baseline"]["model"] == theirs["student"]


def test_a_stopped_command_goes_on_with_the_next_seed(command, tmp_path, capsys):
    status, calls = command("--seeds=3", failing="--seed=1")
    assert status == 7
    assert programs(calls) == ["main", "torch_training"] * 2
    saved = json.loads((tmp_path / "out.json").read_text())
    assert {name: len(seeds) for name, seeds in saved["seeds"].items()} == {
        "kdjax": 2,
        "torch": 1,
    }

    status, calls = command("--seeds=3")
    assert status == 0
    # kdjax finds its stages itself.
    seeds = [word for words in calls for word in words if word.startswith("--seed=")]
    assert seeds == ["--seed=1", "--seed=2"]
    saved = json.loads((tmp_path / "out.json").read_text())
    assert saved["medians"] == pytest.approx({"kdjax": 60.2, "torch": 60.0})
    assert saved["difference"] == pytest.approx(0.2)
    assert "+0.20 points, within 0.3" in capsys.readouterr().out


@pytest.mark.parametrize("other", ["--epochs=2", "--test-size=29", "--layout=NCHW"])
def test_a_seed_of_other_settings_is_trained(command, other):
    assert len(command("--only=torch", "--seeds=1")[1]) == 1
    assert len(command("--only=torch", "--seeds=1")[1]) == 0
    assert len(command("--only=torch", "--seeds=1", other)[1]) == 1


@pytest.mark.parametrize("name", baseline.PROGRAMS)
def test_one_program_alone_has_a_median_and_no_difference(command, name, capsys):
    status, calls = command(f"--only={name}", "--seeds=2")
    assert status == 0
    assert set(programs(calls)) == {"main" if name == "kdjax" else "torch_training"}
    out = capsys.readouterr().out
    assert "55." in out
    assert "points" not in out


@pytest.mark.parametrize(
    ("ours", "near"), [(0.913, True), (0.9131, False), (0.907, True), (0.9069, False)]
)
def test_medians_are_near_within_three_tenths_of_a_point(ours, near):
    def seeds(middle):
        return [{"accuracy": middle + apart} for apart in (-0.1, 0.0, 0.05)]

    found = baseline.compare({"kdjax": seeds(ours), "torch": seeds(0.91)})
    assert found["near"] == near
    assert found["medians"]["kdjax"] == pytest.approx(100 * ours)


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ("--seeds=0", "--seeds=0 is not positive"),
        ("--epochs=-1", "--epochs=-1 is not positive"),
        ("--train-size=0", "train_size of cifar10 must be from 1 to 50000, not 0"),
        (
            "--test-size=10001",
            "test_size of cifar10 must be from 1 to 10000, not 10001",
        ),
        ("--train-size=127", "--train-size=127 is less than a batch of 128"),
        ("--data-dir=nowhere", "data set 'cifar10' not found"),
        ("--workdir=/proc/version/x", "workdir /proc/version/x cannot be written"),
        ("--graph", "--graph needs a GPU"),
        ("--compile", "--compile does not work here: no g++"),
    ],
)
def test_a_wrong_value_ends_in_one_line(command, monkeypatch, capsys, wrong, line):
    monkeypatch.setattr(torch_steps, "missing_compiler", lambda: "no g++")
    monkeypatch.setattr(torch_steps, "device", lambda: torch.device("cpu"))
    assert command(wrong) == (2, [])
    error = capsys.readouterr().err
    assert error.startswith(f"baseline: {line}")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("device", "args", "expected"),
    [
        ("cpu", [], {}),
        ("cpu", ["--compile"], {"compiled": True}),
        ("cuda", [], {"compiled": True, "graph": True}),
        ("cuda", ["--precision=bf16"], {"bf16": True, "compiled": True, "graph": True}),
        ("cuda", ["--no-compile"], {"graph": True}),
        ("cuda", ["--no-graph", "--layout=NCHW"], {"layout": "NCHW", "compiled": True}),
    ],
)
def test_pytorch_runs_in_its_fastest_form(data, monkeypatch, device, args, expected):
    monkeypatch.setattr(torch_steps, "missing_compiler", lambda: "")
    monkeypatch.setattr(torch_steps, "device", lambda: torch.device(device))
    form = baseline.parse([f"--data-dir={data}", *args]).form
    assert form == torch_steps.Form(**expected)


def test_a_gpu_without_a_compiler_runs_in_a_graph(data, monkeypatch):
    monkeypatch.setattr(torch_steps, "missing_compiler", lambda: "no g++")
    monkeypatch.setattr(torch_steps, "device", lambda: torch.device("cuda"))
    form = baseline.parse([f"--data-dir={data}"]).form
    assert form == torch_steps.Form(graph=True)
