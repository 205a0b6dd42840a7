"""One training step: PyTorch's time over kdjax's.

    pip install -e '.[benchmark]' && python -m benchmarks.steps

kdjax runs its own compiled program: images live on the device, and the step gathers,
crops and flips its batch. PyTorch is given ready batches in the device's memory and
runs the same mathematics eagerly, in its default layout, as published code does, and in
channels_last. `--check` shows that it is the same: from equal weights both take some
steps in float64 on small networks and must agree.
"""

import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

from benchmarks import measure
from benchmarks.cases import CASES, Case, tiny
from kdjax.runtime import backend
from kdjax.runtime.console import console
from kdjax.runtime.errors import UserError

OURS = "kdjax"


def turn(step: Callable[[], Any], calls: int, steps: int = 1) -> Callable[[], float]:
    """Returns a function that measures seconds per step, the first call left out.

    Args:
        step: makes some steps and waits for them.
        calls: how many of them are measured.
        steps: number of steps in a call.
    """

    def timed() -> float:
        step()  # brings its own data and threads back
        begin = time.perf_counter()
        for _ in range(calls):
            step()
        return (time.perf_counter() - begin) / (calls * steps)

    return timed


def measure_case(case: Case, rounds: int, calls: int, busy: float) -> dict[str, Any]:
    """Returns seconds per step of kdjax and PyTorch, and their ratios."""
    from benchmarks import _kdjax
    from benchmarks.torch_steps import LAYOUTS, TorchStep

    ours = _kdjax.Runner(_kdjax.program(case))
    images, labels = ours.batch(0)
    turns = {OURS: turn(ours, calls, ours.steps)}
    for layout in LAYOUTS:
        step = TorchStep(case, layout)
        batch = step.place(images, labels)
        turns[f"torch {layout}"] = turn(
            lambda step=step, batch=batch: step(*batch), calls
        )
    for timed in turns.values():
        timed()  # PyTorch's first steps, too, take longer
    found = measure.interleave(turns, rounds, busy)
    values = found.pop("values")
    return {
        "method": case.method,
        "networks": [*case.roles().values(), *case.teachers.values()],
        "seconds": {name: measure.spread(times) for name, times in values.items()},
        "ratio": {
            name: measure.quotient(times, values[OURS])
            for name, times in values.items()
            if name != OURS
        },
        **found,
    }


def difference(case: Case, layout: str = "NCHW", steps: int = 3) -> dict[str, float]:
    """Returns how far kdjax and PyTorch are apart after some steps in float64.

    Running variances are left out: PyTorch's are n/(n-1) times the biased ones.

    Args:
        case: whose networks PyTorch's side has too.
        layout: a key of `torch_steps.LAYOUTS`.
        steps: of training, from equal weights on equal batches.

    Returns:
        The largest relative difference of 'loss', and of 'networks': by leaf, the
        largest difference over the largest value.
    """
    import torch

    from benchmarks import _kdjax, torch_networks
    from benchmarks.torch_steps import TorchStep

    with jax.enable_x64(True):
        ours = _kdjax.Runner(_kdjax.program(case, jax.numpy.float64))
        theirs = TorchStep(case, layout, dtype=torch.float64)
        for role, variables in ours.networks().items():
            torch_networks.load(theirs.trained[role], variables)
        for network, variables in zip(theirs.frozen, ours.frozen.values(), strict=True):
            torch_networks.load(network, variables)
        total = 0.0
        for number in range(steps):
            if number % ours.steps == 0:
                ours()
            total += theirs(*theirs.place(*ours.batch(number)))
        networks = 0.0
        for role, variables in ours.networks().items():
            state = theirs.trained[role].state_dict()
            for name, ours_leaf in torch_networks.tensors(variables).items():
                if not name.endswith("running_var"):
                    apart = (state[name].cpu() - ours_leaf).abs().max()
                    scale = ours_leaf.abs().max().clamp(min=1e-12)
                    networks = max(networks, float(apart / scale))
        return {"loss": abs(total / ours.loss - 1), "networks": networks}


def check(names: Sequence[str], limit: float = 1e-8) -> int:
    """Prints how far the two are apart; returns 1 if further than rounding."""
    steps = max(3, backend.steps_per_dispatch())
    found = {}
    for name in names:
        case = dataclasses.replace(tiny(CASES[name]), size=4 * steps)
        found[name] = difference(case, steps=steps)
    measure.show(
        f"kdjax and PyTorch after {steps} steps in float64: relative difference",
        ("case", "loss", "parameters"),
        [
            (name, f"{apart['loss']:.1e}", f"{apart['networks']:.1e}")
            for name, apart in found.items()
        ],
    )
    return int(any(max(apart.values()) > limit for apart in found.values()))


def show(found: Sequence[dict[str, Any]]) -> None:
    """Prints a row for every case and program."""
    rows = []
    for case in found:
        for name, seconds in case["seconds"].items():
            ours = name == OURS
            rows.append(
                (
                    case["method"] if ours else "",
                    name,
                    measure.figure(seconds, ".0f", 1e3),
                    "" if ours else measure.figure(case["ratio"][name]),
                    str(case["discarded"]) if ours else "",
                )
            )
    measure.show(
        "One training step: median [quartiles]",
        ("case", "program", "ms", f"/ {OURS}", "discarded"),
        rows,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measures the cases and returns the exit status."""
    parser = measure.parser("steps", __doc__, rounds=9)
    parser.add_argument("--cases", nargs="+", choices=tuple(CASES), default=list(CASES))
    parser.add_argument("--calls", type=int, default=3, help="measured in a turn")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument(
        "--tiny", action="store_true", help="the smallest networks and images"
    )
    parser.add_argument(
        "--check", action="store_true", help="compare the results, not the times"
    )
    options = parser.parse_args(argv)
    if options.check:
        return check(options.cases)
    backend.use_compilation_cache()
    found = []
    for name in options.cases:
        case = dataclasses.replace(CASES[name], batch=options.batch)
        if options.tiny:
            case = tiny(case)
        try:
            figures = measure_case(case, options.rounds, options.calls, options.busy)
        except UserError as error:
            console.print(f"{name}: {error}", markup=False)
            break
        found.append(figures)
        # After every case: a long run that is stopped leaves what it has.
        sizes = {"batch": case.batch, "calls": options.calls, "cases": found}
        measure.save(options.out, sizes)
    if found:
        show(found)
    return int(len(found) < len(options.cases))


if __name__ == "__main__":
    sys.exit(main())
