"""Tiny networks, images and programs for the tests."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from kdjax import methods, models, parallel
from kdjax.data import resident
from kdjax.data.augment import Augment
from kdjax.data.sources import Dataset, Split
from kdjax.data.stream import Stream
from kdjax.interrupt import Interrupt
from kdjax.program import Program
from kdjax.recipe import Recipe
from kdjax.step import Step
from kdjax.train import Saving, Training

STUDENT = TEACHER = "wrn-10-1"  # of different seeds
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


def black(prog: Program) -> resident.Resident:
    """Returns a program's data with black training images, each like the others."""
    data = prog._data
    images, labels = data.train
    return dataclasses.replace(data, train=(jnp.zeros_like(images), labels))


def frozen(names=("expert",), model=TEACHER, dtype=jnp.float64):
    """Returns teachers' variables, of other seeds than the student's."""
    return {
        name: models.init(jax.random.key(7 + i), model, CLASSES, SHAPE, 0, dtype)
        for i, name in enumerate(names)
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
    mesh = parallel.make_mesh(jax.devices()[:devices])
    size = len(data.train.labels)
    stream = Stream(size, recipe.batch_size, augment, data.mean, data.std, dtype)
    step = Step(
        method,
        student,
        teachers if isinstance(teachers, dict) else dict.fromkeys(teachers, TEACHER),
        data.num_classes,
        SHAPE,
        recipe.optimiser(recipe.epochs * stream.steps),
        dtype=dtype,
    )
    return Program(step, resident.place(data, mesh), stream, mesh, banked)


def training(
    prog: Program,
    folder: Path,
    *,
    recipe=RECIPE,
    seed=0,
    interrupt=None,
    tables=lambda epoch: {},
    **saving,
) -> Training:
    """Returns a replica of a program, in a folder that is made."""
    folder.mkdir(parents=True, exist_ok=True)
    return Training(
        prog,
        recipe,
        Saving(**saving),
        label="tiny",
        seed=seed,
        frozen=frozen(prog.step.teachers, dtype=prog.step.dtype),
        folder=folder,
        fingerprint="0123",
        interrupt=interrupt or Interrupt(),
        tables=tables,
    )


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


def steps(prog: Program, count: int, seed: int = 0):
    """Returns the state and the last sums after some steps."""
    key, teachers = (
        prog.place(jax.random.key(seed)),
        prog.place(frozen(prog.step.teachers, dtype=prog.step.dtype)),
    )
    state, totals = prog.start(seed, teachers), prog.empty()
    prog.compile(key, teachers)
    for step in range(count):
        order = prog.order(key, step // prog.stream.steps)
        state, totals, _ = prog.train(state, totals, teachers, {}, order, key, 1)
    return jax.device_get((state, totals))


def replace(recipe=RECIPE, **changes) -> Recipe:
    """Returns the recipe with changes."""
    return dataclasses.replace(recipe, **changes)
