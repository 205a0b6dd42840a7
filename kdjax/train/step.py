"""The one train step of every method, and the evaluation step."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from kdjax import losses
from kdjax.methods import Context, MemoryInit, weighted_sum
from kdjax.methods.base import Path
from kdjax.models import Outputs, Variables
from kdjax.runtime.rng import fold
from kdjax.train.metrics import Metrics
from kdjax.train.model_outputs import cast
from kdjax.train.networks import Networks
from kdjax.train.state import (
    Average,
    AveragedState,
    Gradients,
    StepInputs,
    TrainLogits,
    TrainState,
)


@dataclasses.dataclass(frozen=True)
class Step(Networks):
    """One stage's step: how its networks learn.

    Attributes:
        optimisers: of the method's phases.
        phase: the number of the method's phase.
        label_smoothing: of every cross-entropy with labels in training.
        mixup: alpha of the distribution that images are blended by; 0: they are not.
        ema: decay of the average of the networks; 0: there is none.
    """

    optimisers: tuple[optax.GradientTransformation, ...] = ()
    phase: int = 0
    label_smoothing: float = 0.0
    mixup: float = 0.0
    ema: float = 0.0

    def init(
        self,
        variables: dict[str, Variables],
        frozen: Mapping[str, Variables],
        key: jax.Array,
        labels: jax.Array,
    ) -> TrainState:
        """Returns the state before the first step.

        Args:
            variables: what `start` returns.
            frozen: the teachers' variables.
            key: the replica's root key.
            labels: `[N]` of the training set.
        """
        variables = self.method.initial(variables, frozen)
        params = {name: part["params"] for name, part in variables.items()}
        stats = {name: part["batch_stats"] for name, part in variables.items()}
        outputs, targets = self.output_specs, self.target_specs
        for name, adapter in self.adapters.items():
            # Adapters see shapes only: their start does not depend on the networks.
            part = adapter.lazy_init(
                fold(key, "adapter", name), dict(outputs), dict(targets), train=True
            )
            # Flax initialises in float32 whatever the inputs' dtype is.
            part = jax.tree.map(lambda leaf: leaf.astype(self.dtype), part)
            params[name] = part.get("params", {})
            stats[name] = part.get("batch_stats", {})
        # A tied parameter is stored under its owner alone: optimised and counted once.
        # Empty nodes are kept: an adapter without parameters keeps its place.
        flat = flatten_dict(params, keep_empty_nodes=True)
        for path in self.method.ties(params):
            del flat[path]
        params = unflatten_dict(flat)
        init = MemoryInit(
            key=fold(key, "memory"),
            labels=labels,
            num_classes=self.num_classes,
            outputs=outputs,
            targets=targets,
            models=self.teachers,
            frozen=frozen,
        )
        memory = self.method.init_memory(init)
        zero = jnp.zeros((), jnp.int32)
        return self.start_phase(TrainState(zero, params, stats, None, memory, zero))

    def start_phase(self, state: TrainState) -> TrainState:
        """Returns the state at the start of the phase, from the end of the last one."""
        trained, _ = self._split(state.params)
        fields = {
            **{f.name: getattr(state, f.name) for f in dataclasses.fields(state)},
            "opt_state": self.optimisers[self.phase].init(trained),
            "phase": jnp.full((), self.phase, jnp.int32),
        }
        if not self.ema:
            return TrainState(**fields)
        zero = jnp.zeros((), jnp.int32)
        fields["average"] = Average(state.params, state.batch_stats, zero)
        return AveragedState(**fields)

    @functools.cached_property
    def trains(self) -> Callable[[Path], bool]:
        """Whether the phase trains a parameter or statistic, by its path."""
        phase = self.method.phases()[self.phase]
        if not phase.trunk:
            return phase.trains
        trunks = {role: self.trunk(role) for role in self.roles}

        def trains(path: Path) -> bool:
            inside = path[0] not in trunks or path[1:] in trunks[path[0]]
            return inside and phase.trains(path)

        return trains

    def _split(self, tree: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns what the phase trains, and the rest: parameters or statistics."""
        trains = self.trains
        flat = flatten_dict(tree, keep_empty_nodes=True)
        rest = {path: leaf for path, leaf in flat.items() if not trains(path)}
        trained = {path: leaf for path, leaf in flat.items() if path not in rest}
        return unflatten_dict(trained), unflatten_dict(rest)

    def networks(self, state: TrainState) -> dict[str, Variables]:
        """Returns the complete variables of every trained network, by role.

        They are the averaged ones where there is an average.
        """
        source = state.average if isinstance(state, AveragedState) else state
        params = self.complete(source.params)
        return {
            role: {"params": params[role], "batch_stats": source.batch_stats[role]}
            for role in self.roles
        }

    def gradients(
        self,
        state: TrainState,
        inputs: StepInputs,
        key: jax.Array,
        compute_params: dict[str, Any] | None = None,
    ) -> tuple[Gradients, TrainState, TrainLogits]:
        """Returns the gradients of one micro-batch; parameters do not change yet.

        Args:
            state: before the step; of several micro-batches, after the one before.
            inputs: of the micro-batch.
            key: the replica's root key; the step's number is folded in here.
            compute_params: some of the state's parameters that have been cast to the
                dtype of the computation already.

        Returns:
            Gradients and metrics; the state, of which BatchNorm's statistics and the
            memory have moved; positions and the student's logits in training mode.
        """
        batch, step, stats = inputs.batch, state.step, state.batch_stats
        # In the stage's order: a pytree comes back from jit in the alphabet's.
        targets = {teacher: inputs.targets[teacher] for teacher in self.teachers}

        # Differentiated by what the phase trains only: the rest costs no backward pass.
        trained, rest = self._split(_merge(state.params, compute_params or {}))

        # With a position: the micro-batches of a step drop different units.
        def random(name: str, index: int) -> jax.Array:
            return fold(key, "step", step, "dropout", name, index, batch.index[0])

        def loss_fn(trained: dict[str, Any]) -> tuple[jax.Array, Any]:
            params = self.complete(_merge(trained, rest))
            outputs, new_stats = self.apply_roles(params, stats, batch.images, random)
            adapted = {}
            for name, adapter in self.adapters.items():
                variables = {"params": self._lower(params[name])}
                variables["batch_stats"] = stats[name]
                adapted[name], mutated = adapter.apply(
                    variables, outputs, targets, train=True, mutable=["batch_stats"]
                )
                new_stats[name] = mutated.get("batch_stats", {})

            # Further images of a method, such as BSS's attacks: statistics stay.
            def call(role: str, images: jax.Array) -> Outputs:
                return self.apply_role(role, params, stats, images, random)[0]

            context = Context(
                labels=batch.labels,
                index=batch.index,
                outputs=outputs,
                targets=targets,
                recorded=inputs.recorded,
                adapted=adapted,
                step=step,
                key=fold(key, "step", step),
                phase=self.phase,
                memory=state.memory,
                label_smoothing=self.label_smoothing,
                images=batch.images,
                call_role={role: functools.partial(call, role) for role in self.roles},
                call_teacher={
                    name: functools.partial(self.outputs, self.teachers[name], values)
                    for name, values in inputs.frozen.items()
                },
            )
            terms, memory = self.method.terms_and_memory(context)
            loss, metrics = weighted_sum(terms, step, dtype=self.dtype)
            metrics["loss"] = loss
            views = self.method.num_views
            for role, output in outputs.items():
                if role not in trained:
                    continue
                hits = _hits(output.logits, batch.labels)
                metrics[f"accuracy/{role}"] = jnp.mean(hits[::views], dtype=self.dtype)
            logits = outputs["student"].logits.astype(self.dtype)
            train_logits = batch.index[::views], logits[::views]
            return loss, (metrics, new_stats, memory, train_logits)

        grads, aux = jax.grad(loss_fn, has_aux=True)(trained)
        grads = cast(grads, self.dtype)
        metrics, new, memory, train_logits = aux
        # What the phase does not train keeps its BatchNorm statistics as well.
        new_stats = _merge(self._split(new)[0], self._split(stats)[1])
        moved = state.replace(batch_stats=new_stats, memory=memory)  # type: ignore[attr-defined]
        return Gradients(grads, metrics), moved, train_logits

    @jax.named_scope("update")  # in profiles, and for `preflight.hlo.kernels`
    def apply_gradients(self, state: TrainState, grads: dict[str, Any]) -> TrainState:
        """Returns the state after the optimiser's update, at the next step.

        Args:
            state: after all micro-batches of the step.
            grads: of what the phase trains, averaged over the micro-batches.
        """
        trained, rest = self._split(state.params)
        tx = self.optimisers[self.phase]
        updates, opt_state = tx.update(grads, state.opt_state, trained)
        moved = state.replace(  # type: ignore[attr-defined]
            step=state.step + 1,
            params=_merge(optax.apply_updates(trained, updates), rest),
            opt_state=opt_state,
        )
        if not isinstance(moved, AveragedState):
            return moved
        return moved.replace(average=self._averaged(moved))  # type: ignore[attr-defined]

    def _averaged(self, state: AveragedState) -> Average:
        """Returns the average with the networks of a state in it."""
        average = state.average
        count = average.count.astype(self.dtype)
        # The decay rises: a constant one would keep the start for 1 / (1 - ema) steps.
        decay = jnp.minimum(self.ema, (1 + count) / (10 + count))
        params, stats = optax.incremental_update(
            (state.params, state.batch_stats),
            (average.params, average.batch_stats),
            1 - decay,
        )
        return Average(params, stats, average.count + 1)

    def evaluate(
        self, state: TrainState, images: jax.Array, labels: jax.Array, valid: jax.Array
    ) -> Metrics:
        """Returns sums over one batch of test images, for every trained network.

        Args:
            state: the networks.
            images: `[batch, height, width, channels]`, normalised.
            labels: `[batch]` integers.
            valid: `[batch]` booleans, False for padding.

        Returns:
            'accuracy/ROLE', 'top5/ROLE' and 'loss/ROLE', summed over what is valid.
        """
        metrics = {}
        for role, variables in self.networks(state).items():
            logits = self.outputs(self.roles[role], variables, images).logits
            best = jax.lax.top_k(logits, min(5, self.num_classes))[1]
            hits = (best == labels[:, None]) & valid[:, None]
            # A NaN sorts first, but it is never right.
            hits &= jnp.all(jnp.isfinite(logits), axis=1, keepdims=True)
            loss = losses.cross_entropy(logits, labels).astype(self.dtype)
            metrics[f"accuracy/{role}"] = jnp.sum(hits[:, 0])
            metrics[f"top5/{role}"] = jnp.sum(hits)
            metrics[f"loss/{role}"] = jnp.sum(jnp.where(valid, loss, 0))
        return metrics


def _hits(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns whether the highest logit is the label's, `[batch]`; its share if mixed.

    Args:
        logits: `[batch, classes]`.
        labels: `[batch]` integers, or the classes' shares, `[batch, classes]`.
    """
    best = jnp.argmax(logits, axis=-1)
    if labels.ndim == 1:
        return best == labels
    return jnp.take_along_axis(labels, best[:, None], axis=1)[:, 0]


def _merge(*trees: dict[str, Any]) -> dict[str, Any]:
    """Returns nested dictionaries as one; of a common leaf the last one's stays."""
    flat: dict[Any, Any] = {}
    for tree in trees:
        flat |= flatten_dict(tree, keep_empty_nodes=True)
    return unflatten_dict(flat)
