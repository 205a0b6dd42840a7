"""SSKD: distillation of the similarities between images and their rotations."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from kdjax import losses
from kdjax.methods.base import Context, Method, Path, Phase, Targets, Term, only
from kdjax.methods.levels import feature
from kdjax.methods.ranges import Count, Positive, Share
from kdjax.models import Outputs
from kdjax.models.layers import torch_dense
from kdjax.runtime.errors import UserError

_VIEWS = 4


class Head(nn.Module):
    """Two dense layers with a ReLU between them, as wide as the pooled features."""

    of_teacher: bool

    @nn.compact
    def __call__(
        self,
        outputs: Mapping[str, Outputs],
        targets: Mapping[str, Targets],
        train: bool,
    ) -> jax.Array:
        """Returns projections of all views, `[views * batch, channels]`."""
        del train
        _, target = only(targets)
        student = feature(outputs["student"], "pooled")
        x = target["pooled"] if self.of_teacher else student
        width = x.shape[-1]
        x = nn.relu(torch_dense(width, width, "dense1")(x))
        return torch_dense(width, width, "dense2")(x)


def _is_teachers(path: Path) -> bool:
    return path[0].startswith("sskd/") and path[0].endswith("/teacher")


def _split(rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the rows of the images and those of their rotations."""
    by_image = rows.reshape(-1, _VIEWS, *rows.shape[1:])
    return by_image[:, 0], by_image[:, 1:].reshape(-1, *rows.shape[1:])


@dataclasses.dataclass(frozen=True)
class SSKD(Method):
    """Self-supervised distillation (Xu et al., 2020).

    Every image comes in four rotations, made in the step. First phase: a head on the
    frozen teacher learns which image a rotated view was made from. Second
    phase: alpha CE + kd_weight KD of the images, transformed_weight KD of the rotated
    views, and contrast_weight KD of the similarities between rotated views and images,
    which the student's own head makes; of the last two those rows count that the
    teacher gets right or, by rank, nearly right.

    Square images. Deviations: weights, temperatures, shares and the first phase are the
    published code's; ties of rank keep their order (`losses.select_ranked`).

    Attributes:
        alpha: weight of the images' cross-entropy.
        kd_weight: weight of the images' distillation.
        transformed_weight: weight of the rotated views' distillation.
        contrast_weight: weight of the similarities' distillation.
        temperature: of both distillations.
        contrast_temperature: of the similarities.
        transformed_ratio: share of the rotated views that the teacher gets wrong and
            that are kept.
        contrast_ratio: share of the similarities that the teacher gets wrong and that
            are kept.
        init_epochs: the epochs of the first phase, before the recipe's.
        init_learning_rate: of the first phase; it is divided by 10 twice.
    """

    num_teachers: ClassVar[int | None] = 1
    num_views: ClassVar[int] = _VIEWS
    reads_labels: ClassVar[bool] = True
    alpha: float = 0.1
    kd_weight: float = 0.9
    transformed_weight: float = 2.7
    contrast_weight: float = 10.0
    temperature: Positive = 4.0
    contrast_temperature: Positive = 0.5
    transformed_ratio: Share = 1.0
    contrast_ratio: Share = 0.75
    init_epochs: Count = 60
    init_learning_rate: float = 0.05

    def make_views(self, images: jax.Array) -> jax.Array:
        """Returns every image and its rotations by 90, 180 and 270 degrees."""
        _, height, width, _ = images.shape
        if height != width:
            raise UserError(f"sskd: images of {height}x{width} cannot be rotated by 90")
        # Next to their image, so that slices of the batch have all views of an image.
        turned = [jnp.rot90(images, k, axes=(1, 2)) for k in range(_VIEWS)]
        return jnp.stack(turned, axis=1).reshape(-1, *images.shape[1:])

    def teacher_targets(self, outputs: Outputs) -> dict[str, jax.Array]:
        """Returns logits and pooled features."""
        return {"logits": outputs.logits, "pooled": feature(outputs, "pooled")}

    def adapters(
        self, outputs: Mapping[str, Outputs], targets: Mapping[str, Targets]
    ) -> dict[str, nn.Module]:
        """Returns both networks' heads."""
        teacher, _ = only(targets)
        return {
            f"sskd/{teacher}/student": Head(of_teacher=False),
            f"sskd/{teacher}/teacher": Head(of_teacher=True),
        }

    def phases(self) -> tuple[Phase, ...]:
        """Returns the phase of the teacher's head and that of the student."""
        recipe = {
            "epochs": self.init_epochs,
            "learning_rate": self.init_learning_rate,
            "milestones": (0.5, 0.75),
            "decay_factor": 0.1,
        }
        return (
            Phase(recipe, _is_teachers),
            Phase(trains=lambda path: not _is_teachers(path)),
        )

    def terms(self, context: Context) -> dict[str, Term]:
        """Returns the phase's terms."""
        teacher, target = only(context.targets)
        # `view_similarities` takes the rotations first, `_split` returns them second.
        theirs, ours = (
            losses.view_similarities(*reversed(_split(context.adapted[name])))
            for name in (f"sskd/{teacher}/teacher", f"sskd/{teacher}/student")
        )
        labels, turned_labels = _split(context.labels)
        source = jnp.repeat(jnp.arange(len(labels)), _VIEWS - 1)
        if not context.phase:
            return {f"sskd/{teacher}": Term(losses.cross_entropy(theirs, source))}
        own, turned = _split(context.outputs["student"].logits)
        target_own, target_turned = _split(target["logits"])
        # Of both tasks, those rows that the teacher gets right or nearly right: of the
        # rotated views their class, of the similarities the image that a view is from.
        by_class = losses.select_ranked(
            target_turned, turned_labels, ratio=self.transformed_ratio
        )
        by_image = losses.select_ranked(theirs, source, ratio=self.contrast_ratio)
        transformed = losses.selected_kd(
            turned, target_turned, by_class, temperature=self.temperature
        )
        contrast = losses.selected_kd(
            ours, theirs, by_image, temperature=self.contrast_temperature
        )
        images = losses.kd(own, target_own, temperature=self.temperature)
        return {
            "ce/student": Term(
                losses.cross_entropy(
                    own, labels, label_smoothing=context.label_smoothing
                ),
                self.alpha,
            ),
            f"sskd/kd/{teacher}": Term(images, self.kd_weight),
            f"sskd/transformed/{teacher}": Term(transformed, self.transformed_weight),
            f"sskd/contrast/{teacher}": Term(contrast, self.contrast_weight),
        }
