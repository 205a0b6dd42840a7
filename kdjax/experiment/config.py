"""From a config to an experiment: a data set and a graph of stages."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

from kdjax import methods, models
from kdjax.data import own, sources
from kdjax.data.augment import Augment
from kdjax.data.own.vary import Vary
from kdjax.data.streaming.crop import Crop
from kdjax.methods import Method
from kdjax.runtime.errors import UserError, unknown
from kdjax.runtime.settings import build
from kdjax.train import mixup
from kdjax.train.loop import Saving
from kdjax.train.recipe import Recipe


class Precision(NamedTuple):
    """Dtypes of a stage.

    Attributes:
        dtype: of parameters, BatchNorm's statistics, softmaxes and losses.
        compute: of the networks' computation.
    """

    dtype: jnp.dtype
    compute: jnp.dtype


PRECISIONS = {
    "float32": Precision(jnp.float32, jnp.float32),
    "float64": Precision(jnp.float64, jnp.float64),
    "bf16": Precision(jnp.float32, jnp.bfloat16),
}
"""By name; 'bf16' is for accelerators: CPUs compute it slower than float32."""


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
        mean: of each channel as a given network learned to see it, on the scale 0 to
            1; empty: the data set's.
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


@dataclasses.dataclass(frozen=True)
class Banking:
    """Whether teachers' outputs are stored, rather than computed in every step.

    Attributes:
        use: the switch; it changes results by float16 rounding of the targets.
        max_gb: gigabytes (1e9 bytes) that all tables of an experiment may take;
            teachers beyond it are computed in the step.
    """

    use: bool = True
    max_gb: float = 20.0

    def __post_init__(self) -> None:
        if self.max_gb < 0:
            raise UserError(f"bank.max_gb={self.max_gb} is negative")


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A data set and a graph of stages, every teacher before whom it teaches.

    `config` is what it was made from, for the record.
    """

    config: Mapping[str, Any]
    data: Mapping[str, Any]
    augment: Augment | Crop | Vary
    stages: Mapping[str, Stage]
    precision: str
    saving: Saving
    bank: Banking

    @property
    def dtype(self) -> jnp.dtype:
        """Of parameters, BatchNorm's statistics, softmaxes and losses."""
        return PRECISIONS[self.precision].dtype

    @property
    def recorded(self) -> set[str]:
        """The stages whose logits another one replays."""
        return {
            teacher
            for stage in self.stages.values()
            if stage.method.replays
            for teacher in stage.teachers
        }


_CONFIG = ("data", "recipe", "seeds", "precision", "saving", "bank", "stages", "note")
_STREAMED = ("image_size", "workers", "broken")
_DATA = (
    "name",
    "dir",
    "train_size",
    "test_size",
    "validation",
    "normalise",
    "augment",
    *_STREAMED,
)
_STAGE = ("model", "method", "teachers", "recipe", "seeds", "copy", "start")
_GIVEN = ("model", "given", "mean", "std", "order")


def _expect(
    kind: str,
    settings: Mapping[str, Any],
    known: tuple[str, ...],
    required: tuple[str, ...],
) -> None:
    for key in settings:
        if key not in known:
            raise unknown(kind, key, known)
    for key in required:
        if key not in settings:
            raise UserError(f"{kind} {key!r} is missing")


def parse_config(config: Mapping[str, Any]) -> Experiment:
    """Returns the experiment that a config describes.

    Args:
        config: plain nested dictionaries: 'data', 'recipe', 'seeds', 'precision',
            'saving', 'bank' and 'stages', as `builders.experiment` makes them; and
            'note', a line for people.

    Raises:
        UserError: an unknown name or a value out of range.
    """
    required = ("data", "recipe", "seeds", "stages")
    _expect("config key", config, _CONFIG, required)
    data = dict(config["data"])
    augment = _parse_data(data)
    precision = config.get("precision", "float32")
    if precision not in PRECISIONS:
        raise unknown("precision", precision, PRECISIONS)
    stages = {
        name: _parse_stage(name, settings, config)
        for name, settings in config["stages"].items()
    }
    for stage in stages.values():
        _check_replay(stage, stages)
    return Experiment(
        config=config,
        data=data,
        augment=augment,
        stages=_in_order(stages),
        precision=precision,
        saving=build(Saving, "saving", config.get("saving", {})),
        bank=build(Banking, "bank", config.get("bank", {})),
    )


