"""The command that exports finished networks: what it refuses, and how."""

import dataclasses
import json
import re
import shutil

import jax
import numpy as np
import pytest
import tiny
from own_images import splits, write
from PIL import Image

pytest.importorskip("onnxruntime", reason="onnxruntime, of 'export', is not installed")


from exported_runs import FEW, about, finish, told

from kdjax.data.own.vary import Vary
from kdjax.experiment import finished
from kdjax.experiment.config import parse_config
from kdjax.experiment.run import Run
from kdjax.export import images, options, sessions, stablehlo, verify
from kdjax.export import onnx as writer
from kdjax.export.__main__ import main
from kdjax.export.images import Part, take
from kdjax.runtime.errors import UserError
from kdjax.runtime.signals import Interrupt


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run of a teacher, its student, and one with its teacher's classifier."""
    stages = {
        "expert": ("wrn-10-1", None),
        "student": ("resnet-8", None, "expert"),
        "reuses": (f"simkd-2:{tiny.STUDENT}:resnet-8", None, "expert"),
    }
    return finish(tmp_path_factory.mktemp("run"), stages)


@pytest.fixture(autouse=True)
def _measured_briefly(monkeypatch):
    monkeypatch.setattr(sessions, "_SECONDS", 0.01)


@pytest.mark.parametrize("format", ["onnx", "stablehlo"])
def test_what_computes_otherwise_is_not_written(
    workdir, tmp_path, monkeypatch, capsys, format
):
    module = writer if format == "onnx" else stablehlo
    write = module.write

    def wrong(network, *args, **kwargs):
        half = jax.tree.map(lambda leaf: leaf * 1.001, network.variables)
        write(dataclasses.replace(network, variables=half), *args, **kwargs)

    monkeypatch.setattr(module, "write", wrong)
    argv = [workdir, "--stage=student", f"--out={tmp_path / 'out'}"]
    line = told([*argv, f"--format={format}"], capsys)
    assert f"model.{format} is not exported: on 256 test images its logits" in line
    assert "off by up to 0.0" in line
    assert not list(tmp_path.iterdir())


def test_the_bound_is_relative_to_the_largest_logit():
    part = Part(np.zeros((2, 8, 8, 1), np.uint8), np.array([0, 1], np.int32), 2)
    small, large = np.array([[0.5, 0.1], [0.1, 0.6]]), np.array([[50.0, 1], [1, 60]])
    verify.check(small + 9e-5, small, part, "model.onnx")
    verify.check(large + 5e-3, large, part, "model.onnx")
    for logits, expected, words in (
        (small + 2e-4, small, "off by up to 0.0002 "),
        (large + 7e-3, large, "allowed: 0.006"),
        (small * np.nan, small, "not finite"),
        (small[:, :1], small, "(2, 1)"),
    ):
        with pytest.raises(UserError, match=re.escape(words)):
            verify.check(logits, expected, part, "model.onnx")
    tie = np.array([[0.1, 0.1], [0.1, 0.6]])
    with pytest.raises(UserError, match="1 of them are right, of kdjax's 2"):
        verify.check(tie + np.array([[0, 1e-5], [0, 0]]), tie, part, "model.onnx")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--stage=pupil"], "unknown stage of {}: 'pupil'; choices: expert, student"),
        (["--stage=student", "--seed=3"], "unknown seed of student in {}: 3"),
        (["--stage=student", "--format=tflite"], "unknown format 'tflite'; choices: "),
        (
            ["--stage=reuses", "--format=torch"],
            "unknown family with a form in PyTorch",
        ),
        (["--stage=student", "--format=torch", "--int8"], "int8 is for format onnx, "),
        (["--stage=student", "--format=safetensors", "--uint8"], "uint8 is for format"),
        (["--stage=student", "--opset=7"], "opset 7; choices: 13 to "),
        (["--stage=student", "--calibration=0"], "calibration=0 must be at least 1"),
        (["--stage=student", "--calibration=5"], "calibration=5 is for 8 bits: give "),
        (["--stage=student", "--activations=uint8"], "activations=uint8 is for 8 bits"),
        (["--stage=student", "--data=nowhere"], "data=nowhere: no such file or folder"),
        (
            ["--stage=student", "--activations=int4"],
            "unknown activations 'int4'; choices: int8, uint8",
        ),
        (
            ["--stage=student", "--format=torch", "--layout=mine"],
            "unknown layout of resnet-8 'mine'; choices: ",
        ),
        ([], "the following arguments are required: --stage"),
    ],
)
def test_mistakes(workdir, tmp_path, capsys, argv, words):
    if words.startswith("unknown") and "--format=torch" in argv:
        pytest.importorskip("torch", reason="torch is not installed")
    line = told([workdir, *argv, f"--out={tmp_path / 'out'}"], capsys)
    assert words.replace("{}:", f"{workdir}").replace("{}", str(workdir)) in line
    assert not list(tmp_path.iterdir())


