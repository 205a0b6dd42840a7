"""What configs are built with: their arguments, an experiment, its stages.

A config's `get_config` splits its argument by `parse_arg`, makes its stages by `stage`
(or by `chains`), and returns `experiment`.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict, config_dict

from kdjax import methods, models
from kdjax.data.augment import Augment
from kdjax.data.own.vary import Vary
from kdjax.data.sources import SOURCES, expected
from kdjax.data.streaming.crop import Crop
from kdjax.models import MODELS
from kdjax.runtime.errors import UserError, unknown
from kdjax.train.recipe import Recipe

Arguments = Mapping[str, type[int] | type[float] | type[str]]
"""What a config takes after the colon: types by name."""

Values = Mapping[str, Any]
"""The arguments that a config was given: values by name."""

StageConfig = dict[str, Any]
"""A stage: model, method, teachers, and the hyper-parameters by method."""

SHRINK: Arguments = dict.fromkeys(
    ("epochs", "batch_size", "train_size", "test_size", "seeds"), int
)
"""Arguments that every config takes."""


def after(*epochs: int, of: int) -> tuple[float, ...]:
    """Returns milestones as fractions: they scale with the number of epochs."""
    return tuple(epoch / of for epoch in epochs)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """A data set with the recipe that a paper trains on it.

    Attributes:
        dataset: its name.
        recipe: of all stages.
        augment: how training images are varied.
        normalise: whether images are standardised by channel, or left in 0..1.
        seeds: the number of replicas.
        data: further keys of the data section: of one's own data its path.
    """

    dataset: str
    recipe: Recipe
    augment: Augment | Crop | Vary
    normalise: bool = True
    seeds: int = 5
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def network(word: str) -> str:
    """Returns a network's name: 'resnet56' is resnet-56, other words stay."""
    if models.is_own(word):
        return models.written(word)
    if word.split("-")[0] in MODELS:  # also a family that ends in a digit
        return word
    return re.sub(r"(\d)", r"-\1", word, count=1)


def parse_arg(
    arg: str, variants: tuple[str, ...], known: Arguments = SHRINK
) -> tuple[str, dict[str, Any]]:
    """Splits a config's argument, such as 'cifar10,epochs=4,seeds=1'.

    Args:
        arg: what follows the colon; empty means the first variant.
        variants: the names that may come first.
        known: the arguments that may follow.

    Returns:
        The variant, and the arguments' values.

    Raises:
        UserError: an unknown variant or key, or a value that is not of its type.
    """
    words = _split(arg)
    variant = variants[0]
    if words and "=" not in words[0]:
        variant = words.pop(0)
    if variant not in variants:
        raise unknown("variant", variant, variants)
    values = {}
    for before, word in zip(("", *words), words, strict=False):
        key, equals, value = word.partition("=")
        if not equals and key not in known:
            pair = f"{before},{word}"
            raise UserError(
                f"argument {word!r} is not KEY=VALUE"
                + (f" (in {pair!r}: a decimal point is '.')" if before else "")
            )
        if key not in known:
            raise unknown("argument", key, known)
        try:
            values[key] = known[key](value)
        except ValueError:
            kind = {int: "a whole number", float: "a number"}[known[key]]
            raise UserError(f"argument {word!r}: not {kind}") from None
    return variant, values


def _split(arg: str) -> list[str]:
    """Returns the words between commas; those in brackets are a network's own."""
    words, depth = [""], 0
    for char in arg:
        depth += (char in "([{") - (char in ")]}")
        if char == "," and not depth:
            words.append("")
        else:
            words[-1] += char
    return [word for word in words if word]


def numbers(
    name: str, value: str, kind: type[int] | type[float]
) -> tuple[int | float, ...]:
    """Returns the numbers of an argument like '0.5/0.5/0.5'; none of an empty one.

    Args:
        name: the argument's.
        value: what was given.
        kind: of the numbers.

    Raises:
        UserError: a part is no number.
    """
    try:
        return tuple(kind(part) for part in value.split("/") if part)
    except ValueError:
        raise UserError(
            f"argument {name}={value!r}: not numbers joined by '/'"
        ) from None


def experiment(
    setting: Setting, values: Values, stages: Mapping[str, StageConfig]
) -> ConfigDict:
    """Returns the config of an experiment.

    Args:
        setting: data set, recipe and augmentation of all stages.
        values: from `parse_arg`; those of `SHRINK` replace the setting's.
        stages: by name.
    """
    changes = {key: values[key] for key in ("epochs", "batch_size") if key in values}
    recipe = dataclasses.replace(setting.recipe, **changes)
    # One each: an override of a shared placeholder would change both sizes.
    train_size, test_size = config_dict.placeholder(int), config_dict.placeholder(int)
    # What decodes and cuts the images of a data set that does not fit into memory.
    streamed = {"image_size": 224, "workers": 2, "broken": "skip"}
    source = SOURCES.get(setting.dataset)  # None of one's own data
    return ConfigDict(
        {
            "data": {
                **({} if source is None or source.in_memory else streamed),
                "name": setting.dataset,
                # None: $TFDS_DATA_DIR, or TFDS's own default.
                "dir": config_dict.placeholder(str),
                "train_size": values.get("train_size", train_size),
                "test_size": values.get("test_size", test_size),
                # So many training images, kept from training, stand in for the test's.
                "validation": 0,
                "normalise": setting.normalise,
                "augment": dataclasses.asdict(setting.augment),
                **setting.data,
            },
            "recipe": dataclasses.asdict(recipe),
            "seeds": values.get("seeds", setting.seeds),
            "precision": "float32",
            "saving": {"every_s": 60.0, "best": False, "evaluate_every": 1},
            # Whether teachers' outputs are stored rather than computed in every step.
            "bank": {"use": True, "max_gb": 20.0},
            "stages": stages,
        }
    )


def stage(
    model: str,
    method: str = "supervised",
    teachers: tuple[str, ...] = (),
    **options: Mapping[str, Any],
) -> StageConfig:
    """Returns one stage with all hyper-parameters of its method written out.

    Args:
        model: the network's name.
        method: a row of `METHODS`, or several joined by '+'.
        teachers: names of stages.
        **options: hyper-parameters by method name.

    Raises:
        UserError: a hyper-parameter that the method has not, or out of range.
    """
    parts = methods.parts(methods.create(method, options))
    hyper = {part: dataclasses.asdict(made) for part, made in parts.items()}
    return {"model": model, "method": method, "teachers": teachers, **hyper}


def steps_per_epoch(setting: Setting, values: Values) -> int:
    """Returns the steps of an epoch.

    Args:
        setting: of the experiment.
        values: from `parse_arg`.
    """
    size = values.get("train_size")
    if size is None:
        size = expected(name=setting.dataset, **setting.data).train_size
    return max(1, size // values.get("batch_size", setting.recipe.batch_size))
