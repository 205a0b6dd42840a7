"""How a stage is optimised: epochs, batch, optimiser and learning rate."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax

from kdjax.runtime.errors import UserError, unknown

OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("steps", "cosine")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A stage's optimisation; the defaults are the CTKD paper's for CIFAR.

    Weight decay of 'sgd' and 'adam' is coupled L2 on all parameters, BatchNorm and
    biases included, added to the gradient before momentum or moments, as PyTorch's
    optimisers do it. That of 'adamw' is decoupled (Loshchilov and Hutter, *Decoupled
    Weight Decay Regularization*, 2019): the learning rate times the decay times the
    parameter is subtracted beside Adam's step. By common convention it leaves out
    parameters with fewer than two axes: biases, and the scales of normalisation.

    A step clips the gradient first, then adds coupled weight decay. Every phase of a
    method has a schedule of its own, with its own warm-up.

    Deviations: the released code makes a new optimiser at every milestone, which
    empties the momentum; here it is kept.

    Attributes:
        epochs: number of epochs of floor(N / batch_size) steps.
        batch_size: images per step, over all devices.
        accumulate: micro-batches into which a step's batch is cut, one after the other,
            for batches that do not fit into memory. Their gradients are averaged.
            BatchNorm and the losses between a batch's examples see one micro-batch.
        optimizer: 'sgd', 'adam' or 'adamw'.
        learning_rate: at the start, or at the end of the warm-up.
        momentum: of SGD, from 0 to less than 1.
        nesterov: whether SGD's momentum is Nesterov's.
        weight_decay: the factor of the L2 term's gradient; of 'adamw' what the
            learning rate times the parameters is multiplied with.
        milestones: when the learning rate drops, as fractions of all steps; of
            schedule 'steps'.
        decay_factor: what a drop multiplies the learning rate with.
        schedule: 'steps', which drops at the milestones, or 'cosine', which falls to 0
            along half a cosine after the warm-up (Loshchilov and Hutter, *SGDR*, 2017,
            Eq. 5 without restarts).
        warmup: the share of all steps, from 0 to less than 1, over which the learning
            rate rises linearly from 0 (Goyal et al., *Accurate, Large Minibatch SGD*,
            2017). Milestones count from the first step.
        label_smoothing: a, from 0 to less than 1. Every cross-entropy with labels, of
            all trained networks, has (1 - a) of the label and a of all classes alike
            (Szegedy et al., 2016, Section 7). Test losses stay plain.
        clip_norm: the largest norm of a network's gradient, over all its parameters,
            which is scaled down to it (Pascanu et al., *On the difficulty of training
            Recurrent Neural Networks*, 2013); 0: not clipped. Trained networks and
            adapters are clipped each by itself: what one learns is then the same with
            and without another beside it.
        mixup: alpha of the Beta distribution that blends images and labels in pairs
            (`kdjax.train.mixup`); 0: not blended.
        ema: decay of the moving average of weights and BatchNorm statistics that is
            evaluated, saved and taken as a teacher, from 0 (off) to less than 1. In
            the first steps it is `min(ema, (1 + t) / (10 + t))` after t steps, as
            TensorFlow has it, so that the start is soon forgotten. At the start of a
            method's phase the average begins anew, at the weights as they are.
    """

    VERSION: ClassVar[int] = 1
    ADDED: ClassVar[tuple[str, ...]] = (
        "schedule",
        "warmup",
        "label_smoothing",
        "clip_norm",
        "mixup",
        "ema",
    )
    """Fields that came after `VERSION` 1: hashed only where they are not the default,
    so that the stages of earlier versions are found again."""
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
    schedule: str = "steps"
    warmup: float = 0.0
    label_smoothing: float = 0.0
    clip_norm: float = 0.0
    mixup: float = 0.0
    ema: float = 0.0

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise unknown("optimizer", self.optimizer, OPTIMIZERS)
        if self.schedule not in SCHEDULES:
            raise unknown("schedule", self.schedule, SCHEDULES)
        for name in (
            "epochs",
            "batch_size",
            "accumulate",
            "learning_rate",
            "decay_factor",
        ):
            if not getattr(self, name) > 0:
                raise UserError(f"{name}={getattr(self, name)} is not positive")
        for name in ("weight_decay", "clip_norm", "mixup"):
            if not getattr(self, name) >= 0:
                raise UserError(f"{name}={getattr(self, name)} is negative")
        for name in ("momentum", "warmup", "label_smoothing", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} is outside [0, 1)")
        if self.nesterov and not self.momentum:
            raise UserError("nesterov=True wants a momentum, which is 0")
        for milestone in self.milestones:
            if not 0 <= milestone <= 1:
                raise UserError(
                    f"milestone {milestone} is not a fraction of the epochs (0..1)"
                )
        if list(self.milestones) != sorted(self.milestones):
            raise UserError(f"milestones={self.milestones} are not in ascending order")

    def phases(self, changes: Iterable[Mapping[str, Any]]) -> "tuple[Recipe, ...]":
        """Returns the recipes of a stage's phases.

        Args:
            changes: what differs in each, by name.

        Raises:
            UserError: a change of what all phases of a stage share.
        """
        changes = tuple(changes)
        for name in {name for change in changes for name in change}:
            if name in self.step_options():
                raise UserError(f"a method's phases cannot change recipe.{name}")
        return tuple(dataclasses.replace(self, **change) for change in changes)

    def settings(self) -> dict[str, Any]:
        """Returns the version and the fields as plain data: for fingerprints.

        A field that was added later is left out while it has its default.
        """
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        fields = {
            name: value
            for name, value in dataclasses.asdict(self).items()
            if name not in self.ADDED or value != defaults[name]
        }
        return {"version": self.VERSION, **fields}

    def step_options(self) -> dict[str, Any]:
        """Returns what the recipe changes in the step itself: fields of `Step`."""
        names = ("label_smoothing", "mixup", "ema")
        return {name: getattr(self, name) for name in names}

    def learning_rates(self, steps: int) -> optax.Schedule:
        """Returns the learning rate as a function of the step, of `steps` in all."""
        # A step is left for the schedule itself, however short the run is.
        rising = min(round(self.warmup * steps), steps - 1)
        if self.schedule == "cosine":
            return optax.warmup_cosine_decay_schedule(
                0.0, self.learning_rate, rising, steps
            )
        # Short runs may round two milestones to one step: both drops count.
        factors: dict[int, float] = {}
        for milestone in self.milestones:
            step = round(milestone * steps)
            factors[step] = factors.get(step, 1.0) * self.decay_factor
        drops = optax.piecewise_constant_schedule(self.learning_rate, factors)
        if not rising:
            return drops
        # Not `optax.join_schedules`: it would count the milestones from the warm-up.
        share = optax.linear_schedule(0.0, 1.0, rising)
        return lambda step: share(step) * drops(step)

    def optimiser(self, steps: int) -> optax.GradientTransformation:
        """Returns the optimiser for a run of `steps` steps."""
        rates = self.learning_rates(steps)
        if self.optimizer == "adamw":
            rule = optax.adamw(rates, weight_decay=self.weight_decay, mask=_decays)
        elif self.optimizer == "adam":
            rule = optax.adam(rates)
        else:
            momentum = self.momentum or None
            rule = optax.sgd(rates, momentum=momentum, nesterov=self.nesterov)
        if self.weight_decay and self.optimizer != "adamw":
            rule = optax.chain(optax.add_decayed_weights(self.weight_decay), rule)
        if self.clip_norm:
            rule = optax.chain(_clip_each(self.clip_norm), rule)
        return rule


def _clip_each(norm: float) -> optax.GradientTransformation:
    """Returns what clips the gradient of every network, by its own global norm."""
    clip = optax.clip_by_global_norm(norm)

    def update(
        updates: dict[str, optax.Updates], params: optax.Params | None
    ) -> dict[str, optax.Updates]:
        del params
        return {
            name: clip.update(part, clip.init(part))[0]  # it keeps no state
            for name, part in updates.items()
        }

    return optax.stateless(update)


def _decays(params: optax.Params) -> optax.Params:
    """Returns for every parameter whether decoupled weight decay applies to it."""
    return jax.tree.map(lambda leaf: jnp.ndim(leaf) >= 2, params)
