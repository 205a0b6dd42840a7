"""The training steps in plain PyTorch: eager, as published code writes them, or faster.

`Form` says how a step runs: in which layout and precision, compiled by `torch.compile`,
and as one CUDA graph of the whole step, which is PyTorch at its fastest on small
networks: eager, these wait for their own kernel launches.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (PyTorch's own habit)
from torch import nn

from benchmarks import torch_networks
from benchmarks.cases import Case
from kdjax.runtime.console import console

LAYOUTS = {
    "NCHW": torch.contiguous_format,
    "channels_last": torch.channels_last,
}
"""How published code lays out images, and what PyTorch is fastest with."""

_WARM_UP = 5  # steps before a capture: they allocate, tune and compile
Output = tuple[torch.Tensor, list[torch.Tensor]]


def device() -> torch.device:
    """Returns where PyTorch computes."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclasses.dataclass(frozen=True)
class Form:
    """How PyTorch runs a step.

    Attributes:
        layout: a key of `LAYOUTS`.
        bf16: whether forward and backward passes run under autocast to bfloat16;
            otherwise in float32, of which a GPU computes products in TF32.
        compiled: whether `torch.compile` compiles networks and loss.
        graph: whether the whole step, with the optimiser's update, is one CUDA graph.
    """

    layout: str = "channels_last"
    bf16: bool = False
    compiled: bool = False
    graph: bool = False

    @property
    def flags(self) -> list[str]:
        """The form as arguments of `benchmarks.torch_training`."""
        chosen = {"bf16": self.bf16, "compile": self.compiled, "graph": self.graph}
        return [
            f"--layout={self.layout}",
            *(f"--{k}" for k, on in chosen.items() if on),
        ]

    @property
    def name(self) -> str:
        """The form in words, as the tables have it."""
        words = ["torch", "compiled" if self.compiled else "eager", self.layout]
        if self.graph:
            words.append("CUDA graph")
        return " ".join([*words, *(["bf16"] if self.bf16 else [])])


def forms(cuda: bool) -> list[Form]:
    """Returns the forms that kdjax is compared with.

    On a GPU in channels_last, which is never slower there for convolutions. On CPU in
    float32: bfloat16 is emulated on most. Without a compiler for `torch.compile` the
    compiled ones are left out, and a line says so.

    Args:
        cuda: whether PyTorch computes on a GPU.
    """
    if cuda:
        kinds = {}, {"graph": True}, {"compiled": True, "graph": True}
        found = [Form(bf16=bf16, **kind) for bf16 in (False, True) for kind in kinds]
    else:
        found = [
            Form(layout, compiled=compiled)
            for compiled in (False, True)
            for layout in LAYOUTS
        ]
    reason = missing_compiler()
    if reason:
        console.print(f"left out: torch.compile, which says: {reason}", markup=False)
    return [form for form in found if not (form.compiled and reason)]


@functools.cache
def missing_compiler() -> str:
    """Returns why `torch.compile` does not work here, in a line; '' if it does."""
    try:
        torch.compile(lambda x: x * x + 1)(torch.ones(8, device=device()))
    except Exception as error:  # of several classes, which have no common one
        return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    return ""


def use_fast_products() -> None:
    """Lets PyTorch compute float32 products in TF32, and try cuDNN's algorithms.

    As JAX does on a GPU by default.
    """
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True


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
    method: Any,
    trained: Mapping[str, Output],
    guides: Sequence[Output],
    labels: torch.Tensor,
) -> torch.Tensor:
    """Returns the total loss of a case.

    Args:
        case: what is trained.
        method: `case.create()`, made outside of what is compiled.
        trained: outputs of the trained networks, by role.
        guides: outputs of the frozen ones.
        labels: `[batch]`.
    """
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
        form: Form = Form(),
        *,
        trained: Mapping[str, nn.Module] | None = None,
        frozen: Sequence[nn.Module] | None = None,
        no_grad: bool = True,
        dtype: torch.dtype = torch.float32,
    ):
        """Makes what is not given.

        Args:
            case: what it trains.
            form: how it runs.
            trained: networks by role.
            frozen: the teachers, in the case's order.
            no_grad: whether teachers run without recording gradients.
            dtype: of parameters and images.
        """
        self.case, self._form, self._no_grad = case, form, no_grad
        self._method = case.create()
        self._memory, self._dtype = LAYOUTS[form.layout], dtype

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
            foreach=device().type == "cuda" or None,
        )
        self._loss: Callable[..., torch.Tensor] = self._forward
        if form.compiled:
            self._loss = torch.compile(self._forward)
        self._graph: torch.cuda.CUDAGraph | None = None

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
        return self.update(images, labels).item()

    def update(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Trains on one batch; waits for nothing, and returns the loss on the device.

        With a graph `prepare` comes first.

        Args:
            images: what `place`, `move` or `prepare` returns.
            labels: likewise.
        """
        if not self._form.graph:
            return self._eager(images, labels)
        assert self._graph, "prepare comes first"
        for kept, new in zip(self._batch, (images, labels), strict=True):
            if kept is not new:
                kept.copy_(new)
        self._graph.replay()
        return self._total

    def prepare(
        self, images: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compiles and captures; networks and momenta are then what they were.

        Args:
            images: a batch, which is not learned.
            labels: its labels.

        Returns:
            The batch where the graph reads it: in this memory it costs no copy.
        """
        networks = nn.ModuleDict(self.trained)
        before = {name: leaf.clone() for name, leaf in networks.state_dict().items()}
        self._batch = images.clone(memory_format=torch.preserve_format), labels.clone()
        if self._form.graph:
            self._capture()
        self.update(*self._batch).item()
        networks.load_state_dict(before)  # in place: a graph knows addresses
        for state in self._optimiser.state.values():
            if (momentum := state.get("momentum_buffer")) is not None:
                momentum.zero_()  # as at the start: the first one is the gradient
        return self._batch

    def set_learning_rate(self, rate: float) -> None:
        """Trains at another rate from now on; networks and momenta stay as they are."""
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        if self._graph:  # which has the rate that it was captured with
            self._record()

    def _forward(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with torch.autocast(
            device().type, torch.bfloat16, self._form.bf16, cache_enabled=False
        ):
            trained = {role: network(images) for role, network in self.trained.items()}
            with torch.set_grad_enabled(not self._no_grad):
                guides = [network(images) for network in self.frozen]
            return loss(self.case, self._method, trained, guides, labels)

    def _eager(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        for network in self.trained.values():
            network.train()
        total = self._loss(images, labels)
        self._optimiser.zero_grad(set_to_none=True)
        total.backward()
        self._optimiser.step()
        return total.detach()

    def _capture(self) -> None:
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(_WARM_UP):
                self._eager(*self._batch)
        torch.cuda.current_stream().wait_stream(aside)
        self._record()

    def _record(self) -> None:
        """Captures a step on the batch whose memory later batches are copied to."""
        self._optimiser.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._total = self._eager(*self._batch)
        self._graph = graph


class Repeated:
    """Some steps on one batch in the device's memory; a call makes them and waits."""

    def __init__(
        self, step: TorchStep, images: np.ndarray, labels: np.ndarray, steps: int
    ):
        """Compiles and captures the step where its form asks for it.

        Args:
            step: of a case and form.
            images: `[batch, height, width, channels]`, normalised.
            labels: `[batch]`.
            steps: how many a call makes; it waits once.
        """
        self._step, self._steps = step, steps
        self._batch = step.prepare(*step.place(images, labels))

    def __call__(self) -> None:
        """Trains."""
        for _ in range(self._steps):
            total = self._step.update(*self._batch)
        total.item()
