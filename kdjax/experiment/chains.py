"""The stages of chains: a teacher, assistants that it helps to train, a student."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from kdjax.experiment import builders
from kdjax.experiment.builders import StageConfig
from kdjax.methods.dgkd import DGKD
from kdjax.runtime.errors import UserError

CHAINS = ("dgkd", "dgkd_stochastic", "takd", "kd", "supervised")
"""By what a chain is taught: by all networks before, by the one before (takd), by the
teacher alone and without assistants (kd), or by labels alone."""

StageName = Callable[[tuple[str, ...], bool], str]
"""Names a stage, from the models up to it, and whether it is the last."""


def networks(path: str) -> tuple[str, ...]:
    """Returns the models of a path like 'plain10/plain6/plain2'.

    Raises:
        UserError: fewer than two, or one twice.
    """
    models = tuple(builders.network(word) for word in path.split("/"))
    if len(models) < 2:
        raise UserError(f"path {path!r}: a teacher and a student at the least")
    for model in models:
        if models.count(model) > 1:
            raise UserError(
                f"path {path!r}: {model} comes twice and would teach itself"
            )
    return models


def size(model: str) -> str:
    """Returns a model's name without its family: 10, or 40x2 for wrn-40-2."""
    return "x".join(model.split("-")[1:])


@dataclasses.dataclass(frozen=True)
class Teaching:
    """How the guides of a chain teach.

    Attributes:
        alpha: the weight of the guides, the paper's lambda.
        temperature: of the softened probabilities.
        options: further hyper-parameters of `DGKD`.
    """

    alpha: float
    temperature: float
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def stage(
        self, model: str, guides: tuple[str, ...], survival: float | None = None
    ) -> StageConfig:
        """Returns the stage of a network that is taught by guides.

        Args:
            model: its name.
            guides: names of stages; none means labels alone.
            survival: of every guide, where guides are dropped.
        """
        if not guides:
            return builders.stage(model)
        hyper: dict[str, Any] = {"alpha": self.alpha, "temperature": self.temperature}
        dense = {**hyper, **self.options}
        if survival is None:
            # Guides are dropped while the last student learns, and only then.
            dense |= {"drop": DGKD.drop, "mask": DGKD.mask}
        elif "drop" not in self.options:
            dense["survival"] = survival
        # With one guide Eq. 7 is KD, and all methods share the stage.
        if len(guides) == 1 and DGKD(**dense) == DGKD(**hyper):
            return builders.stage(model, "kd", guides, kd=hyper)
        return builders.stage(model, "dgkd", guides, dgkd=dense)


def chain(
    models: tuple[str, ...],
    method: str,
    teaching: Teaching,
    survival: float,
    name: StageName,
) -> dict[str, StageConfig]:
    """Returns the stages of one path taught by one method.

    Args:
        models: from the teacher to the student.
        method: one of `CHAINS`.
        teaching: hyper-parameters.
        survival: of the guides in 'dgkd_stochastic'.
        name: names the stages.
    """
    if method == "supervised":
        models = models[-1:]
    elif method == "kd":
        models = (models[0], models[-1])
    stages: dict[str, StageConfig] = {}
    for k, model in enumerate(models):
        last = k == len(models) - 1
        guides = tuple(stages)
        if method == "takd":
            guides = guides[-1:]
        stochastic = survival if last and method == "dgkd_stochastic" else None
        stages[name(models[: k + 1], last)] = teaching.stage(model, guides, stochastic)
    return stages


def relay(
    models: tuple[str, ...],
    taught: Callable[[dict[str, str], str], StageConfig],
    name: StageName,
) -> dict[str, StageConfig]:
    """Returns the stages of one path on which each network teaches the next one.

    Args:
        models: from the teacher to the student.
        taught: makes the stage of a network, from its teacher's model by stage, and
            its own model.
        name: names the stages.
    """
    before = name(models[:1], False)
    stages = {before: builders.stage(models[0])}
    for k, model in enumerate(models[1:], start=1):
        after = name(models[: k + 1], k == len(models) - 1)
        stages[after] = taught({before: models[k - 1]}, model)
        before = after
    return stages
