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

The recipe is that of the benchmark's public code (RepDistiller, mdistiller), whose Wide
ResNets start otherwise than CTKD's (wrn-40-2 is wrn-40-2-fan_out here): SGD with
momentum 0.9, weight decay 5e-4, batch 64, 240 epochs, learning rate 0.05 (0.01 for
MobileNetV2 and the ShuffleNets) divided by 10 at epochs 150, 180 and 210; crops after
zero padding and flips. Weights are those of the authors' scripts; of DKD and ReviewKD,
whose authors chose them for each pair, those of the pair. Levels are all that student
and teacher share. Warm-ups that the authors count in epochs keep their share of the
epochs. On digits the attention terms have a sixteenth of their weight, as in
`configs/ctkd.py`.

Hardware: a GPU or TPU, but for digits.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from configs import common
from kdjax.data.augment import Augment
from kdjax.experiment import builders, pairs
from kdjax.experiment.builders import StageConfig
from kdjax.methods import METHODS
from kdjax.runtime.errors import UserError, unknown
from kdjax.train.recipe import Recipe

EPOCHS = pairs.EPOCHS
DATASETS = ("cifar100", "cifar10", "svhn", "tiny_imagenet", "digits")
ARGUMENTS = {
    **builders.SHRINK,
    "teacher": str,
    "teacher_epochs": int,
    "student": str,
    "dataset": str,
}

_DKD_BETA = {
    ("resnet-56", "resnet-20"): 2.0,
    ("resnet-110", "resnet-32"): 2.0,
    ("wrn-40-2", "wrn-16-2"): 6.0,
    ("wrn-40-2", "wrn-40-1"): 6.0,
    ("vgg-13", "vgg-8"): 6.0,
    ("vgg-13", "mobilenetv2-0.5"): 6.0,
}
"""mdistiller's configs; elsewhere 8."""
_REVIEW_WEIGHT = {
    ("resnet-56", "resnet-20"): 0.6,
    ("resnet-110", "resnet-32"): 1.0,
    ("resnet-32x4", "shufflenetv2"): 8.0,
}
"""ReviewKD's script; elsewhere 5."""
_REVIEW_LEVELS = {
    "levels": ("stage*", "pooled"),
    "teacher_levels": ("stage*_pre", "pooled"),
}
"""On CIFAR: the student's maps after the activations, the teacher's before them."""


def setting(dataset: str) -> builders.Setting:
    """Returns the benchmark's recipe and augmentation for a data set.

    Raises:
        UserError: none of `DATASETS`.
    """
    if dataset not in DATASETS:
        raise unknown("dataset", dataset, DATASETS)
    crop = 1 if dataset == "digits" else 4
    return builders.Setting(
        dataset=dataset,
        recipe=Recipe(
            epochs=EPOCHS,
            batch_size=64,
            learning_rate=0.05,
            milestones=builders.after(150, 180, 210, of=EPOCHS),
            decay_factor=0.1,
        ),
        augment=Augment(
            crop=crop, padding="zero", flip=dataset not in ("digits", "svhn")
        ),
        seeds=1 if dataset == "digits" else 5,
    )


def network(word: str) -> str:
    """Returns a network's name, with the start that the benchmark's code gives it.

    Args:
        word: such as 'resnet56' or 'wrn-40-2'.
    """
    name = builders.network(word)
    return f"{name}-fan_out" if re.fullmatch(r"wrn-\d+-\d+", name) else name


def _plain(name: str) -> str:
    return name.removesuffix("-fan_out")


def published(
    teachers: Sequence[str], student: str, dataset: str
) -> dict[str, dict[str, Any]]:
    """Returns the hyper-parameters that authors chose for a pair of networks.

    Args:
        teachers: their models.
        student: its model.
        dataset: its name.
    """
    pair = _plain(teachers[0]), _plain(student)
    beta = common.attention_weight(dataset)
    return {
        "dkd": {"beta": _DKD_BETA.get(pair, 8.0)},
        "reviewkd": {"beta": _REVIEW_WEIGHT.get(pair, 5.0), **_REVIEW_LEVELS},
        "ctkd": {"beta": beta},
        "at": {"beta": beta},
    }


def stage(
    method: str,
    teachers: Mapping[str, str],
    student: str,
    epochs: int,
    steps: int,
    dataset: str = "cifar100",
) -> StageConfig:
    """Returns the stage of a student.

    Args:
        method: a row of `METHODS`, or several joined by '+'.
        teachers: their models by stage; the first teaches where the method takes one,
            and trains beside the student where the method wants that.
        student: its model.
        epochs: of the stage.
        steps: of an epoch.
        dataset: its name.

    Raises:
        UserError: an unknown method or model.
    """
    chosen = published(tuple(teachers.values()) or (student,), student, dataset)
    made = pairs.stage(method, teachers, student, epochs, steps, chosen)
    if student.startswith(("mobilenetv2", "shufflenet")):
        made["recipe"] = {"learning_rate": 0.01}
    return made


def get_config(arg: str = "") -> ConfigDict:
    """Returns the config of some methods and a pair, changed by the arguments."""
    word, _, rest = arg.partition(",")
    if not word or "=" in word:
        word, rest = "kd", arg
    methods = tuple(METHODS) if word == "all" else word.split("/")
    _, values = builders.parse_arg(rest, ("",), ARGUMENTS)
    chosen = setting(values.get("dataset", "cifar100"))
    student = network(values.get("student", "resnet20"))
    words = values.get("teacher", "resnet56").split("/")
    models = [network(word) for word in words]
    if len(set(models)) < len(models):
        raise UserError(f"teacher={values['teacher']!r}: a network comes twice")
    numbers = range(1, len(models) + 1) if models[1:] else ("",)
    teachers = {f"teacher{i}": m for i, m in zip(numbers, models, strict=True)}
    epochs = values.get("epochs", chosen.recipe.epochs)
    steps = builders.steps_per_epoch(chosen, values)
    stages = {}
    for method in methods:
        name = method if methods[1:] else "student"
        stages[name] = stage(method, teachers, student, epochs, steps, chosen.dataset)
    wanted = {name for made in stages.values() for name in made["teachers"]}
    frozen = {name: builders.stage(teachers[name]) for name in sorted(wanted)}
    if "teacher_epochs" in values:
        for made in frozen.values():
            made["recipe"] = {"epochs": values["teacher_epochs"]}
    return builders.experiment(chosen, values, {**frozen, **stages})
