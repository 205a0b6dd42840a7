"""Networks of PyTorch inside kdjax's compiled step, against kdjax's own and PyTorch.

    pip install -e '.[benchmark,torch]' && python -m benchmarks.foreign

In one run and interleaved: the forward pass of a frozen WRN-40-1 that is lifted from
PyTorch over the built-in one's; a training step of a lifted WRN-16-1 over the built-in
one's; and PyTorch's step of KD, both networks its own, over kdjax's with both lifted.
PyTorch runs in channels_last and eagerly: `torch.compile` does not work in a process
that has loaded torchax. `benchmarks.steps` has this step of PyTorch compiled as well.
Where other processes keep the machine busy, `--cpu` counts this process's CPU time.
"""

import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from torch import Tensor

from benchmarks import measure, torch_steps
from benchmarks.cases import CASES, Case
from benchmarks.torch_networks import WideResNet
from kdjax import models
from kdjax.runtime import backend

BUILT_IN = {16: "wrn-16-1", 40: "wrn-40-1"}


class Wide(WideResNet):
    """A Wide ResNet of PyTorch that returns logits alone."""

    def __init__(self, depth: int, num_classes: int):
        super().__init__(depth, 1, num_classes)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """Classifies images `[batch, channels, height, width]`."""
        return super().forward(x)[0]


def lifted(depth: int) -> str:
    """Returns the name of a Wide ResNet that is lifted from PyTorch."""
    return f"benchmarks.foreign:Wide(depth={depth})"


def forward(name: str, case: Case) -> Callable[[], Any]:
    """Returns a compiled forward pass of a frozen network on a fixed batch."""
    variables = models.init(jax.random.key(0), name, case.classes, case.image)
    network = models.create(name, case.classes)
    rng = np.random.default_rng(0)
    images = jax.device_put(
        rng.normal(size=(case.batch, *case.image)).astype(np.float32)
    )
    options = backend.compiler_options()
    apply = jax.jit(
        lambda variables, images: network.apply(variables, images, train=False).logits,
        compiler_options=options,
    )
    return lambda: apply(variables, images).block_until_ready()


def step(case: Case) -> tuple[Callable[[], Any], int]:
    """Returns kdjax's train step of a case, and the steps of a call."""
    from benchmarks import _kdjax

    runner = _kdjax.Runner(_kdjax.program(case))
    return runner, runner.steps


def torch_step(case: Case) -> Callable[[], Any]:
    """Returns PyTorch's train step of a case."""
    from benchmarks import _kdjax

    made = torch_steps.TorchStep(case, torch_steps.Form("channels_last"))
    data = _kdjax.images(dataclasses.replace(case, size=case.batch)).train
    pixels = (data.images / 255 - 0.5) / 0.25
    batch = made.place(pixels.astype(np.float32), data.labels.astype(np.int64))
    return lambda: made(*batch)


def turn(
    call: Callable[[], Any], calls: int, steps: int, clock: Callable[[], float]
) -> Callable[[], float]:
    """Returns a function that measures seconds per step, the first call left out."""

    def timed() -> float:
        call()  # brings its own data and threads back
        begin = clock()
        for _ in range(calls):
            call()
        return (clock() - begin) / (calls * steps)

    return timed


def run(
    rounds: int, calls: int, busy: float, clock: Callable[[], float]
) -> dict[str, Any]:
    """Returns seconds by turn, and the ratios that are promised."""
    supervised, kd = CASES["supervised"], CASES["kd"]
    own_kd = dataclasses.replace(
        kd, student=lifted(16), teachers={"expert": lifted(40)}
    )
    parts: dict[str, tuple[Callable[[], Any], int]] = {
        "forward built-in": (forward(BUILT_IN[40], supervised), 1),
        "forward lifted": (forward(lifted(40), supervised), 1),
        "step built-in": step(supervised),
        "step lifted": step(dataclasses.replace(supervised, student=lifted(16))),
        "kd lifted": step(own_kd),
        "kd PyTorch": (torch_step(kd), 1),
    }
    turns = {
        name: turn(call, max(1, calls // steps), steps, clock)
        for name, (call, steps) in parts.items()
    }
    for timed in turns.values():
        timed()
    found = measure.interleave(turns, rounds, busy)
    values = found.pop("values")
    return {
        "seconds": {name: measure.spread(times) for name, times in values.items()},
        "ratio": {
            "forward lifted / built-in": measure.quotient(
                values["forward lifted"], values["forward built-in"]
            ),
            "step lifted / built-in": measure.quotient(
                values["step lifted"], values["step built-in"]
            ),
            "kd PyTorch / lifted": measure.quotient(
                values["kd PyTorch"], values["kd lifted"]
            ),
        },
        **found,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints and, with `--out`, writes the figures."""
    parser = measure.parser("foreign", __doc__, rounds=5)
    parser.add_argument("--calls", type=int, default=3, help="steps in a turn")
    parser.add_argument("--cpu", action="store_true", help="count CPU time")
    options = parser.parse_args(argv)
    clock = time.process_time if options.cpu else time.perf_counter
    found = run(options.rounds, options.calls, options.busy, clock)
    measure.show(
        "WRN-16-1 and WRN-40-1, batch 128, 32x32",
        ("ratio", "median [quartiles]"),
        [(name, measure.figure(ratio)) for name, ratio in found["ratio"].items()],
    )
    measure.save(options.out, {"calls": options.calls, "cpu": options.cpu, **found})
    return 0


if __name__ == "__main__":
    sys.exit(main())
