"""The teachers of one's own experiment: from one word to the stages that they are."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from kdjax import models
from kdjax.experiment import builders, given, predictions, teacher_view
from kdjax.experiment.builders import StageConfig
from kdjax.experiment.teacher_view import TeacherView
from kdjax.models import names, table
from kdjax.runtime.errors import UserError, unknown
from kdjax.runtime.files import expand

_FILE_AND_MODEL = re.compile(
    rf"(.+(?:{'|'.join(map(re.escape, given.TORCH))})):(.+)", re.IGNORECASE
)


TRAINED = ("head", "all")
"""What can be trained of a network that gets a new head."""
NEW_HEAD: dict[str, Any] = {
    "epochs": 10,
    "optimizer": "adamw",
    "learning_rate": 1e-3,
    "schedule": "cosine",
    "clip_norm": 1.0,
}
"""The recipe by which a teacher's new head learns."""


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
        weights: of the network that `source` names: a file, or 'pretrained'; empty: of
            timm's and torchvision's networks those that the library downloads, others
            are trained.
        size: height and width of the images that it sees; empty: as its library says
            that it learned, or the data set's.
        train: what is trained first of a network of PyTorch that has other classes than
            the data set: 'head', the classifier on fixed features, or 'all'.
    """

    source: str = ""
    model: str = ""
    mean: Sequence[float] = ()
    std: Sequence[float] = ()
    order: Sequence[int] = ()
    levels: Sequence[str] = ()
    weights: str = ""
    size: Sequence[int] = ()
    train: str = "head"

    def __post_init__(self) -> None:
        """Checks what goes together.

        Raises:
            UserError: weights of no network, or an unknown word.
        """
        if self.train not in TRAINED:
            raise unknown("teacher_train", self.train, TRAINED)
        if self.weights and (not self.source or self.model):
            raise UserError(
                f"teacher_weights={self.weights} goes with teacher= a network, such as "
                "timm:resnet18, and without teacher_model="
            )
        if len(self.size) not in (0, 1, 2) or any(side < 1 for side in self.size):
            raise UserError(
                f"teacher_size={self.size} is not one side, or height and width"
            )

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

    def stage(self, num_classes: int = 0) -> StageConfig:
        """Returns its stage, given or trained.

        Args:
            num_classes: the data set's; a network of PyTorch with others gets a new
                head, which is trained; 0: none does.

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
        return self._with_weights(check_network(model), source, num_classes)

    def _with_weights(self, network: str, source: str, num_classes: int) -> StageConfig:
        """Returns the stage of a network whose weights are given."""
        view = self._view(network)
        inside = models.torch_network(network, num_classes or 2)
        start = ""
        # Another workdir's stage has learned its own data's classes: none is replaced.
        if inside is not None and num_classes and given.other_stage(source) is None:
            from kdjax.models.foreign import weights

            start = "" if source.startswith("variables-") else source
            there = weights.num_classes(start, inside) if start else inside.num_logits
            if there != num_classes:
                network = models.with_new_head(network, self.train == "all")
                made = builders.stage(self._seen(network, view))
                made["recipe"] = {**NEW_HEAD, "weight_decay": 0.0}
                if self.train == "all":
                    made["recipe"] = {**NEW_HEAD, "learning_rate": 1e-4}
                made |= {"start": start} if start else {}
                if self.order:
                    raise UserError(
                        "class_order is for teachers with the data's classes: "
                        f"{self.source} has {there}, the data {num_classes}"
                    )
                return {**made, **_filled(mean=view.mean, std=view.std)}
        model = self._seen(network, view)
        return {
            "model": model,
            "given": source,
            **_filled(mean=view.mean, std=view.std, order=self.order),
        }

    def _seen(self, network: str, view: TeacherView) -> str:
        """Returns a network with its levels that sees images of its size."""
        if self.levels:
            network = models.with_levels(network, tuple(self.levels))
        if not view.size:
            return network
        return models.resized(network, view.size, view.interpolation)

    def _view(self, network: str) -> TeacherView:
        return teacher_view.of(network, self.size, self.mean, self.std)

    def description(self, image_shape: tuple[int, int, int]) -> str:
        """Returns a line about how a given network sees images; '' for all others.

        Of a finished stage it is known: it sees images as it learned to.

        Args:
            image_shape: height, width and channels of what the student sees.
        """
        if not (self.source or self.model) or not self._is_given():
            return ""
        source, model = self._split()
        if source.endswith(predictions.SUFFIX) or given.other_stage(source):
            return ""
        network = check_network(model or given.network_in(source))
        return self._view(network).described(network, image_shape)

    def _is_given(self) -> bool:
        source, _ = self._split()
        if source == given.PRETRAINED:
            return True
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
        if self.weights:
            return self.weights, self.source
        if self.source.partition(":")[0] in names.LIBRARIES and not self.model:
            return given.PRETRAINED, self.source
        match = _FILE_AND_MODEL.fullmatch(self.source)
        if match:
            return match[1], match[2]
        return self.source, self.model


def _filled(**values: Sequence[Any]) -> dict[str, tuple[Any, ...]]:
    """Returns the values that are not empty, as tuples."""
    return {key: tuple(value) for key, value in values.items() if value}


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
