"""Classifying image files: kdjax.predict beside a plain loop over PIL and onnxruntime.

    python -m benchmarks.predict

Writes small PNGs (32x32) and photo-sized JPEGs (500x375), cut from the photographs that
come with scikit-learn, and two folders of a model: a network of WRN-16-1's convolutions
with random weights, for 32x32 and for 64x64 pixels. Measures files per second

- steadily: `Model.stream` and the plain loop, both in this process, models open;
- as commands: `python -m kdjax.predict` and `python -m benchmarks.plain_loop`, with
  their start; how long one file takes tells that apart.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from sklearn.datasets import load_sample_images

from benchmarks import measure
from benchmarks.plain_loop import plain
from kdjax.predict import Model
from kdjax.runtime import command

CLASSES = 10
MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
# Name, width and height of the files, ending, and the model's height and width.
KINDS = (("png", (32, 32), "png", 32), ("photo", (500, 375), "jpg", 64))


def wide_resnet(size: int) -> onnx.ModelProto:
    """Returns a network of WRN-16-1's convolutions, BatchNorm folded, weights random.

    Args:
        size: height and width of its images.
    """
    rng = np.random.default_rng(0)
    nodes, weights = [], []

    def add(operation: str, *inputs: str, **attributes: Any) -> str:
        name = f"{operation}{len(nodes)}"
        nodes.append(helper.make_node(operation, inputs, [name], **attributes))
        return name

    def array(*shape: int) -> str:
        name = f"weight{len(weights)}"
        scale = np.sqrt(2 / max(1, np.prod(shape[1:])))
        values = rng.normal(0, scale, shape).astype(np.float32)
        weights.append(numpy_helper.from_array(values, name))
        return name

    def convolution(x: str, shape: Sequence[int], stride: int = 1) -> str:
        out, _, side = shape
        return add(
            "Conv",
            x,
            array(*shape, side),
            array(out),
            kernel_shape=[side, side],
            strides=[stride] * 2,
            pads=[side // 2] * 4,
        )

    x, inputs = convolution("images", (16, 3, 3)), 16
    for group, outputs in enumerate((16, 32, 64)):
        for block in range(2):
            stride = 2 if group and not block else 1
            y = add("Relu", x)
            shortcut = x
            if outputs != inputs:
                shortcut = convolution(y, (outputs, inputs, 1), stride)
            y = add("Relu", convolution(y, (outputs, inputs, 3), stride))
            x = add("Add", convolution(y, (outputs, outputs, 3)), shortcut)
            inputs = outputs
    pooled = add("Flatten", add("GlobalAveragePool", add("Relu", x)))
    nodes.append(
        helper.make_node(
            "Gemm", [pooled, array(CLASSES, 64), array(CLASSES)], ["logits"], transB=1
        )
    )
    real = TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "wrn-16-1",
        [helper.make_tensor_value_info("images", real, ["N", 3, size, size])],
        [helper.make_tensor_value_info("logits", real, ["N", CLASSES])],
        weights,
    )
    opset = helper.make_opsetid("", 17)
    return helper.make_model(graph, opset_imports=[opset], ir_version=8)


def write_model(folder: Path, size: int) -> Path:
    """Writes a model's folder as `python -m kdjax.export` does."""
    folder.mkdir()
    onnx.save(wide_resnet(size), folder / "model.onnx")
    description = {
        "version": 1,
        "format": "onnx",
        "files": {"float32": "model.onnx"},
        "num_classes": CLASSES,
        "classes": [],
        "input": {"name": "images", "dtype": "float32", "layout": "NCHW"},
        "output": "logits",
        "preprocessing": {
            "image_shape": [size, size, 3],
            "fit": "cover",
            "mean": MEAN,
            "std": STD,
            "inside": False,
        },
    }
    (folder / "model.json").write_text(json.dumps(description))
    return folder


def write_images(
    folder: Path, count: int, size: tuple[int, int], suffix: str
) -> list[str]:
    """Writes random cuts of two photographs, 'size' being width and height."""
    rng = np.random.default_rng(0)
    photos = [Image.fromarray(photo) for photo in load_sample_images().images]
    folder.mkdir()
    paths = []
    for i in range(count):
        photo = photos[i % len(photos)]
        # A PNG shows as much as a JPEG does.
        width, height = (500, 375) if suffix == "jpg" else (375, 375)
        left = int(rng.integers(photo.width - width + 1))
        top = int(rng.integers(photo.height - height + 1))
        cut = photo.crop((left, top, left + width, top + height))
        path = folder / f"{i:04d}.{suffix}"
        cut.resize(size, Image.Resampling.BILINEAR).save(path, quality=90)
        paths.append(str(path))
    return paths


def steady(folder: Path, paths: Sequence[str]) -> dict[str, Callable[[], float]]:
    """Returns the turns within this process: files per second of each way."""
    loop, model = plain(folder), Model(folder)

    def rate(classify: Callable[[], object]) -> float:
        begin = time.perf_counter()
        classify()
        return len(paths) / (time.perf_counter() - begin)

    def ours() -> list[Any]:
        return [model.best(answer) for _, answer in model.stream(paths)]

    return {
        "plain": lambda: rate(lambda: list(loop(paths))),
        "predict": lambda: rate(ours),
    }


def commands(folder: Path, images: Path, count: int) -> dict[str, Callable[[], float]]:
    """Returns the turns that start a process: files per second, or seconds of one."""

    def seconds(module: str, *args: str) -> float:
        begin = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", module, *args],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        return time.perf_counter() - begin

    one = str(next(images.iterdir()))
    whole = (str(folder), str(images))
    return {
        "plain": lambda: count / seconds("benchmarks.plain_loop", *whole),
        "predict": lambda: count / seconds("kdjax.predict", *whole),
        "start": lambda: seconds("kdjax.predict", str(folder), one),
    }


def measured(
    turns: dict[str, Callable[[], float]], options: argparse.Namespace
) -> dict[str, Any]:
    """Returns the spreads of all turns and of the ratio, predict over plain."""
    for turn in turns.values():  # files and programs come into the system's memory
        turn()
    found = measure.interleave(turns, options.rounds, options.busy)
    values = found.pop("values")
    return {
        **{name: measure.spread(rates) for name, rates in values.items()},
        "ratio": measure.quotient(values["predict"], values["plain"]),
        **found,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and returns the exit status."""
    return command.run(lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> None:
    parser = measure.parser("predict", __doc__, rounds=7)
    parser.add_argument("--size", type=int, default=1000, help="files of a kind")
    options = parser.parse_args(argv)
    found: dict[str, Any] = {"files": options.size}
    rows = []
    with tempfile.TemporaryDirectory() as root:
        for kind, size, suffix, side in KINDS:
            folder = write_model(Path(root) / f"{kind}-model", side)
            images = Path(root) / kind
            paths = write_images(images, options.size, size, suffix)
            found[kind] = {
                "steady": measured(steady(folder, paths), options),
                "command": measured(commands(folder, images, len(paths)), options),
            }
            for way, part in found[kind].items():
                for name, form in (("plain", ".0f"), ("predict", ".0f"), ("ratio", "")):
                    text = measure.figure(part[name], form or ".2f")
                    rows.append((f"{kind}, {way}: {name}", text))
            start = measure.figure(found[kind]["command"]["start"])
            rows.append((f"{kind}: one file (s)", start))
    measure.show(f"files/s, {options.size:,} files", ("", ""), rows)
    measure.save(options.out, found)


if __name__ == "__main__":
    sys.exit(main())
