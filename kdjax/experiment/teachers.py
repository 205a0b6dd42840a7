"""The teachers of one's own experiment: from one word to the stages that they are."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from kdjax import models
from kdjax.experiment import builders, given, predictions
from kdjax.experiment.builders import StageConfig
from kdjax.models import table
from kdjax.runtime.errors import UserError
from kdjax.runtime.files import expand

_FILE_AND_MODEL = re.compile(
    rf"(.+(?:{'|'.join(map(re.escape, given.TORCH))})):(.+)", re.IGNORECASE
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Teacher:
    """Who teaches, and how it sees the images.

    Attributes:
        source: a network's name, which is trained first; or what `kdjax.experiment.
            given` takes: 'teacher.pth', 'teacher.pth:resnet-20', 'runs/other:expert',
            'logits.npy', 'a.npy+b.npy'.
        model: the network of a file of weights (empty: the one that its tensors' names
            and shapes tell); and of the network that methods train beside the student,
            where predictions alone are given.
        mean: of each channel, as the teacher learned to see it; empty: the data set's.
        std: standard deviation of each channel, likewise.
        order: where each of the data set's classes stands among the teacher's.
        levels: paths of its modules whose outputs are its levels.
    """

    source: str = ""
    model: str = ""
    mean: Sequence[float] = ()
    std: Sequence[float] = ()
    order: Sequence[int] = ()
    levels: Sequence[str] = ()

    def network(self) -> str:
        """Returns the teacher's network: what is trained of it beside a student.

        Raises:
            UserError: it is not known.
        """
        if self.model:
            return builders.network(self.model)
        made = self.stage()
        model: str = made["model"]
        if model == table.NAME:
            raise UserError(
                f"teacher={self.source} has predictions and no network; teacher_model= "
                "names the one to train beside the student"
            )
        return model

    def stage(self) -> StageConfig:
        """Returns its stage, given or trained.

        Raises:
            UserError: nothing is there, or its network is not known.
        """
        if not self._is_given():
            if self.mean or self.std or self.order:
                raise UserError(
                    f"teacher={self.source!r} is trained on these images: "
                    "teacher_mean, teacher_std and class_order are for given networks"
                )
            return builders.stage(check_network(self.source or self.model, self.levels))
        if bool(self.mean) != bool(self.std):
            raise UserError("teacher_mean and teacher_std go together")
        source, model = self._split()
        sources = source.split("+") if source.endswith(predictions.SUFFIX) else [source]
        given.check(sources)
        if predictions.is_table(sources):
            if self.mean or self.std or self.order or self.levels:
                raise UserError(
                    f"teacher={source}: teacher_mean, teacher_std, class_order and "
                    "teacher_levels are for networks, not for predictions"
                )
            return {"model": table.NAME, "given": tuple(sources)}
        other = given.other_stage(source)
        if other is not None:
            model = other.model
        elif not model:
            model = given.network_in(source)
        network = check_network(model, self.levels)
        made: dict[str, Any] = {"model": network, "given": source}
        for key in ("mean", "std", "order"):
            if getattr(self, key):
                made[key] = tuple(getattr(self, key))
        return made

    def _is_given(self) -> bool:
        source, _ = self._split()
        suffixes = (*given.TORCH, predictions.SUFFIX)
        if source.lower().endswith(suffixes) or source.startswith("variables-"):
            return True
        path, colon, stage = source.partition(":")
        if expand(source).is_dir() or "/" in source.partition("(")[0]:
            return True
        # A network's own path, 'package.module:Class', is no folder.
        return bool(colon and stage and expand(path).is_dir())

    def _split(self) -> tuple[str, str]:
        """Returns the source without the network's name behind it, and that name."""
        match = _FILE_AND_MODEL.fullmatch(self.source)
        if match:
            return match[1], match[2]
        return self.source, self.model


def check_network(word: str, levels: Sequence[str] = ()) -> str:
    """Returns the name of a student's or assistant's network.

    Args:
        word: what was asked for, such as 'resnet8'.
        levels: paths of its modules whose outputs are its levels.

    Raises:
        UserError: none is named, or there is no such network.
    """
    if not word:
        raise UserError(
            "student= is missing: a network such as resnet-8, or package.module:Class"
        )
    name = builders.network(word)
    models.create(name, 2)
    return models.with_levels(name, tuple(levels)) if levels else name
