"""kdjax's train step as the library compiles and runs it: all that needs `Program`."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.cases import Case
from kdjax import models
from kdjax.data import device_feed
from kdjax.data.augment import Augment
from kdjax.data.sources import Dataset, Split
from kdjax.data.stream import Stream
from kdjax.runtime import backend, parallel
from kdjax.runtime.rng import fold
from kdjax.train.dispatch import Totals
from kdjax.train.program import Program
from kdjax.train.replica_step import EpochTargets
from kdjax.train.state import TrainState
from kdjax.train.step import Step

_SEED = 0
COMPUTE = {"float32": None, "bf16": jnp.bfloat16}
"""The dtype that networks are computed in, by precision; None: that of parameters."""


def images(case: Case, test: int = 16) -> Dataset:
    """Returns random images and labels in the case's shape."""
    rng = np.random.default_rng(0)

    def split(count: int) -> Split:
        pixels = rng.integers(0, 256, (count, *case.image), dtype=np.uint8)
        labels = rng.integers(0, case.classes, count, dtype=np.int32)
        return Split(pixels, labels)

    mean, std = (0.5,) * 3, (0.25,) * 3
    return Dataset(
        "random", "1", split(case.size), split(test), case.classes, mean, std
    )


def program(
    case: Case,
    dtype: jnp.dtype = jnp.float32,
    compute: jnp.dtype | None = None,
    ahead: jax.Device | None = None,
) -> Program:
    """Returns a case's program on one device, not compiled yet.

    Args:
        case: what it trains.
        dtype: of parameters, statistics and losses.
        compute: of the networks' computation; None: `dtype`.
        ahead: a device that is not there, to compile for; None: this machine's first.
    """
    dataset = images(case)
    mesh = parallel.make_mesh([ahead] if ahead else jax.devices()[:1])
    crop = 4 if min(case.image[:2]) >= 32 else 1
    augment = Augment(crop=crop, flip=True)
    stream = Stream(
        case.size, case.batch, augment, dataset.mean, dataset.std, dtype=dtype
    )
    method = case.create()
    recipes = case.recipe.phases(phase.recipe for phase in method.phases())
    step = Step(
        method,
        method.network(case.student, list(case.teachers.values())),
        case.teachers,
        case.classes,
        case.image,
        optimisers=tuple(
            recipe.optimiser(recipe.epochs * stream.steps) for recipe in recipes
        ),
        dtype=dtype,
        compute=compute,
    )
    place = device_feed.shapes if ahead else device_feed.place
    data = place(dataset, mesh)
    return Program(step, device_feed.DeviceFeed(data, stream, mesh))


class Start:
    """What training begins with, for all programs that are compiled of one.

    Attributes:
        made: what `program` returns.
        frozen: the teachers' variables, by name.
        placed: the same, as the train program takes them.
        keys: of the seeds.
        given: what the feed passes to the first dispatch.
    """

    def __init__(self, made: Program):
        """Starts the networks.

        Args:
            made: what `program` returns.
        """
        step, self.made = made.step, made
        # Other seeds than the student's: equal networks would have nothing to teach.
        self.frozen = {
            name: models.init(
                jax.random.key(_SEED + 1 + i),
                model,
                step.num_classes,
                step.image_shape,
                0,
                step.dtype,
            )
            for i, (name, model) in enumerate(step.teachers.items())
        }
        self.keys = made.stack_replicas([jax.random.key(_SEED)])
        self.placed = made.prepare_teachers([self.frozen])
        self._first = made.start(_SEED, self.frozen), made.zero_metrics()
        _, self.given = next(made.feed.epoch([_SEED], 0, 0, made.steps_per_dispatch))

    def state(self) -> tuple[TrainState, Totals]:
        """Returns state and metrics' sums before the first step, on the device."""
        return self.made.stack_replicas([self._first])


class Runner:
    """A program that trains; a call makes one dispatch and waits for it.

    Attributes:
        steps: number of training steps in a dispatch.
    """

    def __init__(self, made: Program):
        """Starts the networks and compiles.

        Args:
            made: what `program` returns.
        """
        self._program, self.steps = made, made.steps_per_dispatch
        self._start = Start(made)
        self._state, self._totals = self._start.state()
        made.compile()

    def __call__(self) -> None:
        """Trains for one dispatch and waits."""
        self._state, self._totals, done = self._program.train(
            self._state,
            self._totals,
            self._start.placed,
            EpochTargets(),
            self._start.given,
            self._start.keys,
            self.steps,
        )
        done.block_until_ready()

    def networks(self) -> dict[str, Any]:
        """Returns the trained networks' variables as they are now, by role."""
        (state,) = self._program.unstack_replicas(self._state)
        return self._program.step.networks(state)

    @property
    def compiled_text(self) -> str:
        """The optimised HLO of the program that a call runs."""
        return compiled_text(self._program)

    @property
    def frozen(self) -> Mapping[str, Any]:
        """The teachers' variables, by name."""
        return jax.device_get(self._start.frozen)

    @property
    def loss(self) -> float:
        """The sum of all steps' losses so far."""
        return loss(self._program, self._totals)

    def batch(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns images and labels of a step of the first epoch.

        Args:
            number: of the step, counted from 0.
        """
        feed, (order,) = self._program.feed, np.asarray(self._start.given)
        key = fold(jax.random.key(_SEED), "stream")
        made = feed.stream.batch(feed.train_arrays, order, key, jnp.asarray(number))
        return np.asarray(made.images), np.asarray(made.labels)


class Variant:
    """A train program compiled with other options; a call makes one dispatch and waits.

    Attributes:
        compiled: the program.
        steps: number of training steps in a dispatch.
    """

    def __init__(self, start: Start, compiled: jax.stages.Compiled):
        """Begins at the start, with a state of its own.

        Args:
            start: what training begins with.
            compiled: its train program.
        """
        self.compiled, self.steps = compiled, start.made.steps_per_dispatch
        self._start = start
        self._state, self._totals = start.state()

    def __call__(self) -> None:
        """Trains for one dispatch and waits."""
        start = self._start
        self._state, self._totals = self.compiled(
            self._state,
            self._totals,
            start.placed,
            EpochTargets(),
            start.made.feed.train_arrays,
            start.given,
            start.keys,
        )
        self._state.step.block_until_ready()

    @property
    def loss(self) -> float:
        """The sum of all steps' losses so far."""
        return loss(self._start.made, self._totals)


def loss(made: Program, totals: Totals) -> float:
    """Returns the sum of the losses of all steps, from the metrics' sums."""
    (own,) = made.unstack_replicas(totals)
    return float(own["sums"]["loss"])


def compiled_text(made: Program) -> str:
    """Returns the optimised HLO of the train program, which is compiled if need be."""
    return made.lower_train().compile(backend.compiler_options()).as_text()
