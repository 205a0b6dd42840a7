"""Describes a state dict that is not one of kdjax's networks."""

import re

from kdjax.models.import_torch.layout import Shapes, count


def num_classes(shapes: Shapes) -> int | None:
    """Returns the number of outputs of the last dense layer, or None without one."""
    matrices = [shape for shape in shapes.values() if len(shape) == 2]
    return matrices[-1][0] if matrices else None


def describe(shapes: Shapes) -> str:
    """Returns a description of a state dict, from its names and shapes."""
    classes = num_classes(shapes)
    of = f" with {classes} classes" if classes else ""
    if any(re.match(r"features\.\d+\.", key) for key in shapes):
        return (
            f"it looks like a network{of} of one sequence 'features', as torchvision, "
            "kuangliu and chenyaofo build VGG and MobileNetV2; those of kdjax differ "
            "(its VGG pools less often on small images)"
        )
    second = shapes.get("layer1.0.conv2.weight", ())
    if len(second) == 4 and second[1] > 1:
        return f"it looks like {_residual(shapes)}{of}"
    if not classes:
        return "it has no classifier, which would be a matrix [classes, channels]"
    return f"it looks like a network{of} that kdjax does not know"


def _residual(shapes: Shapes) -> str:
    """Returns a residual network in words: depth, widths, kind and shortcuts."""
    stages = range(1, 1 + count(shapes, "layer{}.0.conv1.weight", start=1))
    blocks = [count(shapes, f"layer{stage}.{{}}.conv1.weight") for stage in stages]
    bottlenecks = "layer1.0.conv3.weight" in shapes
    widths = (str(shapes[f"layer{stage}.0.conv1.weight"][0]) for stage in stages)
    traits = [
        f"{' + '.join(map(str, blocks))} {'bottlenecks' if bottlenecks else 'blocks'}",
        f"{'-'.join(widths)} channels",
    ]
    if stem := shapes.get("conv1.weight"):
        traits.append(f"a first kernel of {stem[-1]}x{stem[-1]}")
    if "bn1.weight" not in shapes:
        traits.append("BatchNorm before the convolutions (pre-activation)")
    if not any(".shortcut." in key or ".downsample." in key for key in shapes):
        traits.append("shortcuts without parameters")
    depth = sum(blocks) * (3 if bottlenecks else 2) + 2
    return f"a ResNet-{depth} ({', '.join(traits)})"
