"""One student, one teacher, any method: pairs of the public CIFAR-100 benchmark.

    python -m kdjax.main --config configs/kd.py:crd,teacher=resnet56,student=resnet20
    python -m kdjax.main --config configs/kd.py:crd+kd,teacher=wrn-40-2,student=vgg8
    python -m kdjax.main --config configs/kd.py:at,dataset=digits,epochs=10

The first word is a row of `kdjax.methods.METHODS`, or several joined by '+'; several
such words joined by '/', or 'all' for every row, are students of one teacher.
Arguments, besides epochs, batch_size, train_size, test_size and seeds:

    teacher=resnet56     or several, teacher=resnet56/resnet44, for ensemble and dgkd:
                         others take the first; dml, rocket and ctkd train a network of
                         its model beside the student's
    teacher_epochs=240   where the teachers shall learn longer than the students
    student=resnet20     the benchmark's ResNet50 is bottleneck_resnet-50, its
                         MobileNetV2 mobilenetv2-0.5
    dataset=cifar100     or cifar10, svhn, tiny_imagenet, digits

The recipe is that of the benchmark's public code (RepDistiller, mdistiller): SGD with
momentum 0.9, weight decay 5e-4, batch 64, 240 epochs, learning rate 0.05 (0.01 for
MobileNetV2 and the ShuffleNets) divided by 10 at epochs 150, 180 and 210; crops after
zero padding and flips. Weights are those of the authors' scripts; of DKD and ReviewKD,
whose authors chose them for each pair, those of the pair. Levels are all that student
and teacher share. Warm-ups that the authors count in epochs keep their share of the
epochs. On digits the attention terms have a sixteenth of their weight, as in
`configs/ctkd.py`.

Hardware: a GPU or TPU, but for digits.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from configs import common
from kdjax import models
from kdjax.data.augment import Augment
from kdjax.data.sources import SOURCES
from kdjax.methods import METHODS
from kdjax.runtime import backend
from kdjax.runtime.errors import UserError, unknown
from kdjax.train.recipe import Recipe

EPOCHS = 240
DATASETS = ("cifar100", "cifar10", "svhn", "tiny_imagenet", "digits")
ARGUMENTS = {
    **common.SHRINK,
    "teacher": str,
    "teacher_epochs": int,
    "student": str,
    "dataset": str,
}

_DKD_BETA = {
    ("resnet-56", "resnet-20"): 2.0,
    ("wrn-40-2", "wrn-16-2"): 6.0,
    ("wrn-40-2", "wrn-40-1"): 6.0,
    ("vgg-13", "vgg-8"): 6.0,
}
"""mdistiller's configs; elsewhere 8."""
_REVIEW_WEIGHT = {
    ("resnet-56", "resnet-20"): 0.6,
    ("resnet-110", "resnet-32"): 1.0,
    ("resnet-32x4", "shufflenetv2"): 8.0,
}
"""ReviewKD's script; elsewhere 5."""


def setting(dataset: str) -> common.Setting:
    """Returns the benchmark's recipe and augmentation for a data set."""
    if dataset not in DATASETS:
        raise unknown("dataset", dataset, DATASETS)
    crop = 1 if dataset == "digits" else 4
    return common.Setting(
        dataset=dataset,
        recipe=Recipe(
            epochs=EPOCHS,
            batch_size=64,
            learning_rate=0.05,
            milestones=common.after(150, 180, 210, of=EPOCHS),
            decay_factor=0.1,
        ),
        augment=Augment(
            crop=crop, padding="zero", flip=dataset not in ("digits", "svhn")
        ),
        seeds=1 if dataset == "digits" else 5,
    )


