"""Tiny networks, images and programs for the tests."""

import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tiny_net

from kdjax import methods, models
from kdjax.data import device_feed
from kdjax.data.augment import Augment
from kdjax.data.sources import Dataset, Split
from kdjax.data.stream import Stream
from kdjax.runtime import parallel
from kdjax.runtime.rng import fold
from kdjax.runtime.signals import Interrupt
from kdjax.train.loop import Saving, Training
from kdjax.train.program import Program
from kdjax.train.recipe import Recipe
from kdjax.train.replica import Replica, resume_group
from kdjax.train.replica_step import EpochTargets
from kdjax.train.step import Step

STUDENT = TEACHER = "tiny-4"  # of different seeds
models.MODELS["tiny"] = tiny_net  # type: ignore[assignment]
CLASSES, SHAPE, SIZE, BATCH = 5, (8, 8, 3), 24, 8
RECIPE = Recipe(epochs=2, batch_size=BATCH, learning_rate=0.05, milestones=(0.5,))
AUGMENT = Augment(crop=1, flip=True)


def dataset(size: int = SIZE, classes: int = CLASSES) -> Dataset:
    """Returns random images; the last test batch is partial on four devices."""
    rng = np.random.default_rng(1)

    def split(count):
        images = rng.integers(0, 256, (count, *SHAPE), dtype=np.uint8)
        return Split(images, (np.arange(count) % classes).astype(np.int32))

    mean, std = (0.5,) * 3, (0.25,) * 3
    return Dataset("tiny", "1", split(size), split(10), classes, mean, std)


def black(prog: Program) -> device_feed.DeviceFeed:
    """Returns a program's feed with black training images, each like the others."""
    images, labels = prog.feed.data.train
    data = dataclasses.replace(prog.feed.data, train=(jnp.zeros_like(images), labels))
    return dataclasses.replace(prog.feed, data=data)


def frozen(names=("expert",), model=TEACHER, dtype=jnp.float64):
    """Returns teachers' variables, of other seeds than the student's.

    `names` may tell their models, as a step does.
    """
    found = names if isinstance(names, Mapping) else dict.fromkeys(names, model)
    return {
        name: models.init(jax.random.key(7 + i), found[name], CLASSES, SHAPE, 0, dtype)
        for i, name in enumerate(found)
    }


def program(
    name="supervised",
    options=None,
    *,
    student=STUDENT,
    recipe=RECIPE,
    devices=1,
    dtype=jnp.float64,
    augment=AUGMENT,
    data=None,
    teachers=None,
    banked=(),
    replicas=1,
    record=False,
    micro_batches=1,
    **fields,
) -> Program:
    """Returns a stage's program on the first devices.

    `teachers` are names, or models by name; without them as many as the method takes,
    two where it takes any number.
    """
    method = methods.create(name, options or {})
    data = data or dataset()
    if teachers is None:
        few = {0: (), 1: ("expert",), None: ("expert", "assistant")}
        teachers = few[method.num_teachers]
    mesh = parallel.make_mesh(jax.devices()[:devices], replicas=replicas)
    size = len(data.train.labels)
    stream = Stream(size, recipe.batch_size, augment, data.mean, data.std, dtype)
    if not isinstance(teachers, dict):
        teachers = dict.fromkeys(teachers, TEACHER)
    step = Step(
        method,
        method.network(student, list(teachers.values())),
        teachers,
        data.num_classes,
        SHAPE,
        optimisers=tuple(
            part.optimiser(part.epochs * stream.steps)
            for part in recipes(method, recipe)
        ),
        dtype=dtype,
        **{**recipe.step_options(), **fields},
    )
    placed = device_feed.place(data, mesh)
    feed = device_feed.DeviceFeed(placed, stream, mesh, micro_batches)
    return Program(step, feed, banked, record=record)


def training(
    prog: Program,
    folder: Path,
    *,
    recipe=RECIPE,
    seed=0,
    interrupt=None,
    load_targets=lambda epoch: EpochTargets(),
    **saving,
) -> "One":
    """Returns a replica of a program in training, in a folder that is made."""
    folder.mkdir(parents=True, exist_ok=True)
    one = replica(prog, folder, seed, keep_best=saving.get("best", False))
    try:
        step, group = resume_group([one])
        training = Training(
            prog,
            recipes(prog.step.method, recipe),
            Saving(**saving),
            group,
            step=step,
            interrupt=interrupt or Interrupt(),
            load_targets=load_targets,
        )
    except BaseException:
        one.close()
        raise
    return One(training, one)


def recipes(method, recipe):
    """Returns the recipes of a method's phases."""
    return recipe.phases(phase.recipe for phase in method.phases())


def replica(prog, folder, seed=0, **changes) -> Replica:
    """Returns what is kept of one seed."""
    return Replica(
        label="tiny",
        seed=seed,
        folder=folder,
        fingerprint="0123",
        frozen=frozen(prog.step.teachers, dtype=prog.step.dtype),
        **changes,
    )


class One(NamedTuple):
    """The training of a single replica."""

    training: Training
    replica: Replica

    def run(self):
        """Returns its result; closes its files."""
        with contextlib.closing(self.replica):
            return self.training.run()[0]

    def discard_checkpoints(self):
        """As `Run` does it."""
        self.replica.discard_checkpoints()


class InterruptAfter(Interrupt):
    """Behaves as if a signal had come after some questions."""

    def __init__(self, number: int, after: int):
        super().__init__()
        self._number, self._left = number, after

    @property
    def number(self):
        self._left -= 1
        return self._number if self._left < 0 else None

    @number.setter
    def number(self, value):
        pass


def steps(prog: Program, count: int, seed: int = 0, after=None):
    """Returns the state and the last sums of one replica after some steps.

    `after` is the state at the end of the phase before.
    """
    teachers = frozen(prog.step.teachers, dtype=prog.step.dtype)
    states = [prog.start_phase(after)] if after else None
    return many_steps(prog, count, [seed], teachers, states=states)[0]


def many_steps(
    prog: Program, count: int, seeds, teachers, load_targets=None, states=None
):
    """Returns states and last sums of replicas that are taught by the same teachers.

    `load_targets` takes an epoch and returns what all replicas have of their teachers;
    `states` are where to resume from.
    """
    prog.compile()
    width = len(seeds)
    states = states or [prog.start(seed, teachers) for seed in seeds]
    begin = int(states[0].step)
    state, totals = prog.stack_replicas(
        [(state, prog.zero_metrics()) for state in states]
    )
    inside = prog.prepare_teachers([teachers] * width)
    keys = prog.stack_replicas([jax.random.key(seed) for seed in seeds])
    for step in range(begin, begin + count):
        epoch, first = divmod(step, prog.feed.stream.steps)
        targets = load_targets(epoch) if load_targets else EpochTargets()
        _, inputs = next(prog.feed.epoch(seeds, epoch, first, 1))
        state, totals, _ = prog.train(state, totals, inside, targets, inputs, keys, 1)
    return prog.unstack_replicas((state, totals))


def batches(prog: Program, count: int, seed: int = 0):
    """Yields the batches of the first steps of a replica."""
    stream, data = prog.feed.stream, prog.feed.data.train
    key = fold(jax.random.key(seed), "stream")
    make = jax.jit(stream.batch)
    for step in range(count):
        yield make(data, stream.order(key, step // stream.steps), key, jnp.int32(step))


def replace(recipe=RECIPE, **changes) -> Recipe:
    """Returns the recipe with changes."""
    return dataclasses.replace(recipe, **changes)
