"""A stage of an experiment, and how its part of a config is read."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from kdjax import methods, models
from kdjax.methods import Method
from kdjax.runtime.errors import UserError
from kdjax.runtime.settings import build, check_keys
from kdjax.train import mixup
from kdjax.train.recipe import Recipe

_STAGE = (
    *("model", "method", "teachers", "recipe", "seeds", "copy", "start"),
    *("mean", "std"),
)
_GIVEN = ("model", "given", "mean", "std", "order")
MOST_SEEDS = 10_000
"""Replicas of a stage; more would take longer to list than anybody waits."""

_NAME = re.compile(r"[A-Za-z0-9_+-][A-Za-z0-9._+-]{0,99}")


@dataclasses.dataclass(frozen=True)
class Stage:
    """One training run that ends in one named network, for every seed.

    Attributes:
        name: for people and for the stages it teaches.
        model: the network's name, as the method makes it of the config's.
        method: how it learns.
        teachers: the stages that teach it.
        recipe: how it is optimised.
        seeds: number of replicas.
        init_index: equal networks of one seed start alike, unless this differs.
        start: what its student starts from instead, see `given`; empty: its own start.
        given: where a network or predictions come from that are not trained here, see
            `kdjax.experiment.given`; empty for stages that are trained.
        mean: of each channel as a given network, or one that starts from given weights,
            learned to see it, on the scale 0 to 1; empty: the data set's.
        std: standard deviation of each channel, likewise.
        order: where each of the data set's classes stands among a given network's;
            empty: in the same place.
    """

    name: str
    model: str
    method: Method
    method_name: str
    teachers: tuple[str, ...]
    recipe: Recipe
    seeds: int
    init_index: int
    start: str = ""
    given: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    order: tuple[int, ...] = ()

    @property
    def recipes(self) -> tuple[Recipe, ...]:
        """How each of the method's phases is optimised."""
        return self.recipe.phases(phase.recipe for phase in self.method.phases())

    @property
    def epochs(self) -> int:
        """Of all phases; none where the network is given."""
        if self.given:
            return 0
        return sum(recipe.epochs for recipe in self.recipes)


def parse_stage(
    name: str, settings: Mapping[str, Any], config: Mapping[str, Any]
) -> Stage:
    """Returns the stage that a config describes.

    Args:
        name: the stage's.
        settings: its part of the config.
        config: all of it, for what the stages share.

    Raises:
        UserError: an unknown name, or a value out of range.
    """
    _check_name(name)
    settings = dict(settings)
    _check_types(name, settings)
    if "given" in settings:
        return _parse_given(name, settings, config)
    # A method's hyper-parameters stand beside the stage's keys, under its own name.
    method = settings.get("method", "supervised")
    known = (*_STAGE, *methods.METHODS)
    check_keys(f"key of stage {name!r}", settings, known, ("model",))
    options = {key: settings[key] for key in settings if key not in _STAGE}
    recipe = {**config["recipe"], **settings.get("recipe", {})}
    seeds = settings.get("seeds", config["seeds"])
    _check_count(f"stage {name!r}: seeds", seeds, 1, MOST_SEEDS)
    _check_count(f"stage {name!r}: copy", settings.get("copy", 0), 0, 2**31 - 1)
    stage = Stage(
        name=name,
        model=settings["model"],
        method=methods.create(method, options),
        method_name=method,
        teachers=tuple(settings.get("teachers", ())),
        recipe=build(Recipe, f"recipe of stage {name!r}", recipe),
        seeds=seeds,
        init_index=settings.get("copy", 0),
        start=settings.get("start", ""),
        mean=tuple(settings.get("mean", ())),
        std=tuple(settings.get("std", ())),
    )
    try:
        mixup.check_method(stage.recipe.mixup, method, stage.method)
    except UserError as error:
        raise UserError(f"stage {name!r}: {error}") from error
    for model in stage.method.roles(stage.model).values():
        models.create(model, 2)
    wanted, given = stage.method.num_teachers, len(stage.teachers)
    if given != wanted if wanted is not None else not given:
        raise UserError(
            f"stage {name!r}: method {method!r} takes "
            f"{'one or more' if wanted is None else wanted} teachers, not {given} "
            f"({', '.join(stage.teachers)})"
        )
    if len(set(stage.teachers)) < given:
        raise UserError(
            f"stage {name!r}: a teacher comes twice ({', '.join(stage.teachers)})"
        )
    return stage