def test_folders_that_are_none(workdir, tmp_path, capsys):
    line = told([tmp_path, "--stage=student", f"--out={tmp_path / 'out'}"], capsys)
    assert f"{tmp_path / 'results.json'} not found" in line
    (tmp_path / "model.onnx").touch()
    line = told([workdir, "--stage=student", f"--out={tmp_path}"], capsys)
    assert line == f"kdjax: {tmp_path} is not empty: choose another folder"
    line = told(
        [workdir, "--stage=student", f"--out={tmp_path / 'model.onnx'}"], capsys
    )
    assert line == f"kdjax: {tmp_path / 'model.onnx'} is a file: choose a new folder"
    file = tmp_path / "model.onnx" / "out"
    line = told([workdir, "--stage=student", f"--out={file}"], capsys)
    assert f"{file} cannot be written" in line


def test_an_onnxruntime_that_is_too_old(workdir, tmp_path, monkeypatch, capsys):
    def refuse(*_, **__):
        raise RuntimeError("Unsupported model IR version: 14,\nmax: 10")

    monkeypatch.setattr(sessions.onnxruntime, "InferenceSession", refuse)
    argv = [workdir, "--stage=student", f"--out={tmp_path / 'out'}"]
    line = told([*argv, f"--opset={writer.newest()}"], capsys)
    assert "kdjax: model.onnx is not exported: onnxruntime " in line
    assert line.endswith(
        " cannot open it; a smaller opset may help: Unsupported model IR version: 14, "
        "max: 10"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("format", "package", "extra"),
    [("onnx", "onnxruntime", "export"), ("torch", "torch", "torch")],
)
def test_packages_that_are_missing(
    workdir, tmp_path, monkeypatch, capsys, format, package, extra
):
    find = options.importlib.util.find_spec
    monkeypatch.setattr(
        options.importlib.util,
        "find_spec",
        lambda name: None if name == package else find(name),
    )
    argv = [workdir, "--stage=expert", f"--format={format}", f"--out={tmp_path / 'a'}"]
    assert told(argv, capsys) == (
        f"kdjax: format {format} needs {package}, which is not installed: "
        f"pip install 'kdjax[{extra}]'"
    )


def test_predictions_have_no_network(workdir, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(workdir, folder)
    results = finished.results_of(folder)
    results["stages"]["expert"]["given"] = ["logits.npy"]
    (folder / "results.json").write_text(json.dumps(results))
    line = told([folder, "--stage=expert", f"--out={tmp_path / 'a'}"], capsys)
    assert "stage 'expert' is a table of predictions: there is no network" in line
    out = tmp_path / "out"
    assert main([str(folder), "--stage=student", f"--out={out}", *FEW]) == 0
    note = "expert is not in the table: teacher 'expert' is a table of predictions"
    assert note in capsys.readouterr().out
    assert note in (out / "README.md").read_text()
    table = json.loads((out / "table.json").read_text())
    assert [row["stage"] for row in table["rows"]] == ["student"]


def test_images_that_moved(tmp_path, capsys):
    """Found again by --data; other images are refused; streamed ones are the same."""
    place, moved = tmp_path / "photos", tmp_path / "moved"
    write(place, splits())
    data = {"name": "folder", "path": str(place), "image_size": 8}
    settings = {
        "data": data,
        "recipe": {"epochs": 1, "batch_size": 8, "milestones": ()},
        "seeds": 1,
        "stages": {"expert": {"model": tiny.TEACHER}},
    }
    Run(parse_config(settings), tmp_path / "run", Interrupt()).run()
    place.rename(moved)
    argv = [tmp_path / "run", "--stage=expert", f"--out={tmp_path / 'out'}", *FEW]
    line = told(argv, capsys)
    assert f"the images of the run are needed, but no such folder: {place}" in line
    argv += ["--int8", f"--data={moved}"]
    assert main(list(map(str, argv))) == 0
    assert about(tmp_path / "out")["classes"] == ["ant", "bee", "cow"]
    found = finished.find(tmp_path / "run", "expert")
    resident = images.open_of(found, data, moved)
    data["memory_share"] = 0.0
    # The digest says how images are read, too: that of the run is of resident ones.
    with pytest.raises(UserError, match="are not those of the run"):
        images.open_of(found, data, moved)
    streamed = images.open_images({**data, "path": str(moved)}, Vary())
    with streamed:
        for split in ("train", "test"):
            one, other = (take(each, split, 5) for each in (resident, streamed))
            assert len(one.labels) == 5
            np.testing.assert_array_equal(one.labels, other.labels)
            np.testing.assert_array_equal(one.images, other.images)
            assert one.total == other.total
    (first, *_) = sorted((moved / "train" / "ant").iterdir())
    Image.new("RGB", (20, 20)).save(first)
    shutil.rmtree(tmp_path / "out")
    assert "are not those of the run: their digest is" in told(argv, capsys)
