"""The train state, the one train step of every method, and the evaluation step."""

import dataclasses
import functools
import hashlib
import operator
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from kdjax import backend, losses, models
from kdjax.data.stream import Batch
from kdjax.keys import fold
from kdjax.methods import Context, Method
from kdjax.models import Outputs, Variables

Metrics = dict[str, jax.Array]
Said = tuple[jax.Array, jax.Array]
"""Indices of a batch and the student's logits, as recorded for a later stage."""


@flax.struct.dataclass
class Given:
    """What a step, or one of its parts, is given.

    Attributes:
        batch: images, labels and indices.
        targets: what was read of every teacher on this batch, by stage.
        recorded: what teachers said at this step of their own training, by stage:
            logits, of those that the method replays.
    """

    batch: Batch
    targets: Mapping[str, Any]
    recorded: Mapping[str, jax.Array] = flax.struct.field(default_factory=dict)


@flax.struct.dataclass
class TrainState:
    """Everything that a step changes.

    Attributes:
        step: number of steps done.
        params: of trained roles and adapters, by name, without tied ones.
        batch_stats: of trained roles and adapters, by name.
        opt_state: the optimiser's.
    """

    step: jax.Array
    params: dict[str, Any]
    batch_stats: dict[str, Any]
    opt_state: Any


