"""Given networks in an experiment: how they see its images, and how good they are."""

import dataclasses
from typing import Any

import jax
import numpy as np

from kdjax import models
from kdjax.data.feed import Feed
from kdjax.data.sources import Source
from kdjax.data.streaming.dataset import Images
from kdjax.experiment import given
from kdjax.experiment.config import Experiment
from kdjax.experiment.given_contents import Givens
from kdjax.experiment.predictions import is_table
from kdjax.experiment.stage import Stage
from kdjax.models import Outputs
from kdjax.runtime.console import console
from kdjax.runtime.errors import UserError
from kdjax.train.evaluation import evaluate
from kdjax.train.step import Step


def with_images(experiment: Experiment, images: Images | Source) -> Experiment:
    """Returns an experiment whose given networks see the images as they learned to.

    Images are normalised by the data set's mean and deviation; a network from
    elsewhere has its own, and its own order of classes. One whose classes have names
    is matched by these, if the data set's classes have the same ones.

    Args:
        experiment: the graph of stages.
        images: the data set, or what is known of it.
    """
    for stage in experiment.stages.values():
        _check_tables(stage, experiment)
        given.check(stage.given)
        given.check((stage.start,) if stage.start else ())
    return dataclasses.replace(
        experiment,
        stages={
            name: dataclasses.replace(stage, model=_as_it_learned(stage, images))
            for name, stage in experiment.stages.items()
        },
    )


def _check_tables(stage: Stage, experiment: Experiment) -> None:
    """Raises UserError if a method wants more of a teacher than its predictions."""
    for name in stage.teachers:
        teacher = experiment.stages[name]
        if not is_table(teacher.given):
            continue
        reason = ""
        if stage.method.num_views > 1 or stage.method.call_teachers:
            reason = "shows its teachers further images"
        elif stage.method.replays:
            reason = "replays how its teacher learned"
        else:
            logits: Any = jax.ShapeDtypeStruct((2, 2), np.float32)
            try:
                jax.eval_shape(stage.method.teacher_targets, Outputs(logits, {}))
            except (UserError, KeyError):
                reason = "compares features of the networks"
        if reason:
            raise UserError(
                f"stage {stage.name!r}: {name!r} is given by predictions alone, and "
                f"method {stage.method_name!r} {reason}; choices: a teacher that is a "
                "network, or a method of logits such as kd, dkd or dist"
            )


def _as_it_learned(stage: Stage, images: Images | Source) -> str:
    if not (stage.given or stage.mean) or is_table(stage.given):
        return stage.model
    mean, std, order = stage.mean, stage.std, stage.order
    other = given.other_stage(stage.given[0]) if stage.given else None
    if other is not None:
        mean, std = mean or other.mean or (), std or other.std or ()
        order = order or _order(other.classes, images.classes)
    channels = images.image_shape[-1]
    for what, values in (("mean", mean), ("std", std)):
        if len(values) not in (0, 1, channels):
            raise UserError(
                f"stage {stage.name!r}: {what}={values} (teacher_{what}) is not one "
                f"number for each of {channels} channels"
            )
    if any(not 0 <= value <= 1 for value in mean) or any(not 0 < s <= 1 for s in std):
        raise UserError(
            f"stage {stage.name!r}: mean={mean}, std={std} (teacher_mean, teacher_std) "
            "are not on the scale 0 to 1"
        )
    if order and sorted(order) != list(range(images.num_classes)):
        raise UserError(
            f"stage {stage.name!r}: order={order} (class_order) does not name each of "
            f"{images.num_classes} classes once"
        )
    own_mean, own_std = images.mean, images.std
    mean, std = (
        tuple(values) * (channels if len(values) == 1 else 1)
        for values in (mean or own_mean, std or own_std)
    )
    # (x * s + m - m') / s': what the teacher sees, of a normalised x.
    scale = tuple(s / t for s, t in zip(own_std, std, strict=True))
    shift = tuple((m - n) / t for m, n, t in zip(own_mean, mean, std, strict=True))
    same = np.allclose(scale, 1, atol=1e-6) and np.allclose(shift, 0, atol=1e-6)
    if same and not order:
        return stage.model
    return models.preprocessed(stage.model, scale, shift, order)


def _order(theirs: tuple[str, ...], ours: tuple[str, ...]) -> tuple[int, ...]:
    """Returns where our classes stand among another network's; nothing if equal."""
    if theirs == ours or not ours or sorted(theirs) != sorted(ours):
        return ()
    return tuple(theirs.index(name) for name in ours)


def check_given(stage: Stage, step: Step, feed: Feed, givens: Givens) -> dict[str, Any]:
    """Returns the result of a given stage, as a trained one's replica has it.

    A network is evaluated on the test images. Of predictions alone only the accuracy on
    the training images is known. A line warns where it is below twice chance.

    Args:
        stage: the given one.
        step: its network.
        feed: provides the images.
        givens: what it is given.
    """
    if is_table(stage.given):
        hits = np.argmax(givens.tables[stage.name], axis=1) == feed.labels
        accuracy, where = float(np.mean(hits)), "training"
        figures: dict[str, Any] = {"train_accuracy": accuracy}
        figures |= dict.fromkeys(("test_accuracy", "test_top5", "test_loss"))
        parameters = 0
    else:
        variables = givens.variables(stage.name)
        tested = evaluate(step, feed, variables)
        accuracy, where = tested["accuracy"], "test"
        figures = {f"test_{name}": value for name, value in tested.items()}
        parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    console.print(
        f"{stage.name}  given by {', '.join(stage.given)}: right for "
        f"{100 * accuracy:.2f} % of the {where} images",
        markup=False,
    )
    if accuracy < 2 / step.num_classes:
        console.print(
            f"{stage.name} is hardly better than chance (1 in {step.num_classes}): "
            "most often it learned from images of another mean and deviation "
            "(teacher_mean, teacher_std), or its classes stand in another order "
            "(class_order)",
            markup=False,
        )
    network = {"model": stage.model, "parameters": parameters, **figures}
    network["best_test_accuracy"] = network["test_accuracy"]
    return {
        "networks": {"student": network},
        "given": list(stage.given),
        "trained_parameters": 0,
        "seed": 0,
        "epochs": 0,
        "steps": 0,
        "seconds": 0.0,
        "images_per_second": 0.0,
        "digest": givens.digest(stage.name)["given"],
        "devices": [device.device_kind for device in jax.devices()],
        "history": [],
    }
