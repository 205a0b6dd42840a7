"""Plain CNNs of 2 to 10 layers for small images.

The networks of TAKD (Mirzadeh et al., 2020) and DGKD (Son et al., 2021), `plane` in
their released code: 3x3 convolutions, each with BatchNorm and ReLU, max-pooling, and
dense layers. The depth counts the convolutions.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax

from kdjax.models.base import Outputs
from kdjax.models.layers import torch_bias, torch_dense, torch_kernel
from kdjax.models.norm import BatchNorm
from kdjax.runtime.errors import UserError, unknown

VERSION = 1


def _layers(text: str) -> tuple[tuple[str, int], ...]:
    return tuple((word[0], int(word[1:] or 0)) for word in text.split())


# C: convolution with this many channels, P: pooling, F: dense layer of this width. An
# odd depth is the next even one without its last convolution.
CIFAR10 = {
    2: _layers("C16 P C16 P"),
    3: _layers("C16 C16 P C32 P"),
    4: _layers("C16 C16 P C32 C32 P"),
    5: _layers("C16 C16 P C32 C32 P C64 P"),
    6: _layers("C16 C16 P C32 C32 P C64 C64 P"),
    7: _layers("C16 C16 P C32 C32 P C64 C64 P C128 P F64"),
    8: _layers("C16 C16 P C32 C32 P C64 C64 P C128 C128 P F64"),
    9: _layers("C32 C32 P C64 C64 P C128 C128 P C256 C256 C256 P F128"),
    10: _layers("C32 C32 P C64 C64 P C128 C128 P C256 C256 C256 C256 P F128"),
}
"""The specification for CIFAR-10, by depth: used for up to 10 classes."""

CIFAR100 = {
    2: _layers("C32 P C32 P"),
    3: _layers("C32 C32 P C64 P"),
    4: _layers("C32 C32 P C64 C64 P"),
    5: _layers("C32 C32 P C64 C64 P C128"),
    6: _layers("C32 C32 P C64 C64 P C128 C128"),
    7: _layers("C32 C32 P C64 C64 P C128 C128 P C256 P F64"),
    8: _layers("C32 C32 P C64 C64 P C128 C128 P C256 C256 P F64"),
    9: _layers("C32 C32 P C64 C64 P C128 C128 P C256 C256 C256 P F512"),
    10: _layers("C32 C32 P C64 C64 P C128 C128 P C256 C256 C256 C256 P F512"),
}
"""The specification for CIFAR-100, by depth: used for more classes."""


class Plain(nn.Module):
    """A plain CNN with the initialisation of PyTorch's layers, as in the released code.

    The features 'stage1', ... are the activated maps before each pooling (and the last
    maps), '..._pre' their values before the ReLU; 'pooled' is the classifier's input:
    the flattened maps, or the output of the dense layer on them.
    """

    layers: Sequence[tuple[str, int]]
    num_classes: int
    depth: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> Outputs:
        """Classifies images `[batch, height, width, channels]`."""
        features: dict[str, jax.Array] = {}
        size, stage, conv = x.shape[1:3], 1, 0
        for kind, channels in self.layers:
            if kind == "C":
                conv += 1
                x = nn.Conv(
                    channels,
                    (3, 3),
                    padding=1,
                    kernel_init=torch_kernel,
                    bias_init=torch_bias(9 * x.shape[-1]),  # fan_in of 3x3 positions
                    name=f"conv{conv}",
                )(x)
                features.setdefault("stem", x)  # only the first convolution sets it
                pre = BatchNorm(train, name=f"bn{conv}")(x)
                x = nn.relu(pre)
                # Overwritten by every convolution of the stage: the last one stays.
                features[f"stage{stage}_pre"], features[f"stage{stage}"] = pre, x
            elif kind == "P":
                if min(x.shape[1:3]) < 2:
                    raise UserError(
                        f"model 'plain-{self.depth}': images of {size[0]}x{size[1]} "
                        "are pooled to nothing"
                    )
                x = nn.max_pool(x, window_shape=(2, 2), strides=(2, 2))
                stage += 1
            else:
                # [B, H, W, C] -> [B, HWC]; PyTorch flattens in the order C, H, W.
                x = x.reshape(len(x), -1)
                x = nn.relu(torch_dense(x.shape[-1], channels, "dense")(x))
        # Already flat if the last layer is dense.
        pooled = features["pooled"] = x.reshape(len(x), -1)
        head = torch_dense(pooled.shape[-1], self.num_classes, "head")
        return Outputs(head(pooled), features)

    def norms(self) -> dict[str, tuple[str, ...]]:
        """Returns the last BatchNorm before a level's activation: path by feature."""
        norms: dict[str, tuple[str, ...]] = {}
        stage, conv = 1, 0
        for kind, _ in self.layers:
            conv, stage = conv + (kind == "C"), stage + (kind == "P")
            if kind == "C":
                norms[f"stage{stage}_pre"] = (f"bn{conv}",)
        return norms


def create(name: str, num_classes: int) -> Plain:
    """Returns the network for a name like 'plain-4' and a number of classes.

    Raises:
        UserError: there is no such depth.
    """
    names = {f"plain-{depth}": depth for depth in CIFAR10}
    if name not in names:
        raise unknown("model", name, names)
    specification = CIFAR10 if num_classes <= 10 else CIFAR100
    depth = names[name]
    return Plain(specification[depth], num_classes, depth)
