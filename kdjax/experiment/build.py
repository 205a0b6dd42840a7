"""From an experiment to its parts: the data set, the steps, what feeds them."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from jax.sharding import Mesh

from kdjax.data import own, sources
from kdjax.data.augment import Augment
from kdjax.data.device_feed import DeviceDataset, DeviceFeed
from kdjax.data.feed import Feed
from kdjax.data.own.vary import Vary
from kdjax.data.sources import Source
from kdjax.data.stream import Stream, check_batch_size
from kdjax.data.streaming.crop import Crop
from kdjax.data.streaming.dataset import Images, Streamed
from kdjax.data.streaming.feed import StreamedFeed
from kdjax.data.streaming.opening import open_streamed
from kdjax.experiment.config import PRECISIONS, Experiment
from kdjax.experiment.stage import Stage
from kdjax.runtime.errors import UserError
from kdjax.train.recipe import Recipe
from kdjax.train.step import Step


def open_data(experiment: Experiment) -> Images:
    """Returns an experiment's data set: in memory, or read as it is used.

    Raises:
        UserError: it is not there, damaged, or smaller than the sizes asked for.
    """
    return open_images(experiment.data, experiment.augment)


def open_images(data: Mapping[str, Any], augment: Augment | Crop | Vary) -> Images:
    """Returns a data set by a config's data section: see `open_data`.

    Args:
        data: the section without 'augment'.
        augment: how training images are varied.
    """
    if isinstance(augment, Vary):
        return own.open_own(data, augment.on_host())
    if sources.SOURCES[data["name"]].in_memory:
        return sources.load(**data)
    options = dict(data)
    if options.pop("validation", 0):
        raise UserError("data.validation is for data sets that fit into memory")
    assert isinstance(augment, Crop)
    return open_streamed(**options, crop=augment)


MOST_STEPS = 2**31
"""Of a stage: they are counted in 32 bits."""


@contextlib.contextmanager
def naming(stage: Stage) -> Iterator[None]:
    """Puts the stage's name before what is wrong with it."""
    try:
        yield
    # Losses and shapes raise plain ones for values and sizes that they refuse.
    except (ValueError, OverflowError) as error:
        line = " ".join(str(error).splitlines())
        raise UserError(f"stage {stage.name!r}: {line}") from error


def make_feed(
    experiment: Experiment, stage: Stage, data: DeviceDataset | Streamed, mesh: Mesh
) -> Feed:
    """Returns what feeds a stage's programs.

    Raises:
        UserError: a batch that is larger than the training set.
    """
    known = data if isinstance(data, Streamed) else data.dataset
    augment = experiment.augment
    if isinstance(data, Streamed) or isinstance(augment, Crop):
        augment = Augment()  # the workers have varied the images already
    stream = Stream(
        size=known.train_size,
        batch_size=stage.recipe.batch_size,
        augment=augment,
        mean=known.mean,
        std=known.std,
        dtype=experiment.dtype,
    )
    if isinstance(data, Streamed):
        return StreamedFeed(data, stream, mesh, stage.recipe.accumulate)
    return DeviceFeed(data, stream, mesh, stage.recipe.accumulate)


def make_steps(experiment: Experiment, images: Images | Source) -> dict[str, Step]:
    """Returns the step of every stage.

    Args:
        experiment: the graph of stages.
        images: the data set, or what is known of it beforehand.

    Raises:
        UserError: a network that does not fit the images.
    """
    steps = {}
    for name, stage in experiment.stages.items():
        with naming(stage):
            check_steps(stage.recipes, images.train_size)
            steps[name] = step = Step(
                method=stage.method,
                student=stage.model,
                teachers={
                    teacher: experiment.stages[teacher].model
                    for teacher in stage.teachers
                },
                num_classes=images.num_classes,
                image_shape=images.image_shape,
                optimisers=tuple(
                    recipe.optimiser(
                        recipe.epochs * (images.train_size // recipe.batch_size)
                    )
                    for recipe in stage.recipes
                ),
                init_index=stage.init_index,
                dtype=experiment.dtype,
                compute=PRECISIONS[experiment.precision].compute,
                **stage.recipe.step_options(),
            )
            step.shapes()
            step.target_specs  # noqa: B018 (what a loss refuses is raised here)
    return steps


def check_steps(recipes: Iterable[Recipe], train_size: int) -> None:
    """Raises UserError unless there is a step in an epoch, and they can be counted.

    Args:
        recipes: of a stage's phases.
        train_size: the number of training images.
    """
    for recipe in recipes:
        check_batch_size(recipe.batch_size, train_size)
        steps = recipe.epochs * (train_size // recipe.batch_size)
        if steps >= MOST_STEPS:
            raise UserError(
                f"epochs={recipe.epochs} of {train_size // recipe.batch_size} steps "
                f"are more than {MOST_STEPS - 1:,} steps, which is the most"
            )
