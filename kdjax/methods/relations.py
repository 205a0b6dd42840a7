"""Methods that teach relations between the examples of a batch.

They work across the whole batch, on features that RepDistiller's scripts choose: its
feat[-1] is 'pooled', its feat[-2] the last stage's map: 'stage3' or, of VGGs,
MobileNetV2 and the networks for ImageNet, 'stage4'. Here it is the last stage that both
networks have; in the benchmark's pairs they have equally many.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import flax.linen as nn
import jax

from kdjax import losses
from kdjax.methods.base import Context, Targets, Term, only
from kdjax.methods.levels import OneLevel, feature
from kdjax.methods.ranges import Count, Positive, Range
from kdjax.models import Outputs
from kdjax.models.layers import torch_dense


@dataclasses.dataclass(frozen=True)
class SP(OneLevel):
    """Similarity-preserving distillation (Tung and Mori, 2019): CE + beta SP."""

    beta: float = 3000.0

    def compare(
        self, context: Context, student: jax.Array, target: jax.Array
    ) -> jax.Array:
        """Returns the distance of the similarities."""
        return losses.similarity(student, target)


class Embeddings(nn.Module):
    """CC's two linear embeddings, of the student's feature and of the teacher's."""

    level: str
    dimensions: int

    @nn.compact
    def __call__(
        self,
        outputs: Mapping[str, Outputs],
        targets: Mapping[str, Targets],
        train: bool,
    ) -> tuple[jax.Array, jax.Array]:
        """Returns both embeddings, `[batch, dimensions]`."""
        del train
        _, target = only(targets)
        embedded = []
        for name, x in (
            ("student", feature(outputs["student"], self.level)),
            ("teacher", target),
        ):
            x = x.reshape(len(x), -1)
            embedded.append(torch_dense(x.shape[1], self.dimensions, name)(x))
        return embedded[0], embedded[1]


@dataclasses.dataclass(frozen=True)
class CC(OneLevel):
    """Correlation congruence (Peng et al., 2019): CE + beta CC of linear embeddings.

    Deviations: by default the loss is RepDistiller's product of neighbours' distances,
    to which beta belongs, and not the paper's kernel (see `losses.correlation`); both
    embeddings are trained, as there.

    Attributes:
        beta: the weight.
        dimensions: of the embeddings.
        form: 'consecutive', RepDistiller's, or 'kernel', the paper's, whose embeddings
            are normalised to length 1.
        gamma: of the kernel.
        order: highest power of the kernel's series.
    """

    ADDED: ClassVar[tuple[str, ...]] = (*OneLevel.ADDED, "form", "gamma", "order")
    level: str = "pooled"
    beta: float = 0.02
    dimensions: Count = 128
    form: Literal["consecutive", "kernel"] = "consecutive"
    gamma: Positive = 0.4
    order: Annotated[int, Range(least=1, most=100)] = 2

    def adapter(self, target: Targets) -> nn.Module:
        """Returns the embeddings."""
        return Embeddings(self.level, self.dimensions)

    def compare(
        self, context: Context, student: tuple[jax.Array, jax.Array], target: jax.Array
    ) -> jax.Array:
        """Returns the correlation term of both embeddings."""
        # The adapter embeds the teacher's feature as well; `target` is not embedded.
        embeddings = student
        if self.form == "kernel":  # which is the Gaussian's series for these alone
            embeddings = losses.unit_length(student[0]), losses.unit_length(student[1])
        return losses.correlation(
            *embeddings, form=self.form, gamma=self.gamma, order=self.order
        )


@dataclasses.dataclass(frozen=True)
class RKD(OneLevel):
    """Relational distillation (Park et al., 2019): CE + w_d RKD-D + w_a RKD-A.

    Attributes:
        distance: w_d.
        angle: w_a.
    """

    level: str = "pooled"
    distance: float = 25.0
    angle: float = 50.0

    def distances(self, context: Context) -> dict[str, Term]:
        """Returns distance and angle term."""
        teacher, target = only(context.targets)
        student = self.student_features(context.outputs["student"])
        return {
            f"rkd_distance/{teacher}": Term(
                losses.rkd_distance(student, target), self.distance
            ),
            f"rkd_angle/{teacher}": Term(losses.rkd_angle(student, target), self.angle),
        }


@dataclasses.dataclass(frozen=True)
class PKT(OneLevel):
    """Probabilistic knowledge transfer (Passalis and Tefas, 2018): CE + beta PKT."""

    level: str = "pooled"
    beta: float = 3e4

    def compare(
        self, context: Context, student: jax.Array, target: jax.Array
    ) -> jax.Array:
        """Returns the transfer term."""
        return losses.pkt(student, target)