@dataclasses.dataclass(frozen=True)
class Step:
    """One stage's step: which networks it runs, and how they learn.

    Attributes:
        method: makes the terms of the loss.
        student: the student's model name.
        teachers: model names of the frozen teachers, by stage.
        num_classes: the data set's.
        image_shape: height, width and channels.
        tx: the optimiser.
        copy: tells the student's start apart from an equal network's.
        dtype: of parameters, BatchNorm's statistics, optimiser and losses.
        compute: of the networks' computation; None: `dtype`.
        parts: micro-batches per step. Their gradients are averaged, so that a step
            needs the memory of one. BatchNorm and the losses between the examples of a
            batch see one micro-batch at a time, and running statistics move once for
            each, as if it were a smaller step's.
    """

    method: Method
    student: str
    teachers: Mapping[str, str]
    num_classes: int
    image_shape: tuple[int, int, int]
    tx: optax.GradientTransformation
    copy: int = 0
    dtype: jnp.dtype = jnp.float32
    compute: jnp.dtype | None = None
    parts: int = 1

    def _lower(self, tree: Any) -> Any:
        """Returns parameters or images in the dtype of the networks' computation."""
        dtype = self.compute or self.dtype
        return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)

    def _outputs(self, name: str, variables: Variables, images: jax.Array) -> Outputs:
        """Returns what a network says in evaluation mode."""
        model = models.create(name, self.num_classes)
        variables = {**variables, "params": self._lower(variables["params"])}
        return model.apply(variables, self._lower(images), train=False)  # type: ignore[return-value]

    @property
    def roles(self) -> dict[str, str]:
        """Model names of the trained networks, by role, 'student' first."""
        return self.method.roles(self.student)

    @functools.cached_property
    def _seen(self) -> tuple[dict[str, Outputs], dict[str, Any]]:
        """Shapes of the trained networks' outputs and of what is read of teachers."""
        images = jax.ShapeDtypeStruct((2, *self.image_shape), self.dtype)
        variables, frozen = self.shapes(), {}
        for teacher, name in self.teachers.items():
            frozen[teacher] = self._model_shapes(name)
        params = {role: part["params"] for role, part in variables.items()}
        stats = {role: part["batch_stats"] for role, part in variables.items()}
        outputs, _ = jax.eval_shape(self._apply_roles, params, stats, images)
        return outputs, jax.eval_shape(self.targets, frozen, images)

    @property
    def target_shapes(self) -> dict[str, Any]:
        """Shapes of what is read of each teacher, for a batch of 2, by stage."""
        return self._seen[1]

    def read_id(self, teacher: str) -> str:
        """Returns a hash of what is read of a teacher: equal where the values are.

        It is the traced computation's, so that nobody has to keep it up to date.
        """
        images = jax.ShapeDtypeStruct((2, *self.image_shape), self.dtype)
        variables = self._model_shapes(self.teachers[teacher])
        outputs = jax.eval_shape(
            functools.partial(self._outputs, self.teachers[teacher]), variables, images
        )
        text = str(jax.make_jaxpr(self.method.read)(outputs))
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    @functools.cached_property
    def _adapters(self) -> dict[str, nn.Module]:
        return self.method.adapters(*self._seen)

    def start(self, key: jax.Array) -> dict[str, Variables]:
        """Returns the trained networks' own initial variables, by role.

        Args:
            key: the replica's root key.
        """
        return {
            role: models.init(
                key,
                name,
                self.num_classes,
                self.image_shape,
                self.copy if role == "student" else 0,
                self.dtype,
            )
            for role, name in self.roles.items()
        }

    def init(
        self,
        variables: dict[str, Variables],
        frozen: Mapping[str, Variables],
        key: jax.Array,
    ) -> TrainState:
        """Returns the state before the first step.

        Args:
            variables: what `start` returns.
            frozen: the teachers' variables.
            key: the replica's root key.
        """
        variables = self.method.initial(variables, frozen)
        params = {name: part["params"] for name, part in variables.items()}
        stats = {name: part["batch_stats"] for name, part in variables.items()}
        outputs, targets = self._seen
        for name, adapter in self._adapters.items():
            # Adapters see shapes only: their start does not depend on the networks.
            part = adapter.lazy_init(
                fold(key, "adapter", name), outputs, targets, train=True
            )
            part = jax.tree.map(lambda leaf: leaf.astype(self.dtype), part)
            params[name] = part.get("params", {})
            stats[name] = part.get("batch_stats", {})
        flat = flatten_dict(params, keep_empty_nodes=True)
        for path in self.method.ties(params):
            del flat[path]
        params = unflatten_dict(flat)
        zero = jnp.zeros((), jnp.int32)
        return TrainState(zero, params, stats, self.tx.init(params))

    def complete(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the parameters with the tied ones in their places."""
        shapes = {role: part["params"] for role, part in self.shapes().items()}
        flat = flatten_dict(params, keep_empty_nodes=True)
        for path, owner in self.method.ties(shapes).items():
            flat[path] = flat[owner]
        return unflatten_dict(flat)

    def shapes(self) -> dict[str, Variables]:
        """Returns the shapes of the trained networks' variables, by role."""
        return {role: self._model_shapes(name) for role, name in self.roles.items()}

    def _model_shapes(self, name: str) -> Variables:
        return models.shapes(name, self.num_classes, self.image_shape, self.dtype)

    def networks(self, state: TrainState) -> dict[str, Variables]:
        """Returns the complete variables of every trained network, by role."""
        params = self.complete(state.params)
        return {
            role: {"params": params[role], "batch_stats": state.batch_stats[role]}
            for role in self.roles
        }

    def _apply_roles(
        self, params: Mapping[str, Any], stats: Mapping[str, Any], images: jax.Array
    ) -> tuple[dict[str, Outputs], dict[str, Any]]:
        outputs, new_stats, images = {}, {}, self._lower(images)
        for role, name in self.roles.items():
            variables = {
                "params": self._lower(params[role]),
                "batch_stats": stats[role],
            }
            model = models.create(name, self.num_classes)
            outputs[role], mutated = model.apply(
                variables, images, train=True, mutable=["batch_stats"]
            )
            new_stats[role] = mutated.get("batch_stats", {})
        return outputs, new_stats

    def targets(
        self, frozen: Mapping[str, Variables], images: jax.Array
    ) -> dict[str, Any]:
        """Returns what the method reads of teachers, blocked to gradients, by stage.

        Args:
            frozen: variables of some teachers or all, by stage.
            images: `[batch, height, width, channels]`, normalised.
        """
        groups: dict[str, list[str]] = {}
        for teacher in frozen:
            groups.setdefault(self.teachers[teacher], []).append(teacher)
        found = {}
        for model, names in groups.items():

            def read(variables: Variables, model: str = model) -> Any:
                outputs = self._outputs(model, variables, images)
                return jax.lax.stop_gradient(self.method.read(outputs))

            if len(names) > 1 and backend.stack_teachers():
                stacked = jax.tree.map(
                    lambda *leaves: jnp.stack(leaves), *(frozen[n] for n in names)
                )
                together = jax.vmap(read)(stacked)
                for i, name in enumerate(names):
                    found[name] = jax.tree.map(operator.itemgetter(i), together)
            else:
                found |= {name: read(frozen[name]) for name in names}
        return found

    def train(
        self, state: TrainState, draw: Callable[[Any], Given], key: jax.Array
    ) -> tuple[TrainState, Metrics, Said]:
        """Returns the state after one step, the step's metrics and what was said.

        Args:
            state: before the step.
            draw: returns what a part of the step is given, by its number.
            key: the replica's root key; the step's number is folded in here.

        Returns:
            The new state; scalars: the total 'loss', every raw term by name, and
            'accuracy/ROLE' of every trained network on this batch; the batch's
            indices and the student's logits in training mode.
        """
        params, parts = state.params, self.parts

        def part(number: Any, stats: dict[str, Any]) -> Any:
            return self._gradients(params, stats, draw(number), state.step, key)

        if parts == 1:
            (grads, metrics), stats, said = part(0, state.batch_stats)
        else:
            shapes = jax.eval_shape(part, 0, state.batch_stats)[0]
            start = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

            def add(carry: Any, number: Any) -> Any:
                sums, stats = carry
                found, stats, said = part(number, stats)
                return (jax.tree.map(jnp.add, sums, found), stats), said

            carry = start, state.batch_stats
            (sums, stats), said = backend.loop(add, carry, parts)
            grads, metrics = jax.tree.map(lambda leaf: leaf / parts, sums)
            said = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), said)
        updates, opt_state = self.tx.update(grads, state.opt_state, params)
        state = TrainState(
            step=state.step + 1,
            params=optax.apply_updates(params, updates),
            batch_stats=stats,
            opt_state=opt_state,
        )
        return state, metrics, said

    def _gradients(
        self,
        params: dict[str, Any],
        stats: dict[str, Any],
        given: Given,
        step: jax.Array,
        key: jax.Array,
    ) -> tuple[tuple[Any, Metrics], dict[str, Any], Said]:
        """Returns gradients and metrics, new statistics, and what the student said."""
        batch = given.batch
        # In the stage's order: a pytree comes back from jit in the alphabet's.
        targets = {teacher: given.targets[teacher] for teacher in self.teachers}

        def loss_fn(params: dict[str, Any]) -> tuple[jax.Array, Any]:
            params = self.complete(params)
            outputs, new_stats = self._apply_roles(params, stats, batch.images)
            adapted = {}
            for name, adapter in self._adapters.items():
                variables = {"params": self._lower(params[name])}
                variables["batch_stats"] = stats[name]
                adapted[name], mutated = adapter.apply(
                    variables, outputs, targets, train=True, mutable=["batch_stats"]
                )
                new_stats[name] = mutated.get("batch_stats", {})
            context = Context(
                labels=batch.labels,
                index=batch.index,
                outputs=outputs,
                targets=targets,
                recorded=given.recorded,
                adapted=adapted,
                step=step,
                key=fold(key, "step", step),
            )
            metrics, loss = {}, jnp.zeros((), self.dtype)
            for name, term in self.method.terms(context).items():
                metrics[name] = jnp.mean(term.value)
                weight = term.weight
                scale = weight(step) if callable(weight) else weight
                added = metrics[name]
                if term.mask is not None:
                    added = jnp.mean(term.value * term.mask)
                loss += scale * added
            metrics["loss"] = loss
            for role, output in outputs.items():
                hits = jnp.argmax(output.logits, axis=-1) == batch.labels
                metrics[f"accuracy/{role}"] = jnp.mean(hits, dtype=self.dtype)
            said = batch.index, outputs["student"].logits.astype(self.dtype)
            return loss, (metrics, new_stats, said)

        grads, (metrics, stats, said) = jax.grad(loss_fn, has_aux=True)(params)
        return (grads, metrics), stats, said

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
            logits = self._outputs(self.roles[role], variables, images).logits
            best = jax.lax.top_k(logits, min(5, self.num_classes))[1]
            hits = (best == labels[:, None]) & valid[:, None]
            # A NaN sorts first, but it is never right.
            hits &= jnp.all(jnp.isfinite(logits), axis=1, keepdims=True)
            loss = losses.cross_entropy(logits, labels).astype(self.dtype)
            metrics[f"accuracy/{role}"] = jnp.sum(hits[:, 0])
            metrics[f"top5/{role}"] = jnp.sum(hits)
            metrics[f"loss/{role}"] = jnp.sum(jnp.where(valid, loss, 0))
        return metrics
