"""How a stage is optimised: epochs, batch, optimiser and learning rate."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import optax

from kdjax.runtime.errors import UserError, unknown

OPTIMIZERS = ("sgd", "adam")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A stage's optimisation; the defaults are the CTKD paper's for CIFAR.

    Weight decay is coupled L2 on all parameters, BatchNorm and biases included, added
    to the gradient before momentum or moments, as PyTorch's optimisers do it.

    Deviations: the released code makes a new optimiser at every milestone, which
    empties the momentum; here it is kept.

    Attributes:
        epochs: number of epochs of floor(N / batch_size) steps.
        batch_size: images per step, over all devices.
        accumulate: micro-batches into which a step's batch is cut, one after the other,
            for batches that do not fit into memory. Their gradients are averaged.
            BatchNorm and the losses between a batch's examples see one micro-batch.
        optimizer: 'sgd' or 'adam'.
        learning_rate: at the start.
        momentum: of SGD.
        nesterov: whether SGD's momentum is Nesterov's.
        weight_decay: the factor of the L2 term's gradient.
        milestones: when the learning rate drops, as fractions of all steps.
        decay_factor: what a drop multiplies the learning rate with.
    """

    VERSION: ClassVar[int] = 1
    epochs: int = 200
    batch_size: int = 128
    accumulate: int = 1
    optimizer: str = "sgd"
    learning_rate: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    milestones: tuple[float, ...] = (0.3, 0.6, 0.8)
    decay_factor: float = 0.2

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise unknown("optimizer", self.optimizer, OPTIMIZERS)
        for name in (
            "epochs",
            "batch_size",
            "accumulate",
            "learning_rate",
            "decay_factor",
        ):
            if not getattr(self, name) > 0:
                raise UserError(f"{name}={getattr(self, name)} is not positive")
        for name in ("momentum", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise UserError(f"{name}={getattr(self, name)} is negative")
        if self.nesterov and not self.momentum:
            raise UserError("nesterov=True wants a momentum, which is 0")
        for milestone in self.milestones:
            if not 0 <= milestone <= 1:
                raise UserError(
                    f"milestone {milestone} is not a fraction of the epochs (0..1)"
                )

    def phases(self, changes: Iterable[Mapping[str, Any]]) -> "tuple[Recipe, ...]":
        """Returns the recipes of a stage's phases.

        Args:
            changes: what differs in each, by name.
        """
        return tuple(dataclasses.replace(self, **change) for change in changes)

    def schedule(self, steps: int) -> optax.Schedule:
        """Returns the learning rate as a function of the step, of `steps` in all."""
        # Short runs may round two milestones to one step: both drops count.
        factors: dict[int, float] = {}
        for milestone in self.milestones:
            step = round(milestone * steps)
            factors[step] = factors.get(step, 1.0) * self.decay_factor
        return optax.piecewise_constant_schedule(self.learning_rate, factors)

    def optimiser(self, steps: int) -> optax.GradientTransformation:
        """Returns the optimiser for a run of `steps` steps."""
        schedule = self.schedule(steps)
        if self.optimizer == "adam":
            rule = optax.adam(schedule)
        else:
            momentum = self.momentum or None
            rule = optax.sgd(schedule, momentum=momentum, nesterov=self.nesterov)
        if not self.weight_decay:
            return rule
        return optax.chain(optax.add_decayed_weights(self.weight_decay), rule)
