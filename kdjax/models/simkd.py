"""A student's trunk with its teacher's classifier: what SimKD trains and deploys.

Chen et al., *Knowledge Distillation with the Reused Teacher Classifier*, 2022.
"""

import re
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kdjax.models.base import Outputs
from kdjax.models.layers import torch_dense, torch_kernel
from kdjax.models.norm import BatchNorm
from kdjax.runtime.errors import UserError

VERSION = 1


def _deepest(outputs: Outputs) -> str:
    # With one digit each, the names sort as their numbers.
    return max(name for name in outputs.features if re.fullmatch(r"stage\d_pre", name))


def last_map(outputs: Outputs) -> jax.Array:
    """Returns the deepest feature map, rectified."""
    return nn.relu(outputs.features[_deepest(outputs)])


class Projector(nn.Module):
    """SimKD's projector: 1x1, 3x3 and 1x1 convolutions, each with BatchNorm and ReLU.

    The first two are `factor` times narrower than the teacher's map.
    """

    channels: int
    factor: int = 2

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Returns the student's features in the teacher's width."""
        narrow = self.channels // self.factor
        layers = ((narrow, 1), (narrow, 3), (self.channels, 1))
        for i, (width, size) in enumerate(layers, start=1):
            # No bias: the BatchNorm that follows would subtract it again.
            x = nn.Conv(
                width,
                (size, size),
                padding=size // 2,
                use_bias=False,
                kernel_init=torch_kernel,
                name=f"conv{i}",
            )(x)
            x = nn.relu(BatchNorm(train, name=f"bn{i}")(x))
        return x


def _skip_head(
    next_fun: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    context: nn.module.InterceptorContext,
) -> Any:
    """Makes a network's classifier the identity, so that it gets no parameters."""
    if context.module.name == "head":
        return args[0]
    return next_fun(*args, **kwargs)


class Reusing(nn.Module):
    """The trunk of one network, a projector, and a classifier like another network's.

    The features are those of the trunk and the projector's map as one more stage;
    'pooled' is the mean of the projector's map.

    Attributes:
        trunk: the network whose classifier is left out.
        channels: of the other network's last map.
        factor: how much narrower the projector is.
        num_classes: the number of classes.
    """

    trunk: nn.Module
    channels: int
    factor: int
    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> Outputs:
        """Classifies images `[batch, height, width, channels]`."""
        with nn.intercept_methods(_skip_head):
            outputs = self.trunk(x, train)
        project = Projector(self.channels, self.factor, name="projector")
        x = project(last_map(outputs), train)
        pooled = jnp.mean(x, axis=(1, 2))
        number = int(_deepest(outputs).removeprefix("stage").removesuffix("_pre"))
        stage = f"stage{number + 1}"
        # This 'pooled', the classifier's input, replaces the trunk's.
        features = {stage: x, f"{stage}_pre": x, "pooled": pooled}
        head = torch_dense(self.channels, self.num_classes, "head")
        return Outputs(head(pooled), {**outputs.features, **features})


def name_of(factor: int, student: str, teacher: str) -> str:
    """Returns the name of the student's trunk with the teacher's classifier."""
    return f"simkd-{factor}:{student}:{teacher}"


def create(name: str, num_classes: int) -> Reusing:
    """Returns the network for a name like 'simkd-2:resnet-8x4:resnet-32x4'.

    That is the trunk of resnet-8x4 and the classifier of resnet-32x4, with a projector
    whose first two convolutions have half the width.

    Raises:
        UserError: the name is of another form, or the teacher's classifier does not
            read the average of its last map.
    """
    from kdjax import models  # here: it imports this module

    head, _, rest = name.partition(":")
    factor = head.removeprefix("simkd-")
    student, _, teacher = rest.partition(":")
    if not (factor.isdecimal() and int(factor) and student and teacher):
        raise UserError(f"model {name!r} is not of the form simkd-FACTOR:MODEL:MODEL")
    if student.startswith("simkd"):
        raise UserError(f"model {name!r}: a trunk of that kind has no classifier")
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    network = models.create(teacher, num_classes)
    # Shapes only: nothing is computed.
    shapes, variables = jax.eval_shape(
        lambda x: network.init_with_output(jax.random.key(0), x, train=False), images
    )
    channels = variables["params"]["head"]["kernel"].shape[0]
    level = _deepest(shapes)
    width = shapes.features[level].shape[-1]
    if width != channels:
        raise UserError(
            f"simkd: the classifier of {teacher!r} does not read the average of its "
            f"last map {level} of {width} channels; choices: networks such as "
            "resnet-DEPTH, wrn-DEPTH-WIDEN and vgg-DEPTH"
        )
    return Reusing(
        models.create(student, num_classes), channels, int(factor), num_classes
    )