def _parse_data(data: dict[str, Any]) -> Augment | Crop | Vary:
    """Checks the data section, and takes how training images are varied out of it."""
    name = data.get("name")
    if isinstance(name, str) and name not in sources.SOURCES and own.is_own(name):
        vary = build(Vary, "data.augment", data.pop("augment", {}))
        own.parse(data)
        return vary
    _expect("data key", data, _DATA, ("name",))
    if name not in sources.SOURCES:
        raise unknown("data set", name, (*sources.SOURCES, *own.names()))
    streamed = not sources.SOURCES[name].in_memory
    for key in () if streamed else _STREAMED:
        if key in data:
            raise UserError(
                f"data.{key} is for data sets that are streamed, not {name!r}"
            )
    kind: type[Augment] | type[Crop] = Crop if streamed else Augment
    return build(kind, "data.augment", data.pop("augment", {}))


def _parse_stage(
    name: str, settings: Mapping[str, Any], config: Mapping[str, Any]
) -> Stage:
    settings = dict(settings)
    if "given" in settings:
        return _parse_given(name, settings, config)
    # A method's hyper-parameters stand beside the stage's keys, under its own name.
    method = settings.get("method", "supervised")
    known = (*_STAGE, *methods.METHODS)
    _expect(f"key of stage {name!r}", settings, known, ("model",))
    options = {key: settings[key] for key in settings if key not in _STAGE}
    recipe = {**config["recipe"], **settings.get("recipe", {})}
    seeds = settings.get("seeds", config["seeds"])
    if seeds < 1:
        raise UserError(f"stage {name!r}: seeds={seeds} is not positive")
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


def _parse_given(
    name: str, settings: Mapping[str, Any], config: Mapping[str, Any]
) -> Stage:
    """Returns a stage whose network or predictions come from elsewhere."""
    _expect(f"key of given stage {name!r}", settings, _GIVEN, ("model", "given"))
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


def _check_replay(stage: Stage, stages: Mapping[str, Stage]) -> None:
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


def _in_order(stages: Mapping[str, Stage]) -> dict[str, Stage]:
    """Returns the stages with every teacher before the stages that it teaches."""
    ordered: dict[str, Stage] = {}

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            raise UserError(f"stages teach in a circle: {' -> '.join((*path, name))}")
        if name in ordered:
            return
        stage = stages[name]
        for teacher in stage.teachers:
            if teacher not in stages:
                raise unknown(f"teacher of stage {name!r}", teacher, stages)
            visit(teacher, (*path, name))
        teachers = [ordered[teacher].model for teacher in stage.teachers]
        # SimKD's stage ends in another network, which is what it teaches with.
        model = stage.method.network(stage.model, teachers)
        ordered[name] = dataclasses.replace(stage, model=model)

    for name in stages:
        visit(name, ())
    return ordered


def ancestry(experiment: Experiment, names: Collection[str]) -> dict[str, Stage]:
    """Returns the given stages and all that teach them, teachers first; none: all.

    Raises:
        UserError: a name that is no stage.
    """
    wanted = set()

    def add(name: str) -> None:
        wanted.add(name)
        for teacher in experiment.stages[name].teachers:
            add(teacher)

    for name in names or experiment.stages:
        if name not in experiment.stages:
            raise unknown("stage", name, experiment.stages)
        add(name)
    return {name: s for name, s in experiment.stages.items() if name in wanted}
