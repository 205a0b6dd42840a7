"""Wide residual networks WRN-d-k for small images.

Zagoruyko and Komodakis, *Wide Residual Networks*, 2016; the networks of the CTKD
paper (its Figure 4), as its released code and that of attention transfer build them.

'wrn-16-1' starts as in that code; 'wrn-16-1-fan_out' as in the public benchmark's
(RepDistiller, mdistiller).
"""

from typing import ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from kdjax.models import layers
from kdjax.models.base import Outputs
from kdjax.models.norm import BatchNorm
from kdjax.runtime.errors import UserError

VERSION = 1


class Start(NamedTuple):
    """The initialisation of weights; biases start at 0.

    Attributes:
        conv: of the convolutions.
        head: of the classifier.
    """

    conv: nn.initializers.Initializer
    head: nn.initializers.Initializer


_FAN_IN = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
STARTS = {
    # He normal with the fan of the inputs, sqrt(2 / fan_in), for convolutions and the
    # classifier: `kaiming_normal` of the released CTKD and Rocket Launching code. That
    # code draws BatchNorm scales from U(0, 1); here they start at 1, as in the paper.
    "fan_in": Start(_FAN_IN, _FAN_IN),
    # sqrt(2 / fan_out), and PyTorch's default for the classifier.
    "fan_out": Start(layers.he_normal, layers.torch_kernel),
}
"""By the last part of a network's name; the default is 'fan_in'."""


def _conv(features: int, size: int, strides: int, start: str, name: str) -> nn.Conv:
    # As PyTorch pads: on both sides. 'SAME' pads stride-2 ones on one side only.
    return nn.Conv(
        features,
        (size, size),
        strides,
        padding=size // 2,
        use_bias=False,
        kernel_init=STARTS[start].conv,
        name=name,
    )


class Block(nn.Module):
    """BatchNorm-ReLU-convolution twice around a shortcut (pre-activation block)."""

    features: int
    strides: int
    start: str

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        """Returns the block's output, and its input after the first BatchNorm."""
        pre = BatchNorm(train, name="bn1")(x)
        out = nn.relu(pre)
        # Without a change of width the shortcut is the identity, otherwise a 1x1
        # convolution of the activated input.
        shortcut = x
        if x.shape[-1] != self.features:
            shortcut = _conv(self.features, 1, self.strides, self.start, "shortcut")(
                out
            )
        out = _conv(self.features, 3, self.strides, self.start, "conv1")(out)
        out = nn.relu(BatchNorm(train, name="bn2")(out))
        return _conv(self.features, 3, 1, self.start, "conv2")(out) + shortcut, pre


class WideResNet(nn.Module):
    """WRN-d-k, d = 6 * blocks + 4: three groups of 16k, 32k and 64k channels.

    The features 'stage1' to 'stage3' are the groups' outputs, neither normalised nor
    rectified; 'stage1_pre' to 'stage3_pre' are the outputs after the BatchNorm that
    follows, which belongs to the next group or, for 'stage3_pre', to the network.
    """

    classified: ClassVar[str] = "stage3_pre"
    """The feature that the classifier averages after a ReLU: not 'stage3' itself."""
    blocks: int
    widen: int
    num_classes: int
    start: str = "fan_in"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> Outputs:
        """Classifies images `[batch, height, width, channels]`."""
        x = _conv(16, 3, 1, self.start, "stem")(x)
        features = {"stem": x}
        for stage, strides in ((1, 1), (2, 2), (3, 2)):
            for block in range(1, self.blocks + 1):
                x, pre = Block(
                    features=16 * self.widen * 2 ** (stage - 1),
                    strides=strides if block == 1 else 1,
                    start=self.start,
                    name=f"stage{stage}_block{block}",
                )(x, train)
                # A group's first BatchNorm takes the output of the group before it.
                if stage > 1 and block == 1:
                    features[f"stage{stage - 1}_pre"] = pre
            features[f"stage{stage}"] = x
        pre = features["stage3_pre"] = BatchNorm(train, name="bn")(x)
        pooled = features["pooled"] = jnp.mean(nn.relu(pre), axis=(1, 2))
        head = nn.Dense(
            self.num_classes, kernel_init=STARTS[self.start].head, name="head"
        )
        return Outputs(head(pooled), features)

    def norms(self) -> dict[str, tuple[str, ...]]:
        """Returns the last BatchNorm before a level's activation: path by feature."""
        return {
            "stage1_pre": ("stage2_block1", "bn1"),
            "stage2_pre": ("stage3_block1", "bn1"),
            "stage3_pre": ("bn",),
        }


def create(name: str, num_classes: int) -> WideResNet:
    """Returns the network for a name like 'wrn-16-1' (depth 16, widening 1).

    Args:
        name: 'wrn-DEPTH-WIDEN', or 'wrn-DEPTH-WIDEN-START' with one of `STARTS`.
        num_classes: the number of classes.

    Raises:
        UserError: the name is of another form, or the depth not 6n + 4.
    """
    _, *parts = name.split("-")
    start = parts.pop() if len(parts) == 3 else "fan_in"
    numbers = len(parts) == 2 and all(part.isdecimal() and int(part) for part in parts)
    if not numbers or start not in STARTS:
        raise UserError(
            f"model {name!r} is not of the form wrn-DEPTH-WIDEN or "
            f"wrn-DEPTH-WIDEN-START; starts: {', '.join(STARTS)}"
        )
    depth, widen = map(int, parts)
    if depth < 10 or (depth - 4) % 6:
        raise UserError(
            f"model {name!r}: depth {depth} is not 6n + 4; choices: 10, 16, 22, 28, ..."
        )
    return WideResNet((depth - 4) // 6, widen, num_classes, start)
