"""What the configs share: the CTKD paper's settings, and how a config is built."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict, config_dict

from kdjax.data.augment import Augment
from kdjax.data.sources import SOURCES
from kdjax.data.streaming.crop import Crop
from kdjax.methods import METHODS
from kdjax.models import MODELS
from kdjax.runtime.errors import UserError, unknown
from kdjax.train.recipe import Recipe

SHRINK = dict.fromkeys(
    ("epochs", "batch_size", "train_size", "test_size", "seeds"), int
)
"""Arguments that every config takes, by name: their types."""


def after(*epochs: int, of: int) -> tuple[float, ...]:
    """Returns milestones as fractions: they scale with the number of epochs."""
    return tuple(epoch / of for epoch in epochs)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """A data set with the recipe that a paper trains on it.

    `normalise` is whether images are standardised by channel, or left in 0..1.
    """

    dataset: str
    recipe: Recipe
    augment: Augment | Crop
    normalise: bool = True
    seeds: int = 5


def attention_weight(dataset: str) -> float:
    """Returns the weight of attention transfer's terms, the authors' 1e3.

    They are means over positions, of which digits of 8x8 have a sixteenth of CIFAR's:
    there a sixteenth balances them as 1e3 does elsewhere.

    Args:
        dataset: its name.
    """
    return 1e3 / 16 if dataset == "digits" else 1e3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair(Setting):
    """A setting of the CTKD paper: with its networks."""

    student: str
    teacher: str

    @property
    def beta(self) -> float:
        """The weight of the attention term."""
        return attention_weight(self.dataset)


# The paper: SGD with momentum 0.9, batch 128, 0.1 times 0.2 at epochs 60, 120 and 160
# of 200; crops and flips. The released code: weight decay 5e-4, padding by reflection.
_CIFAR: dict[str, Any] = {
    "recipe": Recipe(milestones=after(60, 120, 160, of=200)),
    "augment": Augment(crop=4, padding="reflect", flip=True),
}
_THIN: dict[str, Any] = {"student": "wrn-16-1", "teacher": "wrn-40-1"}
_WIDE: dict[str, Any] = {"student": "wrn-16-2", "teacher": "wrn-40-2"}

SETTINGS = {
    "cifar10": Pair(dataset="cifar10", **_CIFAR, **_THIN),
    "cifar10-w2": Pair(dataset="cifar10", **_CIFAR, **_WIDE),
    "cifar100": Pair(dataset="cifar100", **_CIFAR, **_WIDE),
    "svhn": Pair(
        dataset="svhn",
        **_THIN,
        # The paper: Adam 0.01 times 0.2 at epochs 20, 40 and 60 of 100. Rocket
        # Launching's code, which CTKD's builds on, gives Adam no weight decay.
        recipe=Recipe(
            epochs=100,
            optimizer="adam",
            learning_rate=0.01,
            weight_decay=0.0,
            milestones=after(20, 40, 60, of=100),
        ),
        # Left open by the paper. Chosen: crops as for CIFAR, no flips, which would
        # make other digits.
        augment=Augment(crop=4, padding="reflect"),
    ),
    "tiny_imagenet": Pair(
        dataset="tiny_imagenet",
        **_THIN,
        # The paper: SGD as for CIFAR, times 0.2 at epochs 60, 120, 160, 200 and 250 of
        # 300. The test labels are not public: the validation images are the test set.
        recipe=Recipe(epochs=300, milestones=after(60, 120, 160, 200, 250, of=300)),
        # The paper: random rotation and flips. Left open: the angle. Chosen: up to 15
        # degrees either way.
        augment=Augment(flip=True, rotate=15.0),
    ),
    "digits": Pair(
        dataset="digits",
        **_THIN,
        recipe=Recipe(epochs=10, batch_size=64, milestones=after(60, 120, 160, of=200)),
        augment=Augment(crop=1, padding="zero"),
        seeds=1,
    ),
}
"""The CTKD paper's experiments by name, and digits, which need no download."""


def network(word: str) -> str:
    """Returns a network's name: 'resnet56' is resnet-56, other words stay."""
    if word.split("-")[0] in MODELS:  # also a family that ends in a digit
        return word
    return re.sub(r"(\d)", r"-\1", word, count=1)


def parse_arg(
    arg: str,
    variants: tuple[str, ...],
    known: Mapping[str, Callable[[str], Any]] = SHRINK,
) -> tuple[str, dict[str, Any]]:
    """Splits a config's argument, such as 'cifar10,epochs=4,seeds=1'.

    Args:
        arg: what follows the colon; empty means the first variant.
        variants: the names that may come first.
        known: the arguments that may follow, by name: their types.

    Returns:
        The variant, and the arguments' values.

    Raises:
        UserError: an unknown variant or key, or a value that is not of its type.
    """
    words = [word for word in arg.split(",") if word]
    variant = variants[0]
    if words and "=" not in words[0]:
        variant = words.pop(0)
    if variant not in variants:
        raise unknown("variant", variant, variants)
    values = {}
    for word in words:
        key, _, value = word.partition("=")
        if key not in known:
            raise unknown("argument", key, known)
        try:
            values[key] = known[key](value)
        except ValueError:
            kind = {int: "a whole number", float: "a number"}[known[key]]
            raise UserError(f"argument {word!r}: not {kind}") from None
    return variant, values


def experiment(
    setting: Setting, shrink: Mapping[str, Any], stages: dict[str, dict[str, Any]]
) -> ConfigDict:
    """Returns the config of an experiment.

    Args:
        setting: data set, recipe and augmentation of all stages.
        shrink: from `parse_arg`; replaces epochs, batch size, sizes and seeds.
        stages: by name, what `stage` returns.
    """
    changes = {key: shrink[key] for key in ("epochs", "batch_size") if key in shrink}
    recipe = dataclasses.replace(setting.recipe, **changes)
    # One each: an override of a shared placeholder would change both sizes.
    train_size, test_size = config_dict.placeholder(int), config_dict.placeholder(int)
    # What decodes and cuts the images of a data set that does not fit into memory.
    streamed = {"image_size": 224, "workers": 2, "broken": "skip"}
    return ConfigDict(
        {
            "data": {
                **({} if SOURCES[setting.dataset].in_memory else streamed),
                "name": setting.dataset,
                # None: $TFDS_DATA_DIR, or TFDS's own default.
                "dir": config_dict.placeholder(str),
                "train_size": shrink.get("train_size", train_size),
                "test_size": shrink.get("test_size", test_size),
                # So many training images, kept from training, stand in for the test's.
                "validation": 0,
                "normalise": setting.normalise,
                "augment": dataclasses.asdict(setting.augment),
            },
            "recipe": dataclasses.asdict(recipe),
            "seeds": shrink.get("seeds", setting.seeds),
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
    **options: dict[str, Any],
) -> dict[str, Any]:
    """Returns one stage with all hyper-parameters of its method written out.

    Args:
        model: the network's name.
        method: a row of `METHODS`, or several joined by '+'.
        teachers: names of stages.
        **options: hyper-parameters by method name.
    """
    hyper = {
        part: dataclasses.asdict(METHODS[part](**options.get(part, {})))
        for part in method.split("+")
    }
    return {"model": model, "method": method, "teachers": teachers, **hyper}
