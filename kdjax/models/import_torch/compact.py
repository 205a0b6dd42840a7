"""VGGs, plain CNNs, MobileNetV2 and ShuffleNets as public repositories name them.

RepDistiller's names are mdistiller's as well.
"""

import math
import re

import flax.linen as nn

from kdjax.models import mobilenetv2, plain, vgg
from kdjax.models.import_torch.layout import (
    Guess,
    Layout,
    Shapes,
    by_rules,
    guess,
    in_sequence,
)

# VGG: five blocks, each a sequence of layers.
_VGG = by_rules(
    {
        r"stem_layer(\d)/(conv|bn)": lambda i, kind: f"block0.{in_sequence(i, kind)}",
        r"stage(\d)_layer(\d)/(conv|bn)": (
            lambda s, i, kind: f"block{s}.{in_sequence(i, kind)}"
        ),
        "head": "classifier",
    }
)


def _guess_vgg(shapes: Shapes) -> Guess | None:
    layers = [0] * 5
    for block in range(5):
        while f"block{block}.{3 * layers[block]}.weight" in shapes:
            layers[block] += 1
    for depth, known in vgg.LAYERS.items():
        if tuple(layers) == known:
            return guess(shapes, f"vgg-{depth}", "block0.0", "classifier")
    return None


# Plain CNNs: a sequence of convolutions, BatchNorms, ReLUs and poolings, and one of
# dense layers with a ReLU between them.


def _plain(module: nn.Module, path: str) -> str:
    assert isinstance(module, plain.Plain)
    if path == "dense":
        return "fc_layers.0"
    if path == "head":
        hidden = any(kind == "F" for kind, _ in module.layers)
        return f"fc_layers.{2 * hidden}"
    match = re.fullmatch(r"(conv|bn)(\d+)", path)
    assert match is not None, path
    position = number = 0
    for kind, _ in module.layers:
        number += kind == "C"
        if number == int(match[2]):
            break
        position += 3 if kind == "C" else 1
    return f"conv_layers.{position + (match[1] == 'bn')}"


def _guess_plain(shapes: Shapes) -> Guess | None:
    convolutions = {
        int(key.split(".")[1]): shape[0]
        for key, shape in shapes.items()
        if re.fullmatch(r"conv_layers\.\d+\.weight", key) and len(shape) == 4
    }
    dense = shapes.get("fc_layers.0.weight", ())
    if not convolutions or len(dense) != 2:
        return None
    widths = [convolutions[position] for position in sorted(convolutions)]
    head = "fc_layers.2" if "fc_layers.2.weight" in shapes else "fc_layers.0"
    classes = shapes[f"{head}.weight"][0]
    for depth, layers in (plain.CIFAR10 if classes <= 10 else plain.CIFAR100).items():
        if [size for kind, size in layers if kind == "C"] == widths:
            # Flattened maps of the last width, halved by every pooling.
            side = math.isqrt(dense[1] // widths[-1])
            side *= 2 ** sum(kind == "P" for kind, _ in layers)
            return guess(shapes, f"plain-{depth}", "conv_layers.0", head, side)
    return None


# MobileNetV2: groups of equal blocks, each one sequence of layers.


def _groups() -> dict[tuple[int, int], tuple[int, int]]:
    """Returns group and block, from 0, by kdjax's stage and block, from 1."""
    numbers, group = {}, 0
    for stage, groups in enumerate(mobilenetv2.STAGES, 1):
        number = 0
        for _, _, blocks, _ in groups:
            for block in range(blocks):
                number += 1
                numbers[stage, number] = group, block
            group += 1
    return numbers


_GROUPS = _groups()
_LAYERS = {"expand": 1, "depthwise": 2, "project": 3}


def _mobile_block(stage: int, block: int, layer: str, kind: str) -> str:
    group, number = _GROUPS[stage, block]
    return f"blocks.{group}.{number}.conv.{in_sequence(_LAYERS[layer], kind)}"


_MOBILENETV2 = by_rules(
    {
        r"stem/(conv|bn)": lambda kind: f"conv1.{in_sequence(1, kind)}",
        r"last/(conv|bn)": lambda kind: f"conv2.{in_sequence(1, kind)}",
        r"stage(\d)_block(\d+)/(\w+)/(conv|bn)": _mobile_block,
        "head": "classifier.0",
    }
)


def _guess_mobilenetv2(shapes: Shapes) -> Guess | None:
    stem = shapes.get("conv1.0.weight")
    if stem is None or "blocks.0.0.conv.0.weight" not in shapes:
        return None
    return guess(shapes, f"mobilenetv2-{stem[0] / 32}", "conv1.0", "classifier.0")


# ShuffleNets. In V2's block that halves the maps the shortcut's two layers come first.
_SHUFFLENETV1 = by_rules(
    {
        r"stem/(conv|bn)": lambda kind: f"{kind}1",
        r"stage(\d)_block(\d+)/(\w+)/(conv|bn)": (
            lambda s, b, layer, kind: (
                f"layer{s}.{b - 1}.{kind}"
                f"{1 + ('reduce', 'depthwise', 'expand').index(layer)}"
            )
        ),
        "head": "linear",
    }
)
_SHUFFLENETV2 = by_rules(
    {
        r"stem/(conv|bn)": lambda kind: f"{kind}1",
        r"last/(conv|bn)": lambda kind: f"{kind}2",
        r"stage(\d)_block1_shortcut/(\w+)/(conv|bn)": (
            lambda s, layer, kind: (
                f"layer{s}.0.{kind}{1 + ('depthwise', 'last').index(layer)}"
            )
        ),
        r"stage(\d)_block(\d+)/(\w+)/(conv|bn)": (
            lambda s, b, layer, kind: (
                f"layer{s}.{b - 1}.{kind}"
                f"{(3 if b == 1 else 1) + ('first', 'depthwise', 'last').index(layer)}"
            )
        ),
        "head": "linear",
    }
)


def _guess_shufflenetv1(shapes: Shapes) -> Guess | None:
    # Depthwise is the second convolution of every block.
    if shapes.get("layer1.0.conv2.weight", ())[1:2] != (1,):
        return None
    return guess(shapes, "shufflenetv1", "conv1", "linear")


def _guess_shufflenetv2(shapes: Shapes) -> Guess | None:
    if "layer1.0.conv5.weight" not in shapes:
        return None
    return guess(shapes, "shufflenetv2", "conv1", "linear")


LAYOUTS = (
    Layout("RepDistiller", "vgg", _VGG, _guess_vgg),
    Layout("TAKD and DGKD", "plain", _plain, _guess_plain),
    Layout("RepDistiller", "mobilenetv2", _MOBILENETV2, _guess_mobilenetv2),
    Layout("RepDistiller", "shufflenetv1", _SHUFFLENETV1, _guess_shufflenetv1),
    Layout("RepDistiller", "shufflenetv2", _SHUFFLENETV2, _guess_shufflenetv2),
)
