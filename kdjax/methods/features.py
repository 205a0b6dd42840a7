"""Methods that teach through feature maps: attention transfer and FitNet hints."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from kdjax import losses
from kdjax.errors import UserError, unknown
from kdjax.methods.base import Context, Method, Term, cross_entropy, only
from kdjax.models import Outputs
from kdjax.models.norm import BatchNorm


def feature(outputs: Outputs, name: str) -> jax.Array:
    """Returns a named feature.

    Raises:
        UserError: the network has none of that name.
    """
    if name not in outputs.features:
        raise unknown("feature", name, sorted(outputs.features))
    return outputs.features[name]


def attention_maps(
    outputs: Outputs, levels: tuple[str, ...], power: float
) -> dict[str, jax.Array]:
    """Returns the attention maps of some features, `[batch, height, width]` by name."""
    maps = {}
    for level in levels:
        found = feature(outputs, level)
        flat = losses.attention_map(found, power=power)
        maps[level] = flat.reshape(found.shape[:3])
    return maps


def attention_distance(
    student: Mapping[str, jax.Array], teacher: Mapping[str, jax.Array], norm: str
) -> jax.Array:
    """Returns the attention term, summed over the levels, `[batch]`.

    Where the sizes differ, the larger map is pooled to the size of the smaller and
    normalised again.
    """
    if not teacher:
        raise UserError("attention transfer wants at least one level")
    distances = []
    for level in teacher:
        pair = [student[level], teacher[level]]
        resized = pair[0].shape != pair[1].shape
        if resized:
            pair = list(losses.match_size(*(maps[..., None] for maps in pair)))
        flat = [maps.reshape(len(maps), -1) for maps in pair]
        if resized:
            flat = [
                maps / optax.safe_norm(maps, 1e-12, axis=-1, keepdims=True)
                for maps in flat
            ]
        distances.append(losses.attention_distance(*flat, norm=norm))
    return jnp.sum(jnp.stack(distances), axis=0)


@dataclasses.dataclass(frozen=True)
class AT(Method):
    """Attention transfer (Zagoruyko and Komodakis, 2017): CE + beta sum_j AT_j.

    Deviations: of networks whose maps differ in size the attention maps are pooled;
    RepDistiller pools the features.
    """

    num_teachers: ClassVar[int] = 1
    beta: float = 1e3
    levels: tuple[str, ...] = ("stage1", "stage2", "stage3")
    power: float = 2.0
    norm: str = "mean_square"

    def read(self, outputs: Outputs) -> dict[str, jax.Array]:
        """Returns the attention maps."""
        return attention_maps(outputs, self.levels, self.power)

    def terms(self, context: Context) -> dict[str, Term]:
        """Returns cross-entropy and attention term."""
        teacher, target = only(context.targets)
        maps = attention_maps(context.outputs["student"], self.levels, self.power)
        distance = attention_distance(maps, target, self.norm)
        return {
            "ce/student": Term(cross_entropy(context, "student")),
            f"at/{teacher}": Term(distance, self.beta),
        }


def convolved(whose: str, x: jax.Array, shape: tuple[int, int, int]) -> jax.Array:
    """Returns maps brought to a shape, inside a compact module: one convolution.

    `ConvReg` of RepDistiller: 3x3 with stride 2 from twice the size, a transposed 4x4
    with stride 2 from half the size, otherwise (1 + difference of the sizes). Without a
    bias, which the BatchNorm that follows takes off again.

    Args:
        whose: the map in errors, such as "fitnet: the student's stage2".
        x: `[batch, height, width, channels]`.
        shape: height, width and channels to come to.

    Raises:
        UserError: no such convolution leads from the one size to the other.
    """
    *size, channels = shape
    height, width = x.shape[1:3]
    if [height, width] == [2 * side for side in size]:
        return nn.Conv(channels, (3, 3), 2, padding=1, use_bias=False)(x)
    if [2 * height, 2 * width] == size:
        return nn.ConvTranspose(channels, (4, 4), (2, 2), use_bias=False)(x)
    if height >= size[0] and width >= size[1]:
        kernel = (1 + height - size[0], 1 + width - size[1])
        return nn.Conv(channels, kernel, padding="VALID", use_bias=False)(x)
    raise UserError(
        f"{whose} {(height, width)} cannot be brought to the teacher's "
        f"{tuple(size)}; it must be half its size, as large, or larger"
    )


class Regressor(nn.Module):
    """FitNet's regressor: a convolution to the teacher's shape, BatchNorm, ReLU."""

    level: str
    shape: tuple[int, int, int]  # height, width and channels of the teacher's map

    @nn.compact
    def __call__(
        self, outputs: Mapping[str, Outputs], targets: Mapping[str, Any], train: bool
    ) -> jax.Array:
        """Returns the student's map in the teacher's shape."""
        del targets
        x = feature(outputs["student"], self.level)
        x = convolved(f"fitnet: the student's {self.level}", x, self.shape)
        return nn.relu(BatchNorm(train)(x))


@dataclasses.dataclass(frozen=True)
class FitNet(Method):
    """A hint on the middle of the network (Romero et al., 2015): CE + beta hint.

    Deviations: trained jointly with the cross-entropy, with BatchNorm and ReLU in the
    regressor and the mean of squares, as RepDistiller has it; the paper trains the
    lower half on the hint first, with half the sum of squares.
    """

    num_teachers: ClassVar[int] = 1
    beta: float = 100.0
    level: str = "stage2"

    def read(self, outputs: Outputs) -> jax.Array:
        """Returns the hint."""
        return feature(outputs, self.level)

    def adapters(
        self, outputs: Mapping[str, Outputs], targets: Mapping[str, Any]
    ) -> dict[str, nn.Module]:
        """Returns the regressor."""
        teacher, target = only(targets)
        return {f"fitnet/{teacher}": Regressor(self.level, target.shape[1:])}

    def terms(self, context: Context) -> dict[str, Term]:
        """Returns cross-entropy and hint term."""
        teacher, target = only(context.targets)
        name = f"fitnet/{teacher}"
        return {
            "ce/student": Term(cross_entropy(context, "student")),
            name: Term(losses.feature_mse(context.adapted[name], target), self.beta),
        }