def _check_name(name: str) -> None:
    """Raises UserError unless a name can be part of a folder's name everywhere."""
    if not _NAME.fullmatch(name):
        shown = name if len(name) <= 40 else f"{name[:40]}..."
        raise UserError(
            f"stage {shown!r}: a stage's name has 1 to 100 of the characters A-Z, a-z, "
            "0-9, '.', '_', '+' and '-', and does not begin with '.'"
        )


def _check_types(name: str, settings: Mapping[str, Any]) -> None:
    """Raises UserError for a stage's own keys of which a value is of another kind."""
    for key in ("model", "method", "start"):
        if not isinstance(settings.get(key, ""), str):
            raise UserError(f"stage {name!r}: {key}={settings[key]!r} is no name")
    for key, kind, what in (
        ("teachers", str, "names of stages"),
        ("mean", (int, float), "numbers"),
        ("std", (int, float), "numbers"),
        ("order", int, "numbers of classes"),
    ):
        values = settings.get(key, ())
        listing = isinstance(values, list | tuple)
        if not listing or not all(isinstance(value, kind) for value in values):
            raise UserError(f"stage {name!r}: {key}={values!r} are no {what}")
    given = settings.get("given", ())
    words = given if isinstance(given, list | tuple) else (given,)
    if not all(isinstance(word, str) for word in words):
        raise UserError(f"stage {name!r}: given={given!r} are no names")


def _check_count(what: str, value: Any, least: int, most: int) -> None:
    """Raises UserError unless a value is a whole number within bounds."""
    if type(value) is not int:
        raise UserError(f"{what}={value!r} is not a whole number")
    if value < least:
        wrong = "not positive" if least else "negative"
        raise UserError(f"{what}={value} is {wrong}")
    if value > most:
        raise UserError(f"{what}={value} is too many; the most is {most:,}")


def _parse_given(
    name: str, settings: Mapping[str, Any], config: Mapping[str, Any]
) -> Stage:
    """Returns a stage whose network or predictions come from elsewhere."""
    check_keys(f"key of given stage {name!r}", settings, _GIVEN, ("model", "given"))
    given = settings["given"]
    lists: dict[str, Any] = {
        key: tuple(settings.get(key, ())) for key in ("mean", "std", "order")
    }
    if any(std <= 0 for std in lists["std"]):
        raise UserError(f"stage {name!r}: std={lists['std']} is not positive")
    models.create(settings["model"], 2)
    return Stage(
        name=name,
        model=settings["model"],
        method=Method(),
        method_name="given",
        teachers=(),
        recipe=build(Recipe, "recipe", config["recipe"]),
        seeds=1,
        init_index=0,
        given=(given,) if isinstance(given, str) else tuple(given),
        **lists,
    )


def check_replay(stage: Stage, stages: Mapping[str, Stage]) -> None:
    """Raises UserError unless a stage's teacher took the path that it wants replayed.

    Data, augmentation and precision are the experiment's, so they are the same.
    """
    model = stage.method.replays
    if not model:
        return
    for name in stage.teachers:
        teacher = stages.get(name)
        if teacher is None:
            continue  # `_in_order` raises the error, with the stages there are
        reasons = {
            f"is {teacher.model}, not {model}": teacher.model != model,
            f"learns by {teacher.method_name!r}, not from labels alone": (
                teacher.method_name != "supervised"
            ),
            f"starts as copy {teacher.init_index}, not 0": teacher.init_index != 0,
            "has another recipe": teacher.recipes != stage.recipes,
            f"has {teacher.seeds} seeds, fewer than {stage.seeds}": (
                teacher.seeds < stage.seeds
            ),
        }
        for reason, holds in reasons.items():
            if holds:
                raise UserError(
                    f"stage {stage.name!r} cannot replay {name!r}, which {reason}; "
                    "scratch=joint trains the scratch teacher instead"
                )
