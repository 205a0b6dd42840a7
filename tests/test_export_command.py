"""The command that exports finished networks, and its files under other libraries."""

import json
import re
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import tiny
from PIL import Image

pytest.importorskip("onnxruntime", reason="onnxruntime, of 'export', is not installed")

import onnx
from exported_runs import FEW, about, finish
from onnx import numpy_helper

import kdjax
from kdjax.api.result import Result
from kdjax.data import sources
from kdjax.experiment import finished
from kdjax.export import exporting, int8, sessions, stablehlo
from kdjax.export import onnx as writer
from kdjax.export.__main__ import main
from kdjax.export.card import card
from kdjax.export.images import spread
from kdjax.export.preprocessing import Preprocessing
from kdjax.export.sessions import Session
from kdjax.models import import_torch


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
    assert "test images these are 300 of its training images, held out" in told


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
