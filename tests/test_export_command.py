"""The command that exports finished networks, and its files under other libraries."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import tiny
from exported import deployed
from own_images import splits, write
from PIL import Image

pytest.importorskip("onnxruntime", reason="onnxruntime, of 'export', is not installed")

import onnx
from onnx import numpy_helper

import kdjax
from kdjax.api.result import Result
from kdjax.data import sources
from kdjax.data.own.vary import Vary
from kdjax.experiment import finished
from kdjax.experiment.config import PRECISIONS, parse_config
from kdjax.experiment.run import Run
from kdjax.export import exporting, images, int8, options, sessions, stablehlo, verify
from kdjax.export import onnx as writer
from kdjax.export.__main__ import main
from kdjax.export.card import card
from kdjax.export.description import parameters
from kdjax.export.images import Part, spread, take
from kdjax.export.preprocessing import Preprocessing
from kdjax.export.sessions import Session
from kdjax.models import import_torch
from kdjax.runtime.errors import UserError
from kdjax.runtime.files import write_json
from kdjax.runtime.signals import Interrupt
from kdjax.train.saved_network import save_student

FEW = ["--threads=1"]


def finish(folder, stages, precision="float32", **stated):
    """Writes what a run on the digits leaves, of networks that were not trained.

    Args:
        folder: the run's.
        stages: by name the network, its variables or None, and its teachers.
        precision: the run's.
        **stated: what `results.json` says of every stage besides.
    """
    data, dtype = sources.load("digits", test_size=300), PRECISIONS[precision].dtype
    results = {}
    for number, (name, (model, given, *teachers)) in enumerate(stages.items()):
        fingerprint = f"{number:012x}"
        place = folder / "stages" / f"{name}-{fingerprint}"
        network = dataclasses.replace(
            deployed(model, (8, 8, 1)), mean=data.mean, std=data.std
        )
        if given is not None:
            network = dataclasses.replace(network, variables=given)
        with jax.enable_x64(precision == "float64"):
            wide = jax.tree.map(lambda leaf: np.asarray(leaf, dtype), network.variables)
            save_student(place, model, wide)
        logits = verify.reference(network, data.test.images)
        accuracy = float(np.mean(logits.argmax(1) == data.test.labels))
        figures = {"model": model, "parameters": parameters(network)}
        settings = {
            "kdjax": "0.0.9",
            "num_classes": 10,
            "recipe": {
                "epochs": 2,
                "batch_size": 32,
                "optimizer": "sgd",
                "learning_rate": 0.1,
            },
            "data": {
                "train_size": data.train_size,
                "image_shape": data.image_shape,
                "mean": data.mean,
                "std": data.std,
                "content": data.content,
            },
            "precision": precision,
        }
        write_json(place / "stage.json", settings)
        student = {**figures, "test_accuracy": accuracy}
        result = {"networks": {"student": student}, "fingerprint": fingerprint}
        write_json(place / "result.json", result)
        results[name] = {
            **figures,
            "test_accuracy": {"final": [accuracy], "median": accuracy},
            "method": "kd" if teachers else "supervised",
            "teachers": teachers,
            "fingerprint": [fingerprint],
            **stated,
        }
    config = {"data": {"name": "digits", "test_size": 300}}
    write_json(folder / "results.json", {"stages": results, "config": config})
    return folder


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run of a teacher, its student, and one with its teacher's classifier."""
    stages = {
        "expert": ("wrn-10-1", None),
        "student": ("resnet-8", None, "expert"),
        "reuses": (f"simkd-2:{tiny.STUDENT}:resnet-8", None, "expert"),
    }
    return finish(tmp_path_factory.mktemp("run"), stages)


@pytest.fixture(scope="module")
def digits():
    return sources.load("digits", test_size=300)


@pytest.fixture(autouse=True)
def _measured_briefly(monkeypatch):
    monkeypatch.setattr(sessions, "_SECONDS", 0.01)


def about(out):
    return json.loads((out / "model.json").read_text())


