"""Methods that teach how the examples of a batch relate to each other.

They work across the whole batch, on features that RepDistiller's scripts choose: its
feat[-1] is 'pooled', its feat[-2] the last stage's map, 'stage3' in networks for small
images.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax

from kdjax import losses
from kdjax.methods.base import Context, Method, Term, cross_entropy, only
from kdjax.methods.levels import feature
from kdjax.models import Outputs
from kdjax.models.layers import torch_dense


@dataclasses.dataclass(frozen=True)
class _OfOneFeature(Method):
    """What compares one feature of the student with the teacher's.

    Attributes:
        level: the feature.
    """

    num_teachers: ClassVar[int] = 1
    level: str = "pooled"

    def teacher_targets(self, outputs: Outputs) -> jax.Array:
        """Returns the feature."""
        return feature(outputs, self.level)

    def _pair(self, context: Context) -> tuple[str, jax.Array, jax.Array]:
        """Returns the teacher's name, the student's feature and the teacher's."""
        teacher, target = only(context.targets)
        return teacher, feature(context.outputs["student"], self.level), target


@dataclasses.dataclass(frozen=True)
class SP(_OfOneFeature):
    """Similarity-preserving distillation (Tung and Mori, 2019): CE + beta SP."""

    level: str = "stage3"
    beta: float = 3000.0

    def terms(self, context: Context) -> dict[str, Term]:
        """Returns cross-entropy and similarity term."""
        teacher, student, target = self._pair(context)
        return {
            "ce/student": Term(cross_entropy(context, "student")),
            f"sp/{teacher}": Term(losses.similarity(student, target), self.beta),
        }


class Embeddings(nn.Module):
    """CC's two linear embeddings, of the student's feature and of the teacher's."""

    level: str
    dimensions: int

    @nn.compact
    def __call__(
        self, outputs: Mapping[str, Outputs], targets: Mapping[str, Any], train: bool
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
class CC(_OfOneFeature):
    """Correlation congruence (Peng et al., 2019): CE + beta CC of linear embeddings.

    Deviations: the loss is RepDistiller's product of neighbours' distances, to which
    beta belongs, and not the paper's kernel (see `losses.correlation`); both
    embeddings are trained, as there.
    """

    beta: float = 0.02
    dimensions: int = 128

    def adapters(
        self, outputs: Mapping[str, Outputs], targets: Mapping[str, Any]
    ) -> dict[str, nn.Module]:
        """Returns the embeddings."""
        teacher, _ = only(targets)
        return {f"cc/{teacher}": Embeddings(self.level, self.dimensions)}

    def terms(self, context: Context) -> dict[str, Term]:
        """Returns cross-entropy and correlation term."""
        teacher, _ = only(context.targets)
        name = f"cc/{teacher}"
        student, target = context.adapted[name]
        return {
            "ce/student": Term(cross_entropy(context, "student")),
            name: Term(losses.correlation(student, target), self.beta),
        }


@dataclasses.dataclass(frozen=True)
class RKD(_OfOneFeature):
    """Relational distillation (Park et al., 2019): CE + w_d RKD-D + w_a RKD-A.

    Attributes:
        distance: w_d.
        angle: w_a.
    """

    distance: float = 25.0
    angle: float = 50.0

    def terms(self, context: Context) -> dict[str, Term]:
        """Returns cross-entropy, distance and angle term."""
        teacher, student, target = self._pair(context)
        distance = losses.rkd_distance(student, target)
        return {
            "ce/student": Term(cross_entropy(context, "student")),
            f"rkd_distance/{teacher}": Term(distance, self.distance),
            f"rkd_angle/{teacher}": Term(losses.rkd_angle(student, target), self.angle),
        }


@dataclasses.dataclass(frozen=True)
class PKT(_OfOneFeature):
    """Probabilistic knowledge transfer (Passalis and Tefas, 2018): CE + beta PKT."""

    beta: float = 3e4

    def terms(self, context: Context) -> dict[str, Term]:
        """Returns cross-entropy and transfer term."""
        teacher, student, target = self._pair(context)
        return {
            "ce/student": Term(cross_entropy(context, "student")),
            f"pkt/{teacher}": Term(losses.pkt(student, target), self.beta),
        }
