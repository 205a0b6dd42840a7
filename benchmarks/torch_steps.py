"""The training steps in plain PyTorch, eager, as published code writes them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (PyTorch's own habit)
from torch import nn

from benchmarks import torch_networks
from benchmarks.cases import Case

LAYOUTS = {
    "NCHW": torch.contiguous_format,
    "channels_last": torch.channels_last,
}
"""How published code lays out images, and what PyTorch is fastest with."""

Output = tuple[torch.Tensor, list[torch.Tensor]]


def device() -> torch.device:
    """Returns where PyTorch computes."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def kd(student: torch.Tensor, teacher: torch.Tensor, tau: float) -> torch.Tensor:
    """Returns Hinton's term, summed over classes and averaged over the batch."""
    log_student = F.log_softmax(student / tau, dim=1)
    target = F.softmax(teacher / tau, dim=1)
    return F.kl_div(log_student, target, reduction="batchmean") * tau**2


def attention(features: torch.Tensor) -> torch.Tensor:
    """Returns normalised attention maps, `[batch, positions]`."""
    return F.normalize(features.pow(2).mean(1).flatten(1))


def attention_transfer(
    student: Sequence[torch.Tensor], teacher: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Returns the attention term, summed over the groups."""
    return sum(
        (attention(a) - attention(b)).pow(2).mean()
        for a, b in zip(student, teacher, strict=True)
    )


def loss(
    case: Case,
    trained: Mapping[str, Output],
    guides: Sequence[Output],
    labels: torch.Tensor,
) -> torch.Tensor:
    """Returns the total loss of a case."""
    method: Any = case.create()
    logits, maps = trained["student"]
    ce = F.cross_entropy(logits, labels)
    if case.method == "supervised":
        return ce
    if case.method == "kd":
        term = kd(logits, guides[0][0], method.temperature)
        return (1 - method.alpha) * ce + method.alpha * term
    if case.method == "at":
        return ce + method.beta * attention_transfer(maps, guides[0][1])
    if case.method == "ctkd":
        scratch = trained["scratch"][0]
        hint = (logits - scratch.detach()).pow(2).sum() / len(labels)
        at = attention_transfer(maps, guides[0][1])
        both = ce + F.cross_entropy(scratch, labels)
        return both + method.hint_weight * hint + method.beta * at
    assert case.method == "dgkd", case.method
    terms = sum(kd(logits, guide, method.temperature) for guide, _ in guides)
    return len(guides) * (1 - method.alpha) * ce + method.alpha * terms


class TorchStep:
    """One case's networks and optimiser; a call is one training step."""

    def __init__(
        self,
        case: Case,
        layout: str,
        *,
        trained: Mapping[str, nn.Module] | None = None,
        frozen: Sequence[nn.Module] | None = None,
        no_grad: bool = True,
        dtype: torch.dtype = torch.float32,
    ):
        """Makes what is not given.

        Args:
            case: what it trains.
            layout: a key of `LAYOUTS`.
            trained: networks by role.
            frozen: the teachers, in the case's order.
            no_grad: whether teachers run without recording gradients.
            dtype: of parameters and images.
        """
        self._case, self._no_grad = case, no_grad
        self._memory, self._dtype = LAYOUTS[layout], dtype

        def make(model: str) -> nn.Module:
            return torch_networks.create(model, case.classes, case.image)

        self.trained = dict(trained or {k: make(m) for k, m in case.roles().items()})
        self.frozen = list(frozen or map(make, case.teachers.values()))
        for network in (*self.trained.values(), *self.frozen):
            network.to(device(), dtype, memory_format=self._memory)
        for network in self.frozen:
            network.eval()
        recipe = case.recipe
        self._optimiser = torch.optim.SGD(
            [leaf for part in self.trained.values() for leaf in part.parameters()],
            lr=recipe.learning_rate,
            momentum=recipe.momentum,
            nesterov=recipe.nesterov,
            weight_decay=recipe.weight_decay,
        )

    def place(
        self, images: np.ndarray, labels: np.ndarray
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns a batch of normalised NHWC images as the step wants it."""
        tensor = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2)
        return self.move(tensor, torch.from_numpy(np.array(labels)).long())

    def move(
        self, images: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns a batch of NCHW images on the step's device and in its layout."""
        images = images.to(device(), self._dtype)
        return images.contiguous(memory_format=self._memory), labels.to(device())

    def __call__(self, images: torch.Tensor, labels: torch.Tensor) -> float:
        """Trains on one batch and returns the loss."""
        for network in self.trained.values():
            network.train()
        trained = {role: network(images) for role, network in self.trained.items()}
        with torch.set_grad_enabled(not self._no_grad):
            guides = [network(images) for network in self.frozen]
        total = loss(self._case, trained, guides, labels)
        self._optimiser.zero_grad()
        total.backward()
        self._optimiser.step()
        return total.item()
