"""Residual networks as public repositories name them: basic, bottleneck and wide.

RepDistiller's names of the small ones, after torchvision's, are also those of
mdistiller, TAKD's code and chenyaofo/pytorch-cifar-models; its names of the WRNs those
of mdistiller and xternalz/WideResNet-pytorch.
"""

from collections.abc import Callable, Iterable

from kdjax.models import imagenet_resnet
from kdjax.models.import_torch.layout import (
    Guess,
    Layout,
    Shapes,
    by_rules,
    count,
    guess,
    in_sequence,
)
from kdjax.models.import_torch.mapping import Prefix

# The depths that can be recognised by shapes. ResNet-50 for images of 32x32 has two
# names; the one in the configs of the CIFAR-100 benchmark is returned.
_RECOGNISED = {
    "imagenet_resnet": tuple(imagenet_resnet.BLOCKS),
    "bottleneck_resnet": (50,),
    "cifar_resnet": (18, 34),
}


def _names(shortcut: str, head: str) -> Prefix:
    return by_rules(
        {
            r"stem/(conv|bn)": lambda kind: f"{kind}1",
            r"stage(\d)_block(\d+)/layer(\d)/(conv|bn)": (
                lambda s, b, i, kind: f"layer{s}.{b - 1}.{kind}{i}"
            ),
            r"stage(\d)_block(\d+)/shortcut/(conv|bn)": (
                lambda s, b, kind: f"layer{s}.{b - 1}.{shortcut}.{in_sequence(1, kind)}"
            ),
            "head": head,
        }
    )


def _small(name: str, shortcut: str, head: str, family: str = "resnet") -> Layout:
    """Returns the layout of networks of three stages of basic blocks."""

    def recognise(shapes: Shapes) -> Guess | None:
        first = shapes.get("layer1.0.conv1.weight")
        # Bottlenecks have a third convolution, networks of large images a stage more.
        others = {"layer1.0.conv3.weight", "layer4.0.conv1.weight"}
        if first is None or others & shapes.keys():
            return None
        depth = 6 * count(shapes, "layer1.{}.conv1.weight") + 2
        model = f"{family}-{depth}{'x4' if first[0] == 64 else ''}"
        return guess(shapes, model, "conv1", head)

    return Layout(name, family, _names(shortcut, head), recognise)


def _four_stages(
    family: str,
    depths: Iterable[int],
    size: int,
    stem: str,
    head: str,
    block: Callable[[int, int | str], str],
    layer: Callable[[int], str],
) -> Callable[[Shapes], Guess | None]:
    """Returns a function that recognises networks of a family with four stages.

    Args:
        family: a key of `models.MODELS`.
        depths: of the networks that it recognises.
        size: of the first kernel.
        stem: the first convolution.
        head: the classifier.
        block: the name of a block, of its stage from 1 and its number from 0.
        layer: the name of a convolution in it, of its number from 1.
    """

    def recognise(shapes: Shapes) -> Guess | None:
        if shapes.get(f"{stem}.weight", ())[-2:] != (size, size):
            return None
        blocks = tuple(
            count(shapes, f"{block(stage, '{}')}.{layer(1)}.weight")
            for stage in (1, 2, 3, 4)
        )
        bottlenecks = f"{block(1, 0)}.{layer(3)}.weight" in shapes
        for depth in depths:
            known = imagenet_resnet.BLOCKS[depth]
            if blocks == known and bottlenecks == (depth > 34):
                side = 224 if size == 7 else 32
                return guess(shapes, f"{family}-{depth}", stem, head, side)
        return None

    return recognise


def _large(family: str, size: int, name: str, shortcut: str, head: str) -> Layout:
    recognise = _four_stages(
        family,
        _RECOGNISED[family],
        size,
        "conv1",
        head,
        lambda stage, number: f"layer{stage}.{number}",
        lambda number: f"conv{number}",
    )
    return Layout(name, family, _names(shortcut, head), recognise)


# The paper's conv2_x is the first stage.
_IN_SEQUENCES = by_rules(
    {
        r"stem/(conv|bn)": lambda kind: f"conv1.{in_sequence(1, kind)}",
        r"stage(\d)_block(\d+)/layer(\d)/(conv|bn)": (
            lambda s, b, i, kind: (
                f"conv{s + 1}_x.{b - 1}.residual_function.{in_sequence(i, kind)}"
            )
        ),
        r"stage(\d)_block(\d+)/shortcut/(conv|bn)": (
            lambda s, b, kind: f"conv{s + 1}_x.{b - 1}.shortcut.{in_sequence(1, kind)}"
        ),
        "head": "fc",
    }
)


def _weiaicunzai(family: str) -> Layout:
    recognise = _four_stages(
        family,
        _RECOGNISED[family],
        3,
        "conv1.0",
        "fc",
        lambda stage, number: f"conv{stage + 1}_x.{number}",
        lambda number: f"residual_function.{in_sequence(number, 'conv')}",
    )
    return Layout("weiaicunzai", family, _IN_SEQUENCES, recognise)


_WRN = by_rules(
    {
        "stem": "conv1",
        r"stage(\d)_block(\d+)/shortcut": (
            lambda s, b: f"block{s}.layer.{b - 1}.convShortcut"
        ),
        r"stage(\d)_block(\d+)/(\w+)": (
            lambda s, b, layer: f"block{s}.layer.{b - 1}.{layer}"
        ),
        "bn": "bn1",
        "head": "fc",
    }
)


def _tell_wrn(shapes: Shapes) -> Guess | None:
    first = shapes.get("block1.layer.0.conv1.weight")
    if first is None or first[0] % 16:
        return None
    depth = 6 * count(shapes, "block1.layer.{}.conv1.weight") + 4
    return guess(shapes, f"wrn-{depth}-{first[0] // 16}", "conv1", "fc")


LAYOUTS = (
    _small("RepDistiller", "downsample", "fc"),
    _small("akamaster with option B", "shortcut", "linear"),
    _small("akamaster", "shortcut", "linear", "padded_resnet"),
    _large("imagenet_resnet", 7, "torchvision", "downsample", "fc"),
    _large("bottleneck_resnet", 3, "RepDistiller", "shortcut", "linear"),
    _large("bottleneck_resnet", 3, "torchvision", "downsample", "fc"),
    _weiaicunzai("bottleneck_resnet"),
    _large("cifar_resnet", 3, "kuangliu", "shortcut", "linear"),
    _large("cifar_resnet", 3, "torchvision", "downsample", "fc"),
    _weiaicunzai("cifar_resnet"),
    Layout("RepDistiller", "wrn", _WRN, _tell_wrn),
)
