"""The networks of one stage: which they are, how they start, what they output."""

import dataclasses
import functools
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from kdjax import models
from kdjax.data.stream import Batch
from kdjax.methods import Method
from kdjax.models import Outputs, Variables
from kdjax.runtime import backend
from kdjax.runtime.computation import computation_id, used_inputs
from kdjax.runtime.lazy import Lazy
from kdjax.train.frozen import Frozen
from kdjax.train.model_outputs import apply_model, cast, output_shapes

Tree = TypeVar("Tree")
"""A tree of arrays."""
_STAGE = re.compile(r"stage\d+")
Random = Callable[[str, int], jax.Array]
"""Returns the random key of a micro-batch for a model's name and an `init_index`."""


class PreparedTeacher(NamedTuple):
    """A frozen teacher as a stage's programs use it.

    Attributes:
        weights: what its targets are computed from: `Frozen.prepare`.
        variables: parameters as they are computed with, for methods that call it; empty
            for others.
    """

    weights: list[jax.Array]
    variables: Variables


@dataclasses.dataclass(frozen=True)
class Networks:
    """The trained and the frozen networks of one stage.

    Attributes:
        method: which networks it trains, and what it reads of the others; what it
            leaves open is filled in (`Method.fit`).
        student: the student's model name.
        teachers: model names of the frozen teachers, by stage.
        num_classes: the data set's.
        image_shape: height, width and channels.
        init_index: equal networks of one seed start alike, unless this differs.
        dtype: of parameters, BatchNorm's statistics, optimiser and losses.
        compute: of the networks' computation; None: `dtype`.
    """

    method: Method
    student: str
    teachers: Mapping[str, str]
    num_classes: int
    image_shape: tuple[int, int, int]
    init_index: int = 0
    dtype: jnp.dtype = jnp.float32
    compute: jnp.dtype | None = None

    def __post_init__(self) -> None:
        def evaluated(teacher: str) -> Outputs:
            return self._outputs(self.teachers[teacher], 2, train=False)

        teachers = Lazy(self.teachers, evaluated)
        fitted = self.method.fit(self.output_specs, teachers)
        object.__setattr__(self, "method", fitted)

    @property
    def roles(self) -> dict[str, str]:
        """Model names of the trained networks, by role, 'student' first."""
        return self.method.roles(self.student)

    @functools.cached_property
    def adapters(self) -> dict[str, nn.Module]:
        """The method's further trained modules, by name."""
        return self.method.adapters(self.output_specs, self.target_specs)

    def target_id(self, teacher: str) -> str:
        """Returns a hash of how a teacher's targets are computed from its outputs.

        Methods with equal ids share the bank's entries. It is made from the traced
        computation, so that it cannot be out of date.
        """
        outputs = self._outputs(self.teachers[teacher], 2, train=False)
        return computation_id(self.method.teacher_targets, outputs)

    def shapes(self) -> dict[str, Variables]:
        """Returns the shapes of the trained networks' variables, by role."""
        return {role: self._model_shapes(name) for role, name in self.roles.items()}

    def trunk(self, role: str) -> set[tuple[str, ...]]:
        """Returns what a network's stages are computed from: paths of its variables.

        The features 'stage1', 'stage2', ... count, not what else is made of them: the
        BatchNorm behind the last stage of a Wide ResNet is outside.
        """
        name = self.roles[role]
        variables = self._model_shapes(name)

        def stages(variables: Variables) -> list[jax.Array]:
            images = jnp.zeros((2, *self.image_shape), self.dtype)
            features = self.outputs(name, variables, images).features
            return [x for level, x in features.items() if _STAGE.fullmatch(level)]

        flat = {
            path: used
            for part, used_tree in used_inputs(stages, variables).items()
            for path, used in flatten_dict(used_tree).items()
        }
        return {path for path, used in flat.items() if used}

    def start(self, key: jax.Array) -> dict[str, Variables]:
        """Returns the trained networks' own initial variables, by role.

        Args:
            key: the replica's root key.
        """
        indices = self.method.init_indices(self.init_index)
        return {
            role: models.init(
                key,
                name,
                self.num_classes,
                self.image_shape,
                indices.get(role, 0),
                self.dtype,
            )
            for role, name in self.roles.items()
        }

    def complete(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the parameters with the tied ones in their places."""
        shapes = {role: part["params"] for role, part in self.shapes().items()}
        # The same array in two places: its gradient is the sum of both uses.
        flat = flatten_dict(params, keep_empty_nodes=True)
        for path, owner in self.method.ties(shapes).items():
            flat[path] = flat[owner]
        return unflatten_dict(flat)

    def with_views(self, batch: Batch) -> Batch:
        """Returns a batch with all views of its images."""
        views = self.method.num_views
        if views == 1:
            return batch
        # The views of an image follow each other: the first rows are one image's.
        labels, index = (jnp.repeat(x, views) for x in (batch.labels, batch.index))
        return Batch(self.method.make_views(batch.images), labels, index)

    def targets(
        self, frozen: Mapping[str, Variables], images: jax.Array
    ) -> dict[str, Any]:
        """Returns the teachers' targets, blocked to gradients, by stage.

        Args:
            frozen: variables of some teachers or all, by stage.
            images: `[batch, height, width, channels]`, normalised.
        """
        return self.targets_of(self.prepare(frozen, len(images)), images)

    def prepare(
        self, frozen: Mapping[str, Variables], batch: int
    ) -> dict[str, PreparedTeacher]:
        """Returns what is computed of teachers once, before all steps.

        Args:
            frozen: variables of some teachers or all, by stage.
            batch: how many images `targets_of` gets.
        """
        shape = batch, *self.image_shape
        prepared = {}
        for name, variables in frozen.items():
            network = self._frozen_network(self.teachers[name], shape)
            called: Variables = {}
            if self.method.call_teachers:
                called = {**variables, "params": self._lower(variables["params"])}
            prepared[name] = PreparedTeacher(network.prepare(variables), called)
        return prepared

    def targets_of(
        self, teachers: Mapping[str, PreparedTeacher], images: jax.Array
    ) -> dict[str, Any]:
        """Returns what `targets` does, of prepared teachers."""
        # By model: equal networks can run as one vmapped call, see `stack_teachers`.
        groups: dict[str, list[str]] = {}
        for teacher in teachers:
            groups.setdefault(self.teachers[teacher], []).append(teacher)
        targets = {}
        for model, names in groups.items():
            compute = functools.partial(
                self._frozen_network(model, images.shape), images=images
            )
            weights = [teachers[name].weights for name in names]
            if len(names) > 1 and backend.stack_teachers():
                stacked = jax.vmap(compute)(
                    jax.tree.map(lambda *leaves: jnp.stack(leaves), *weights)
                )
                for i, name in enumerate(names):
                    targets[name] = jax.tree.map(operator.itemgetter(i), stacked)
            else:
                targets |= dict(zip(names, map(compute, weights), strict=True))
        return jax.lax.stop_gradient(targets)

    def _frozen_network(self, model: str, shape: tuple[int, ...]) -> Frozen:
        """Returns the computation of a teacher's targets for images of a shape."""
        if (model, shape) not in self._traced:

            def compute(variables: Variables, images: jax.Array) -> Any:
                return self.method.teacher_targets(
                    self.outputs(model, variables, images)
                )

            images = jax.ShapeDtypeStruct(shape, self.dtype)
            self._traced[model, shape] = Frozen(
                compute, self._model_shapes(model), images
            )
        return self._traced[model, shape]

    @functools.cached_property
    def _traced(self) -> dict[tuple[str, tuple[int, ...]], Frozen]:
        """The teachers' computations so far, by model and shape of the images."""
        return {}

    def outputs(self, name: str, variables: Variables, images: jax.Array) -> Outputs:
        """Returns a network's outputs in evaluation mode.

        Args:
            name: the model's.
            variables: the network's.
            images: `[batch, height, width, channels]`, normalised.
        """
        compute = self.compute or self.dtype
        return apply_model(name, self.num_classes, compute, False, variables, images)[0]

    def compute_params(self, params: Mapping[str, Any]) -> dict[str, Any] | None:
        """Returns the kernels as they are computed with; None: they are so already.

        Not vectors, such as BatchNorm's: they are cast where they are used, which costs
        no kernel of the device.

        Args:
            params: of trained networks and adapters.
        """
        if self.compute in (None, self.dtype):
            return None
        flat = flatten_dict(params)
        return unflatten_dict(
            {path: self._lower(leaf) for path, leaf in flat.items() if leaf.ndim > 1}
        )

    def apply_roles(
        self,
        params: Mapping[str, Any],
        stats: Mapping[str, Any],
        images: jax.Array,
        random: Random,
    ) -> tuple[dict[str, Outputs], dict[str, Any]]:
        """Returns the trained networks' outputs in training mode, and new statistics.

        Args:
            params: by role, complete.
            stats: by role.
            images: `[batch, height, width, channels]`, normalised.
            random: the random key of a network; called for those with dropout alone.
        """
        outputs, new_stats = {}, {}
        for role in self.roles:
            outputs[role], new_stats[role] = self.apply_role(
                role, params, stats, images, random
            )
        return outputs, new_stats

    def apply_role(
        self,
        role: str,
        params: Mapping[str, Any],
        stats: Mapping[str, Any],
        images: jax.Array,
        random: Random | None = None,
    ) -> tuple[Outputs, dict[str, Any]]:
        """Returns one trained network's outputs, as `apply_roles` does all."""
        variables = {"params": params[role], "batch_stats": stats[role]}
        name, compute = self.roles[role], self.compute or self.dtype
        # As for the start, no role enters: a scratch teacher retraces its expert.
        index = self.method.init_indices(self.init_index).get(role, 0)
        key = functools.partial(random, name, index) if random else None
        return apply_model(
            name, self.num_classes, compute, True, variables, images, key
        )

    @functools.cached_property
    def output_specs(self) -> Mapping[str, Outputs]:
        """Shapes of the trained networks' outputs for two images, by role.

        Few methods ask for them: a network is traced when its own are looked up.
        """

        def trained(role: str) -> Outputs:
            return self._outputs(self.roles[role], self.num_rows(2), train=True)

        return Lazy(self.roles, trained)

    @functools.cached_property
    def target_specs(self) -> Mapping[str, Any]:
        """Shapes of the teachers' targets for two images, by stage; lazy as well."""

        def target(teacher: str) -> Any:
            outputs = self._outputs(
                self.teachers[teacher], self.num_rows(2), train=False
            )
            return jax.eval_shape(self.method.teacher_targets, outputs)

        return Lazy(self.teachers, target)

    def num_rows(self, images: int) -> int:
        """Returns how many rows a batch has with all views of its images."""
        specs = jax.ShapeDtypeStruct((images, *self.image_shape), self.dtype)
        return len(jax.eval_shape(self.method.make_views, specs))

    def _outputs(self, name: str, batch: int, train: bool) -> Outputs:
        compute = self.compute or self.dtype
        return output_shapes(
            models.identity(name),
            name,
            self.num_classes,
            (batch, *self.image_shape),
            self.dtype,
            compute,
            train,
        )

    def _model_shapes(self, name: str) -> Variables:
        return models.shapes(name, self.num_classes, self.image_shape, self.dtype)

    def _lower(self, tree: Tree) -> Tree:
        """Returns parameters or images in the dtype of the networks' computation."""
        return cast(tree, self.compute or self.dtype)
