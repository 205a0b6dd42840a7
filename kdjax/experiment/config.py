"""From a config to an experiment: a data set and a graph of stages."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

from kdjax.data import own, sources
from kdjax.data.augment import Augment
from kdjax.data.own.vary import Vary
from kdjax.data.streaming.crop import Crop
from kdjax.experiment.stage import Stage, check_replay, parse_stage
from kdjax.runtime.errors import UserError, unknown
from kdjax.runtime.settings import build, check_keys
from kdjax.train.loop import Saving


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
class Banking:
    """Whether teachers' outputs are stored, rather than computed in every step.

    Attributes:
        use: the switch; the targets are the same numbers with it and without.
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


MOST_GENERATIONS = 200
"""Stages one behind the other: the fingerprint of one hashes that of the one before."""

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
    check_keys("config key", config, _CONFIG, required)
    data = dict(config["data"])
    augment = parse_data(data)
    precision = config.get("precision", "float32")
    if precision not in PRECISIONS:
        raise unknown("precision", precision, PRECISIONS)
    stages = {
        name: parse_stage(name, settings, config)
        for name, settings in config["stages"].items()
    }
    for stage in stages.values():
        check_replay(stage, stages)
    return Experiment(
        config=config,
        data=data,
        augment=augment,
        stages=_in_order(stages),
        precision=precision,
        saving=build(Saving, "saving", config.get("saving", {})),
        bank=build(Banking, "bank", config.get("bank", {})),
    )


def parse_data(data: dict[str, Any]) -> Augment | Crop | Vary:
    """Checks the data section, and takes how training images are varied out of it.

    Raises:
        UserError: an unknown name or key, or a value out of range.
    """
    name = data.get("name")
    if isinstance(name, str) and name not in sources.SOURCES and own.is_own(name):
        vary = build(Vary, "data.augment", data.pop("augment", {}))
        own.parse(data)
        return vary
    check_keys("data key", data, _DATA, ("name",))
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


def _in_order(stages: Mapping[str, Stage]) -> dict[str, Stage]:
    """Returns the stages with every teacher before the stages that it teaches."""
    ordered: dict[str, Stage] = {}
    for last in stages:
        path = [last]  # each is taught by the one behind it
        while path:
            stage = stages[path[-1]]
            before = [name for name in stage.teachers if name not in ordered]
            if path[-1] in ordered:
                path.pop()
            elif before:
                _check_teacher(stage, before[0], path, stages)
                path.append(before[0])
            else:
                teachers = [ordered[teacher].model for teacher in stage.teachers]
                # SimKD's stage ends in another network, which is what it teaches with.
                model = stage.method.network(stage.model, teachers)
                ordered[path.pop()] = dataclasses.replace(stage, model=model)
    _check_generations(ordered)
    return ordered


def _check_teacher(
    stage: Stage, teacher: str, path: list[str], stages: Mapping[str, Stage]
) -> None:
    """Raises UserError unless a teacher may come before a path of stages."""
    if teacher not in stages:
        raise unknown(f"teacher of stage {stage.name!r}", teacher, stages)
    if teacher in path:
        raise UserError(f"stages teach in a circle: {' -> '.join((*path, teacher))}")


def _check_generations(ordered: Mapping[str, Stage]) -> None:
    """Raises UserError if too many stages stand one behind the other."""
    generations: dict[str, int] = {}
    for name, stage in ordered.items():
        before = (generations[teacher] for teacher in stage.teachers)
        generations[name] = 1 + max(before, default=0)
        if generations[name] > MOST_GENERATIONS:
            raise UserError(
                f"stage {name!r} is the end of a chain of more than "
                f"{MOST_GENERATIONS} generations, which is the most"
            )


def ancestry(experiment: Experiment, names: Collection[str]) -> dict[str, Stage]:
    """Returns the given stages and all that teach them, teachers first; none: all.

    Raises:
        UserError: a name that is no stage.
    """
    wanted = set(names or experiment.stages)
    for name in names:
        if name not in experiment.stages:
            raise unknown("stage", name, experiment.stages)
    for name in reversed(list(experiment.stages)):
        if name in wanted:  # its teachers stand before it
            wanted.update(experiment.stages[name].teachers)
    return {name: s for name, s in experiment.stages.items() if name in wanted}
