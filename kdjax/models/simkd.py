"""A student's trunk with its teacher's classifier: what SimKD trains and deploys.

Chen et al., *Knowledge Distillation with the Reused Teacher Classifier*, 2022.

The published code takes the student's last map as the network returns it: for a
MobileNetV2 it is linear, for the other networks activated. It has no Wide ResNets,
whose last stage is neither normalised nor rectified: for these the map is the one that
their own classifier averages, after the BatchNorm and ReLU that follow. For a teacher
it is always the map that the classifier averages.
"""

import re
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kdjax.models import names, own
from kdjax.models.base import Outputs
from kdjax.models.checks import user_errors
from kdjax.models.layers import torch_dense, torch_kernel
from kdjax.models.norm import BatchNorm
from kdjax.runtime.errors import UserError

VERSION = 2


def _deepest(outputs: Outputs) -> str:
    stages = [key for key in outputs.features if re.fullmatch(r"stage\d(_pre)?", key)]
    if not stages:
        known = ", ".join(outputs.features) or "none"
        raise UserError(
            "simkd: a network has no feature stage1, stage2, ...; it has "
            f"{known} (name the levels of your own network by student_levels= or "
            "teacher_levels=, in Python by levels=)"
        )
    # Numbers have one digit, so that names sort by number; "_pre" sorts last.
    return max(stages)


def last_map(outputs: Outputs) -> jax.Array:
    """Returns a teacher's deepest feature map after ReLU: its classifier averages it.

    Args:
        outputs: the teacher's.

    Raises:
        UserError: the network has none.
    """
    return nn.relu(outputs.features[_deepest(outputs)])


def trunk_map(trunk: nn.Module, outputs: Outputs) -> jax.Array:
    """Returns a student's deepest feature map, as the published code takes it.

    Args:
        trunk: the network. If its classifier reads the last stage after a further
            BatchNorm and ReLU, its attribute `classified` names that feature.
        outputs: the trunk's.

    Raises:
        UserError: the network has none.
    """
    if classified := getattr(trunk, "classified", ""):
        return nn.relu(outputs.features[classified])
    deepest = _deepest(outputs)
    return outputs.features.get(deepest.removesuffix("_pre"), outputs.features[deepest])


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
        x = project(trunk_map(self.trunk, outputs), train)
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


def _split(name: str) -> tuple[int, str, str]:
    """Returns the factor, the student and the teacher that a name consists of."""
    from kdjax import models  # here: it imports this module

    head, _, rest = name.partition(":")
    factor = head.removeprefix("simkd-")
    student, teacher = names.first(rest, models.MODELS)
    if not (factor.isdecimal() and int(factor) and student and teacher):
        raise UserError(f"model {name!r} is not of the form simkd-FACTOR:MODEL:MODEL")
    return int(factor), student, teacher


def parts(name: str) -> tuple[str, str]:
    """Returns the names of the student and of the teacher.

    Raises:
        UserError: the name is of another form.
    """
    return _split(name)[1:]


def create(name: str, num_classes: int) -> Reusing:
    """Returns the network for a name like 'simkd-2:resnet-8x4:resnet-32x4'.

    That is the trunk of resnet-8x4 and the classifier of resnet-32x4, with a projector
    whose first two convolutions have half the width.

    Raises:
        UserError: the name is of another form, the factor leaves the projector no
            channels, or the teacher's classifier does not read the average of its last
            map.
    """
    from kdjax import models  # here: it imports this module

    factor, student, teacher = _split(name)
    if student.startswith("simkd-"):
        raise UserError(f"model {name!r}: the student is itself a simkd network")
    network = models.create(teacher, num_classes)
    shapes, variables = _traced(network, teacher)
    head = variables["params"].get("head", {})
    if set(head) != {"kernel", "bias"}:
        raise UserError(
            f"simkd: {teacher!r} has no dense layer named 'head' as its classifier; "
            f"it has {', '.join(variables['params'])}"
        )
    if getattr(network, "reorders", False):
        raise UserError(
            f"simkd: the classifier of {teacher!r} has its classes in another order "
            "than the data set"
        )
    channels = head["kernel"].shape[0]
    level = _deepest(shapes)
    width = shapes.features[level].shape[-1]
    if width != channels:
        raise UserError(
            f"simkd: the classifier of {teacher!r} does not read the average of its "
            f"last map {level} of {width} channels; choices: networks such as "
            "resnet-DEPTH, wrn-DEPTH-WIDEN and vgg-DEPTH"
        )
    if factor > channels:
        raise UserError(
            f"simkd: factor={factor} is more than the {channels} channels of the last "
            f"map of {teacher!r}; choices: 1 to {channels}"
        )
    trunk = models.create(student, num_classes)
    if isinstance(trunk, own.Network):
        _check_trunk(trunk, student)
        trunk = own.Embedded(trunk)
    return Reusing(trunk, channels, factor, num_classes)


def _traced(network: Any, name: str) -> tuple[Outputs, Any]:
    """Returns the shapes of a network's outputs and variables: nothing is computed."""

    def apply(x: jax.Array) -> Any:
        return network.init_with_output(jax.random.key(0), x, train=False)

    # Widths do not depend on the images, but one's own network may accept only some.
    first: UserError | None = None
    for shape in ((32, 32, 3), (32, 32, 1), (28, 28, 1), (224, 224, 3)):
        images = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
        try:
            with user_errors(name, shape):
                return jax.eval_shape(apply, images)
        except UserError as error:
            first = first or error
            if not isinstance(network, own.Network):
                raise
    assert first is not None
    raise first


def _check_trunk(trunk: own.Network, name: str) -> None:
    """Raises UserError unless a student's classifier can be left out."""
    _, whole = _traced(trunk, name)
    with nn.intercept_methods(_skip_head):
        _, rest = _traced(trunk, name)
    if "head" not in whole["params"] or "head" in rest["params"]:
        raise UserError(
            f"simkd: {name!r} has no linen module named 'head' as its classifier: "
            "simkd trains the student without it"
        )
