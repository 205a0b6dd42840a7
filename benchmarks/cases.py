"""The training steps that are compared: a method and its networks."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from kdjax import methods
from kdjax.methods import Method
from kdjax.train.recipe import Recipe


@dataclasses.dataclass(frozen=True)
class Case:
    """One training step.

    Attributes:
        method: its name.
        student: the student's model.
        teachers: models of the frozen teachers, by name.
        options: hyper-parameters of the method that differ from the defaults.
        batch: images in a step.
        image: height, width and channels.
        classes: number of classes.
        size: number of training images that the batches are taken from.
        recipe: how it is optimised.
    """

    method: str
    student: str = "wrn-16-1"
    teachers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    batch: int = 128
    image: tuple[int, int, int] = (32, 32, 3)
    classes: int = 10
    size: int = 50_000
    recipe: Recipe = Recipe()  # noqa: RUF009 (frozen)

    def create(self) -> Method:
        """Returns the method with its hyper-parameters."""
        return methods.create(self.method, {self.method: self.options})

    def roles(self) -> dict[str, str]:
        """Returns the models of the trained networks, by role."""
        return self.create().roles(self.student)

    def models(self) -> set[str]:
        """Returns the names of all networks."""
        return {*self.roles().values(), *self.teachers.values()}


_EXPERT = {"expert": "wrn-40-1"}
_GUIDES = {
    "T40": "wrn-40-1",
    "A34": "wrn-34-1",
    "A28": "wrn-28-1",
    "A22": "wrn-22-1",
}
CASES = {
    "supervised": Case("supervised"),
    "kd": Case("kd", teachers=_EXPERT),
    "at": Case("at", teachers=_EXPERT),
    "ctkd": Case("ctkd", teachers=_EXPERT),
    "dgkd": Case("dgkd", teachers=_GUIDES),
}
"""By name: the CTKD paper's networks, and a chain of three assistants between them."""
RESNETS = Case("kd", "resnet-20", {"teacher": "resnet-56"}, classes=100)
"""KD of the CIFAR-100 benchmark; PyTorch's side has Wide ResNets alone."""


def tiny(case: Case) -> Case:
    """Returns the case with the smallest networks and images, for checks."""
    small = "wrn-10-1"
    options = dict(case.options)
    if case.method == "ctkd":
        options["scratch"] = small
    return dataclasses.replace(
        case,
        student=small,
        teachers=dict.fromkeys(case.teachers, small),
        options=options,
        batch=4,
        image=(8, 8, 3),
        classes=5,
        size=12,
        recipe=dataclasses.replace(case.recipe, learning_rate=0.05),
    )