def steps_per_epoch(chosen: common.Setting, values: Mapping[str, Any]) -> int:
    """Returns the steps of an epoch, from a setting and a config's arguments."""
    size = values.get("train_size", SOURCES[chosen.dataset].train_size)
    return max(1, size // values.get("batch_size", chosen.recipe.batch_size))


@functools.cache
def levels(model: str) -> int:
    """Returns how many levels a network's features have."""
    side = 224 if model.startswith("imagenet") else 32
    module = models.create(model, 10)

    def start() -> Any:
        images = jnp.zeros((1, side, side, 3))
        return module.init_with_output(jax.random.key(0), images, train=False)

    # Several processes join later: until then nothing may ask jax for its devices.
    with backend.compiling_for("cpu"):
        outputs, _ = jax.eval_shape(start)
    return sum(bool(re.fullmatch(r"stage\d", name)) for name in outputs.features)


def _at_levels(method: str, shared: int) -> dict[str, Any]:
    """Returns the hyper-parameters that name levels, for networks that share so many.

    The defaults name three levels: the middle one stays, the last follows.
    """
    found: dict[str, Any] = {}
    for field in dataclasses.fields(METHODS[method]):
        if field.name == "levels":
            first = next(i for i, name in enumerate(field.default) if "stage1" in name)
            suffix = field.default[first].removeprefix("stage1")
            stages = (f"stage{i}{suffix}" for i in range(1, shared + 1))
            found["levels"] = (
                *field.default[:first],
                *stages,
                *field.default[first + 3 :],
            )
        elif field.name == "level" and field.default == "stage3":
            found["level"] = f"stage{shared}"
        elif field.name == "trunk":
            found["trunk"] = f"stage{max(1, shared - 1)}"
    return found


def hyper(
    method: str,
    teachers: Sequence[str],
    student: str,
    epochs: int,
    steps: int,
    dataset: str = "cifar100",
) -> dict[str, dict[str, Any]]:
    """Returns the hyper-parameters of a method by part, for a pair of networks.

    Args:
        method: a row of `METHODS`, or several joined by '+'.
        teachers: their models, the first of which trains beside the student where a
            method wants that.
        student: its model.
        epochs: of the stage.
        steps: of an epoch.
        dataset: its name.
    """
    beta = common.attention_weight(dataset)
    pair = teachers[0], student
    share = min(epochs / EPOCHS, 1.0)

    def lasting(of: int) -> int:
        return max(1, round(of * share * steps))

    published: dict[str, dict[str, Any]] = {
        "dkd": {"beta": _DKD_BETA.get(pair, 8.0), "warmup_steps": lasting(20)},
        "reviewkd": {
            "beta": _REVIEW_WEIGHT.get(pair, 5.0),
            "warmup_steps": lasting(20),
        },
        "one": {"rampup_steps": lasting(80)},
        "bss": {"decay_steps": lasting(80)},
        "dml": {"peers": (teachers[0],)},
        "rocket": {"scratch": teachers[0]},
        "ctkd": {"scratch": teachers[0], "beta": beta},
        "at": {"beta": beta},
    }
    for name in ("ab", "ft", "fsp"):
        published[name] = {"init_epochs": max(1, round(30 * share))}
    published["sskd"] = {"init_epochs": max(1, round(60 * share))}
    parts = method.split("+")
    if parts[0] != "kd":  # added to another method's, its weight is 1
        published["kd"] = {"alpha": 1.0}
    shared = min(map(levels, pair))
    found = {}
    for part in parts:
        if part not in METHODS:
            raise unknown("method", part, METHODS)
        found[part] = {**_at_levels(part, shared), **published.get(part, {})}
    return found


def stage(
    method: str,
    teachers: Mapping[str, str],
    student: str,
    epochs: int,
    steps: int,
    dataset: str = "cifar100",
) -> dict[str, Any]:
    """Returns the stage of a student.

    Args:
        method: a row of `METHODS`, or several joined by '+'.
        teachers: their models by stage; the first teaches where the method takes one,
            and trains beside the student where the method wants that.
        student: its model.
        epochs: of the stage.
        steps: of an epoch.
        dataset: its name.
    """
    networks = tuple(teachers.values()) or (student,)
    options = hyper(method, networks, student, epochs, steps, dataset)
    wanted = {METHODS[part].num_teachers for part in options} - {0}
    taught_by = tuple(teachers) if None in wanted else tuple(teachers)[: len(wanted)]
    made = common.stage(student, method, taught_by, **options)
    if student.startswith(("mobilenetv2", "shufflenet")):
        made["recipe"] = {"learning_rate": 0.01}
    return made


def get_config(arg: str = "") -> ConfigDict:
    """Returns the config of some methods and a pair, changed by the arguments."""
    word, _, rest = arg.partition(",")
    if not word or "=" in word:
        word, rest = "kd", arg
    methods = tuple(METHODS) if word == "all" else word.split("/")
    _, values = common.parse_arg(rest, ("",), ARGUMENTS)
    chosen = setting(values.get("dataset", "cifar100"))
    student = common.network(values.get("student", "resnet20"))
    words = values.get("teacher", "resnet56").split("/")
    models = [common.network(word) for word in words]
    if len(set(models)) < len(models):
        raise UserError(f"teacher={values['teacher']!r}: a network comes twice")
    numbers = range(1, len(models) + 1) if models[1:] else ("",)
    teachers = {f"teacher{i}": m for i, m in zip(numbers, models, strict=True)}
    epochs = values.get("epochs", chosen.recipe.epochs)
    steps = steps_per_epoch(chosen, values)
    stages = {}
    for method in methods:
        name = method if methods[1:] else "student"
        stages[name] = stage(method, teachers, student, epochs, steps, chosen.dataset)
    wanted = {name for made in stages.values() for name in made["teachers"]}
    frozen = {name: common.stage(teachers[name]) for name in sorted(wanted)}
    if "teacher_epochs" in values:
        for made in frozen.values():
            made["recipe"] = {"epochs": values["teacher_epochs"]}
    return common.experiment(chosen, values, {**frozen, **stages})
