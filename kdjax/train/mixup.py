"""mixup: every image of a batch is blended with another one, and so are their labels.

Zhang et al., *mixup: Beyond Empirical Risk Minimization*, ICLR 2018. All networks of a
step see the same blended images, its teachers too: 'consistent teaching' (Beyer et al.,
*Knowledge distillation: A good teacher is patient and consistent*, CVPR 2022).
"""

from collections.abc import Collection

import jax

from kdjax.data.stream import Batch
from kdjax.methods import Method
from kdjax.runtime import parallel
from kdjax.runtime.errors import UserError
from kdjax.runtime.rng import fold


def mix(
    batch: Batch,
    alpha: float,
    key: jax.Array,
    *,
    num_classes: int,
    number: jax.Array | int = 0,
) -> Batch:
    """Returns a batch whose images and labels are blended in pairs.

    `x = l x_i + (1 - l) x_j`, `y = l y_i + (1 - l) y_j` (Zhang et al., Section 2), with
    `l ~ Beta(alpha, alpha)` once for the whole step, y one-hot, and j a permutation of
    the batch.

    Deviations: of a step that is cut into micro-batches, the partners are within each
    micro-batch; l is the whole step's. As in the published code, all pairs of a batch
    share one l.

    Args:
        batch: images and integer labels, `[batch]`, of one micro-batch.
        alpha: of the Beta distribution, positive.
        key: of the step.
        num_classes: the data set's.
        number: of the micro-batch.

    Returns:
        The batch with labels `[batch, classes]`, whose rows add up to 1.
    """
    dtype = batch.images.dtype
    # X / (X + Y) of X, Y ~ Gamma(alpha): `jax.random.beta` compiles twice as long.
    x, y = jax.random.loggamma(fold(key, "mixup"), alpha, (2,), dtype)
    share = jax.nn.sigmoid(x - y)
    partner = jax.random.permutation(
        fold(key, "mixup", "partners", number), len(batch.labels)
    )
    labels = jax.nn.one_hot(batch.labels, num_classes, dtype=dtype)

    def blend(array: jax.Array) -> jax.Array:
        return share * array + (1 - share) * array[partner]

    # The partners of a device's images are on any device.
    return jax.lax.with_sharding_constraint(
        Batch(blend(batch.images), blend(labels), batch.index), parallel.DATA
    )


def check_method(alpha: float, name: str, method: Method) -> None:
    """Raises UserError if a method cannot learn from blended images.

    Args:
        alpha: the recipe's; 0 is no mixup.
        name: the method's.
        method: of the stage.
    """
    reasons = {
        "makes views of its images": method.num_views > 1,
        "replays what its teacher said of whole images": method.replays,
        "needs each image's one label": method.reads_labels,
    }
    for reason, holds in reasons.items():
        if alpha and holds:
            raise UserError(
                f"recipe.mixup={alpha:g} does not go with method {name!r}, which "
                f"{reason}; choices: mixup=0, or a method such as kd"
            )


def check_stored(alpha: float, teachers: Collection[str]) -> None:
    """Raises UserError if stored targets, which are of whole images, would be read.

    Args:
        alpha: the recipe's; 0 is no mixup.
        teachers: whose targets are stored.
    """
    if alpha and teachers:
        raise UserError(
            f"recipe.mixup={alpha:g} blends images, but the targets of "
            f"{', '.join(teachers)} are stored for whole ones; choices: mixup=0, or a "
            "teacher that is a network"
        )
