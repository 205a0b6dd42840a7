"""A small exported model and what it must predict."""

import json
from pathlib import Path

import numpy as np
import pytest
from own_images import encoded, pixels

pytest.importorskip("onnx", reason="onnx is not installed")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

import onnx
from onnx import TensorProto, helper, numpy_helper

from kdjax.data import pixels as own_pixels
from kdjax.predict.__main__ import main

ROOT = Path(__file__).parents[1]


CLASSES = ["ant", "bee", "cow", "dög"]


SHAPE = (12, 16, 3)


MEAN, STD = [0.5, 0.4, 0.3], [0.25, 0.3, 0.2]


RNG = np.random.default_rng(7)


KERNEL = RNG.normal(size=(3, 4)).astype(np.float32)


BIAS = RNG.normal(size=4).astype(np.float32)


def network(dtype="float32", sign=1.0):
    """Means of the channels, then a linear layer: 'images' to 'logits'."""
    float32, height, width = TensorProto.FLOAT, *SHAPE[:2]
    nodes, arrays = [], {"kernel": sign * KERNEL, "bias": sign * BIAS}
    first, shape = "images", ["N", 3, height, width]
    if dtype == "uint8":
        shape = ["N", height, width, 3]
        arrays |= {"scale": np.float32(255 * np.float32(STD))}
        arrays |= {"shift": np.float32(255 * np.float32(MEAN))}
        nodes = [
            helper.make_node("Cast", ["images"], ["real"], to=float32),
            helper.make_node("Sub", ["real", "shift"], ["middle"]),
            helper.make_node("Div", ["middle", "scale"], ["unit"]),
            helper.make_node("Transpose", ["unit"], ["nchw"], perm=[0, 3, 1, 2]),
        ]
        first = "nchw"
    nodes += [
        helper.make_node("GlobalAveragePool", [first], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "kernel", "bias"], ["logits"]),
    ]
    kind = TensorProto.UINT8 if dtype == "uint8" else float32
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("images", kind, shape)],
        [helper.make_tensor_value_info("logits", float32, ["N", 4])],
        [numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items()],
    )
    opset = helper.make_opsetid("", 17)
    return helper.make_model(graph, opset_imports=[opset], ir_version=8)


def describe(folder, **changes):
    """Writes a model.json by the contract; a change of None leaves a key out."""
    content = {
        "version": 1,
        "format": "onnx",
        "files": {"float32": "model.onnx"},
        "model": "linear",
        "num_classes": 4,
        "classes": CLASSES,
        "input": {"name": "images", "dtype": "float32", "layout": "NCHW"},
        "output": "logits",
        "preprocessing": {
            "image_shape": SHAPE,
            "fit": "cover",
            "mean": MEAN,
            "std": STD,
            "inside": False,
        },
    } | changes
    content = {key: value for key, value in content.items() if value is not None}
    folder.mkdir(exist_ok=True)
    (folder / "model.json").write_text(json.dumps(content))
    return content


def write_model(folder):
    """Writes a model with two networks, of which the quantised one negates logits."""
    describe(folder, files={"float32": "model.onnx", "int8": "model.int8.onnx"})
    onnx.save(network(), folder / "model.onnx")
    onnx.save(network(sign=-1.0), folder / "model.int8.onnx")
    return folder


def write_photos(root, rng):
    """Writes images of several kinds and sizes, hidden ones, and another file."""
    for name, form, array in (
        ("b.PNG", "PNG", pixels(rng, 12, 16)),
        ("a/large.jpg", "JPEG", pixels(rng, 60, 50)),
        ("a/grey.png", "PNG", pixels(rng, 30, 40, channels=1)),
        ("c/d/deep.webp", "WEBP", pixels(rng, 24, 20)),
        (".hidden/e.png", "PNG", pixels(rng)),
        ("a/.f.png", "PNG", pixels(rng)),
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(encoded(array, form))
    (root / "a" / "notes.txt").write_text("no image")
    return root


ORDER = ["a/grey.png", "a/large.jpg", "b.PNG", "c/d/deep.webp"]


def oracle(images, sign=1.0):
    """The network in float64, of uint8 `[N, H, W, C]`."""
    unit = (np.float64(images) / 255 - MEAN) / STD
    return sign * (unit.mean((1, 2)) @ np.float64(KERNEL) + BIAS)


def softmax(logits):
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def views(paths):
    return np.stack([own_pixels.view(path, SHAPE) for path in paths])


def lines(capsys, code, *argv):
    assert main([str(word) for word in argv]) == code
    out, err = capsys.readouterr()
    return out.splitlines(), err.splitlines()


def failure(capsys, *argv):
    out, err = lines(capsys, 2, *argv)
    assert out == []
    assert len(err) == 1, err
    assert err[0].startswith("kdjax: ")
    return err[0].removeprefix("kdjax: ")
