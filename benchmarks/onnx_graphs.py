"""ONNX graphs that kdjax writes beside those that PyTorch writes of the same networks.

    python -m benchmarks.onnx_graphs

PyTorch exports by both of its exporters, the one built on TorchScript and the one built
on `torch.export` (which needs the package onnxscript). Counted are the nodes; measured
is the latency at batch 1 under onnxruntime on this CPU, in turns, by one thread:
several would wait for each other wherever another program runs. The ratio is the faster
of PyTorch's two graphs over kdjax's: above 1 kdjax's is faster.
"""

import functools
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import onnx
import onnxruntime
import torch

from benchmarks import measure
from kdjax import models
from kdjax.export import onnx as writer
from kdjax.export.deployed import Deployed
from kdjax.runtime import command

# The PyTorch networks that the tests of the importer compare with.
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import torch_compact
import torch_nets

NETWORKS: dict[str, tuple[Callable[[], torch.nn.Module], int]] = {
    "wrn-16-1": (lambda: torch_nets.WRN(16, 1, 10), 32),
    "resnet-20": (lambda: torch_nets.ResNet((3, 3, 3), (16, 32, 64), 10), 32),
    "mobilenetv2-0.5": (lambda: torch_compact.MobileNetV2(0.5, 10), 32),
    "shufflenetv2": (lambda: torch_compact.ShuffleNetV2(10), 32),
    "imagenet_resnet-18": (
        lambda: torch_nets.ResNet((2, 2, 2, 2), (64, 128, 256, 512), 1000, large=True),
        224,
    ),
}
"""PyTorch's network and the image's side, by kdjax's name."""


class Logits(torch.nn.Module):
    """A network without its features."""

    def __init__(self, network: torch.nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the logits."""
        return self.network(x)[0]


def trained(network: torch.nn.Module) -> torch.nn.Module:
    """Returns a network whose BatchNorms have values as after training.

    Those of a new one add nothing: PyTorch would leave the convolutions' biases out.
    """
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.bias, std=0.1)
            torch.nn.init.normal_(module.running_mean, std=0.1)
    return network


def write(name: str, folder: Path) -> dict[str, Path]:
    """Writes the three graphs of a network."""
    make, side = NETWORKS[name]
    classes = 1000 if side == 224 else 10
    paths = {kind: folder / f"{name}-{kind}.onnx" for kind in ("kdjax", *_TORCH)}
    shape = (side, side, 3)
    variables = models.init(jax.random.key(0), name, classes, shape)
    deployed = Deployed(name, classes, shape, variables, (0.5,) * 3, (0.25,) * 3)
    writer.write(deployed, paths["kdjax"])
    network, images = Logits(trained(make())).eval(), torch.zeros(2, 3, side, side)
    batch = {0: torch.export.Dim("N")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        export = functools.partial(
            torch.onnx.export, network, (images,), input_names=["images"]
        )
        export(
            paths["torchscript"],
            dynamo=False,
            dynamic_axes={"images": {0: "N"}},
            opset_version=writer.DEFAULT,
        )
        export(paths["torch.export"], dynamo=True, dynamic_shapes=(batch,))
    return paths


_TORCH = ("torchscript", "torch.export")


def latency(path: Path, side: int, repeats: int) -> Callable[[], float]:
    """Returns a function that measures the median milliseconds of one image."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        path, options, providers=["CPUExecutionProvider"]
    )
    images = np.random.default_rng(0).normal(size=(1, 3, side, side))
    feed = {session.get_inputs()[0].name: images.astype(np.float32)}

    def measured() -> float:
        times = []
        for _ in range(repeats):
            begin = time.perf_counter()
            session.run(None, feed)
            times.append(time.perf_counter() - begin)
        return 1e3 * float(np.median(times))

    return measured


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and returns the exit status."""
    return command.run(lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> None:
    parser = measure.parser("onnx_graphs", __doc__, rounds=15)
    options = parser.parse_args(argv)
    rows, figures = [], {}
    for name, (_, side) in NETWORKS.items():
        with tempfile.TemporaryDirectory() as folder:
            paths = write(name, Path(folder))
            nodes = {
                kind: len(onnx.load(path, load_external_data=False).graph.node)
                for kind, path in paths.items()
            }
            repeats = 30 if side == 224 else 300
            turns = {kind: latency(path, side, repeats) for kind, path in paths.items()}
            for turn in turns.values():
                turn()
            found = measure.interleave(turns, options.rounds, options.busy)
        values = found.pop("values")
        best = min(_TORCH, key=lambda kind: np.median(values[kind]))
        ratio = measure.quotient(values[best], values["kdjax"])
        spreads = {kind: measure.spread(times) for kind, times in values.items()}
        figures[name] = {"nodes": nodes, "ms": spreads, "ratio": ratio, **found}
        rows.append(_row(name, nodes, spreads, ratio))
    title = "Nodes, and ms at batch 1 under onnxruntime"
    measure.show(title, ["", "kdjax", *_TORCH, "PyTorch's best / kdjax"], rows)
    measure.save(options.out, {"networks": figures})


def _row(
    name: str, nodes: dict[str, int], spreads: dict[str, Any], ratio: dict[str, Any]
) -> list[str]:
    cells = [name]
    for kind, found in spreads.items():
        cells.append(f"{nodes[kind]}: {measure.figure(found, '.3f')}")
    return [*cells, measure.figure(ratio)]


if __name__ == "__main__":
    sys.exit(main())