def told(argv, capsys):
    """Returns the one line with which a command ends that its user has to correct."""
    assert main([str(word) for word in argv]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def of_card(out, image):
    """Returns what the card's lines of Python print for an image."""
    Image.fromarray(image[..., 0]).save(out / "image.png")
    (code,) = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.S)
    command = [sys.executable, "-W", "error", "-c", code]
    answer = subprocess.run(command, cwd=out, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.strip()


def test_onnx_in_32_and_8_bits(workdir, digits, tmp_path, capsys):
    out = tmp_path / "out"
    argv = [str(workdir), "--stage=student", f"--out={out}", "--int8", *FEW]
    assert main(argv) == 0
    assert {path.name for path in out.iterdir()} == {
        "model.onnx",
        "model.int8.onnx",
        "model.json",
        "table.json",
        "README.md",
    }
    assert list(tmp_path.iterdir()) == [out]  # no scratch is left
    network = kdjax.load(workdir, "student")
    said, table = about(out), json.loads((out / "table.json").read_text())
    assert said["classes"] == list("0123456789")
    assert said["input"] == {"name": "images", "dtype": "float32", "layout": "NCHW"}
    assert said["preprocessing"] == {
        "image_shape": [8, 8, 1],
        "fit": "cover",
        "mean": [0.3049],
        "std": [0.3758],
        "inside": False,
    }
    assert said["files"] == {"float32": "model.onnx", "int8": "model.int8.onnx"}
    results = finished.results_of(workdir)["stages"]
    assert [said["fingerprint"]] == results["student"]["fingerprint"]
    assert said["parameters"] == results["student"]["parameters"]
    # All 300 test images are looked at: the accuracy is the run's.
    assert said["test_accuracy"]["float32"] == network.accuracy
    rows = {(row["stage"], row["precision"]): row for row in table["rows"]}
    assert list(rows) == [
        ("expert", "float32"),
        ("student", "float32"),
        ("student", "int8"),
    ]
    for name in ("expert", "student"):
        (accuracy,) = results[name]["test_accuracy"]["final"]
        assert rows[name, "float32"]["test_accuracy"] == accuracy
        assert rows[name, "float32"]["parameters"] == results[name]["parameters"]
    size = (out / "model.int8.onnx").stat().st_size
    assert rows["student", "int8"]["megabytes"] == size / 1e6
    assert size < (out / "model.onnx").stat().st_size
    assert table["threads"] == 1
    assert all(row["latency_ms"] > 0 for row in table["rows"])
    printed = capsys.readouterr().out
    written = (out / "README.md").read_text()
    for text in (printed, written):
        assert "Accuracy on all 300 test images." in text
    assert "taught by expert (wrn-10-1)" in written
    assert "2 epochs, batches of 32" in written
    # 8 bits are close, on what they were not calibrated on.
    prepare = Preprocessing(network.mean, network.std, "NCHW", False)
    wide, narrow = (
        Session(out / name, prepare, 1).logits(digits.test.images)
        for name in ("model.onnx", "model.int8.onnx")
    )
    np.testing.assert_allclose(wide, network.logits(digits.test.images), atol=1e-4)
    assert np.sqrt(np.mean((wide - narrow) ** 2)) < 0.1 * wide.std()
    right = [np.mean(each.argmax(1) == digits.test.labels) for each in (wide, narrow)]
    assert right == list(said["test_accuracy"].values())
    best = network.logits(digits.test.images[:1]).argmax()
    assert of_card(out, digits.test.images[0]) == str(best)


def test_card_tells_images_held_out(workdir, tmp_path):
    results, out = finished.results_of(workdir), tmp_path / "out"
    Result(results, workdir).export(out, stage="student", format="safetensors")
    settings = finished.settings_of(finished.find(workdir, "student").folder)
    assert "held out" not in card(about(out), results, settings, None)
    results["config"]["data"]["validation"] = 300
    told = card(about(out), results, settings, None)
    assert "test images stand 300 of its training images, held out" in told


@pytest.mark.parametrize("activations", ["int8", "uint8"])
def test_weights_have_a_scale_for_every_channel(workdir, tmp_path, activations):
    network = exporting.deploy(finished.find(workdir, "student"))
    writer.write(network, tmp_path / "wide.onnx")
    draw = np.random.default_rng(0)
    batch = draw.normal(size=(8, 1, 8, 8)).astype(np.float32)
    int8.quantise(
        tmp_path / "wide.onnx", tmp_path / "int8.onnx", [batch], activations=activations
    )
    graph = onnx.load(tmp_path / "int8.onnx").graph
    arrays = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    dequantised = {n.output[0]: n for n in graph.node if n.op_type[:2] == "De"}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert len(convolutions) > 3
    for node in convolutions:
        weights, scale = (arrays[name] for name in dequantised[node.input[1]].input[:2])
        assert weights.dtype == np.int8
        assert scale.shape == weights.shape[:1]
        _, scale, zero = dequantised[node.input[0]].input  # what it reads
        assert arrays[zero].dtype == activations
        assert arrays[scale].shape == ()


@pytest.mark.parametrize("uint8", [False, True])
@pytest.mark.parametrize("format", ["onnx", "stablehlo"])
def test_graphs_from_python(workdir, digits, tmp_path, format, uint8):
    out, network = tmp_path / "out", kdjax.load(workdir, "reuses")
    assert network.name.startswith("simkd-")
    result = Result(finished.results_of(workdir), workdir)
    chosen = {"stage": "reuses", "format": format, "uint8": uint8}
    if format == "onnx":
        chosen |= {"threads": 1, "opset": 13}
    said = result.export(out, **chosen)
    assert said == about(out)
    assert said["input"]["dtype"] == ("uint8" if uint8 else "float32")
    assert said["input"]["layout"] == (
        "NCHW" if format == "onnx" and not uint8 else "NHWC"
    )
    assert said["test_accuracy"] == {"float32": network.accuracy}
    pixels = digits.test.images[:7]
    prepare = Preprocessing(network.mean, network.std, said["input"]["layout"], uint8)
    path = out / said["files"]["float32"]
    if format == "onnx":
        logits = Session(path, prepare, 1).logits(pixels)
    else:
        logits = stablehlo.load(path)(prepare(pixels))
    expected = network.logits(pixels)
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    if uint8 != (format == "onnx"):  # two of the four are enough
        assert of_card(out, pixels[2]) == str(expected[2].argmax())


def test_safetensors(workdir, digits, tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    out, network = tmp_path / "out", kdjax.load(workdir, "student")
    said = network.export(out, format="safetensors")
    tensors = safetensors.load_file(out / "model.safetensors")
    kernel = network.variables["params"]["stem"]["conv"]["kernel"]
    np.testing.assert_array_equal(tensors["params/stem/conv/kernel"], kernel)
    (code,) = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.S)
    code = code.replace("# logits", "logits").replace('"model', f'"{out}/model')
    pixels = digits.test.images[:4]
    names = {"images": Preprocessing(network.mean, network.std, "NHWC", False)(pixels)}
    exec(code, names)
    np.testing.assert_allclose(names["logits"], network.logits(pixels), atol=1e-4)
    assert said["test_accuracy"] == {"float32": network.accuracy}


def test_pytorch_reads_a_state_dict(workdir, digits, tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    import torch_nets

    out, network = tmp_path / "out", kdjax.load(workdir, "student")
    layout = "akamaster with option B"
    said = network.export(out, format="torch", layout=layout)
    assert said["layout"] == layout
    module = torch_nets.ResNet([1] * 3, [16, 32, 64], 10, naming="kuangliu", channels=1)
    state = torch.load(out / "model.pth", weights_only=True)
    module.load_state_dict(state, strict=True)
    pixels = digits.test.images[:4]
    batch = Preprocessing(network.mean, network.std, "NCHW", False)(pixels)
    with torch.no_grad():
        logits, _ = module.eval()(torch.from_numpy(batch))
    np.testing.assert_allclose(logits, network.logits(pixels), atol=1e-4)


@pytest.mark.parametrize(
    ("name", "naming", "layout"),
    [
        ("resnet-8", "kuangliu", "akamaster with option B"),
        ("padded_resnet-8", "akamaster", "akamaster"),
    ],
)
def test_what_was_imported_comes_out_again(name, naming, layout, tmp_path, capsys):
    """In its own layout; also of a run in float64, as it was read."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    import torch_nets

    torch.manual_seed(0)
    module = torch_nets.ResNet([1] * 3, [16, 32, 64], 10, naming=naming, channels=1)
    file = tmp_path / "teacher.th"
    state = {f"module.{key}": value for key, value in module.state_dict().items()}
    torch.save({"state_dict": state}, file)
    variables = import_torch.load(file, name, 10, (8, 8, 1))
    stages = {"expert": (name, variables)}
    finish(tmp_path / "run", stages, "float64", given=[str(file)])
    out = tmp_path / "out"
    argv = [tmp_path / "run", "--stage=expert", "--format=torch", f"--out={out}"]
    assert main(list(map(str, argv))) == 0
    assert not jax.config.read("jax_enable_x64")
    state = torch.load(out / "model.pth", weights_only=True)
    kept = {k: v for k, v in module.state_dict().items() if "num_batches" not in k}
    assert state.keys() == kept.keys()
    for key, tensor in kept.items():
        assert torch.equal(state[key], tensor), key
    assert about(out)["layout"] == layout
    assert (
        "imported from teacher.th, not trained here" in (out / "README.md").read_text()
    )
    # In float32, also where the run computed in float64.
    argv = [tmp_path / "run", "--stage=expert", f"--out={tmp_path / 'onnx'}", *FEW]
    assert main(list(map(str, argv))) == 0
    elements = onnx.load(tmp_path / "onnx" / "model.onnx").graph.output[0].type
    assert elements.tensor_type.elem_type == onnx.TensorProto.FLOAT


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
    assert line == f"kdjax: {tmp_path} holds something already: choose another folder"
    file = tmp_path / "model.onnx" / "out"
    line = told([workdir, "--stage=student", f"--out={file}"], capsys)
    assert f"{file} cannot be written" in line


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


def test_images_are_evenly_spread():
    np.testing.assert_array_equal(spread(10, 4), [0, 2, 5, 7])
    np.testing.assert_array_equal(spread(3, 4), [0, 1, 2])
    chosen = spread(26_032, 10_000)
    assert len(set(chosen)) == 10_000
    assert set(np.diff(chosen)) == {2, 3}
    assert chosen[-1] >= 26_032 - 3


def test_speed_is_of_the_calls():
    class Slow:
        def batch(self, images, size):
            return np.resize(images, (size, *images.shape[1:]))

        def run(self, batch):
            time.sleep(0.002 if len(batch) == 1 else 0.008)

    speed = sessions.measure({"slow": Slow()}, np.zeros((3, 8, 8, 1), np.uint8))["slow"]
    assert 2 <= speed.latency < 6
    assert 64 / 0.024 < speed.images_per_second <= 64 / 0.008


def test_names_of_classes(tmp_path):
    folder = tmp_path / "cifar10" / "3.0.2"
    folder.mkdir(parents=True)
    splits_of = [{"name": "train", "shardLengths": ["5"]}]
    info = {"fileFormat": "array_record", "splits": splits_of}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    names = tuple(f"class {number}" for number in range(10))
    assert sources.class_names("cifar10", str(tmp_path)) == ()
    (folder / "label.labels.txt").write_text("\n".join(names) + "\n")
    assert sources.class_names("cifar10", str(tmp_path)) == names
    (folder / "label.labels.txt").write_text("\n".join(names[1:]))
    assert sources.class_names("cifar10", str(tmp_path)) == ()  # of other classes
    assert sources.class_names("svhn") == tuple("0123456789")
    assert sources.class_names("folder") == ()
