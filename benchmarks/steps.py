"""One training step: PyTorch's time over kdjax's.

    pip install -e '.[benchmark]' && python -m benchmarks.steps

kdjax runs its own compiled program: images live on the device, and the step gathers,
crops and flips its batch. PyTorch is given ready batches in the device's memory and
runs the same mathematics. On a GPU it does so in channels_last, in float32 (TF32, as
kdjax) and with autocast to bfloat16: eager, as one CUDA graph of the whole step, and
compiled by `torch.compile` in such a graph. On CPU eager and compiled, in its default
layout and in channels_last. The ratio that counts is that of the fastest of them in
kdjax's precision. `--check` shows that both compute the same: from equal weights both
take some steps in float64 on small networks and must agree. `--profile` tells where
kdjax's time goes (`benchmarks.profile`).
"""

import dataclasses
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from benchmarks import measure
from benchmarks.cases import CASES, Case, tiny
from kdjax.runtime import backend
from kdjax.runtime.console import console
from kdjax.runtime.errors import UserError

OURS = {"kdjax": None, "kdjax bf16": jax.numpy.bfloat16}
"""kdjax's programs by name, and the dtype that networks are computed in."""


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
    from benchmarks import _kdjax, torch_steps

    cuda = torch_steps.device().type == "cuda"
    if cuda:
        torch_steps.use_fast_products()
    turns: dict[str, Callable[[], float]] = {}
    for name, compute in OURS.items():
        if compute is not None and not cuda:
            continue  # bfloat16 is emulated on most CPUs
        ours = _kdjax.Runner(_kdjax.program(case, compute=compute))
        turns[name] = turn(ours, calls, ours.steps)
    images, labels = ours.batch(0)
    for form in torch_steps.forms(cuda):
        step = torch_steps.TorchStep(case, form)
        theirs = torch_steps.Repeated(step, images, labels, ours.steps)
        turns[form.name] = turn(theirs, calls, ours.steps)
    for timed in turns.values():
        timed()  # PyTorch's first steps, too, take longer
    found = measure.interleave(turns, rounds, busy)
    return {
        "method": case.method,
        "networks": [*case.roles().values(), *case.teachers.values()],
        **compare(found.pop("values")),
        **found,
    }


def profile_case(case: Case) -> dict[str, Any]:
    """Returns where the time of kdjax's programs goes, by name, and shows it."""
    from benchmarks import _kdjax, profile

    found = {}
    for name, compute in OURS.items():
        if compute is not None and jax.default_backend() == "cpu":
            continue
        runner = _kdjax.Runner(_kdjax.program(case, compute=compute))
        found[name] = profile.profile(runner)
        profile.show(f"{case.method}, {name}", found[name])
    return {"method": case.method, "profile": found}


def compare(values: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Returns spreads of 'seconds', 'ratio' by kdjax's program, and the 'fastest'.

    Args:
        values: seconds per step in every round, by program.
    """
    seconds = {name: measure.spread(times) for name, times in values.items()}
    ratio, fastest = {}, {}
    for ours in (name for name in values if name in OURS):
        rivals = [name for name in values if name not in OURS and same(name, ours)]
        ratio[ours] = {
            name: measure.quotient(values[name], values[ours]) for name in rivals
        }
        fastest[ours] = min(rivals, key=lambda name: seconds[name]["median"])
    return {"seconds": seconds, "ratio": ratio, "fastest": fastest}


def same(theirs: str, ours: str) -> bool:
    """Returns whether two programs compute in one precision."""
    return theirs.endswith("bf16") == ours.endswith("bf16")


def difference(case: Case, layout: str = "NCHW", steps: int = 3) -> dict[str, float]:
    """Returns how far kdjax and PyTorch are apart after some steps in float64.

    Running variances are left out: PyTorch's are n/(n-1) times the biased ones.

    Args:
        case: whose networks PyTorch's side has too.
        layout: a key of `torch_steps.LAYOUTS`.
        steps: of training, from equal weights on equal batches. The learning rate is
            that of the case's recipe, whose epochs have its size.

    Returns:
        The largest relative difference of 'loss', and of 'networks': by leaf, the
        largest difference over the largest value.
    """
    import torch

    from benchmarks import _kdjax, torch_networks, torch_training
    from benchmarks.torch_steps import Form, TorchStep

    with jax.enable_x64(True):
        ours = _kdjax.Runner(_kdjax.program(case, jax.numpy.float64))
        theirs = TorchStep(case, Form(layout), dtype=torch.float64)
        for role, variables in ours.networks().items():
            torch_networks.load(theirs.trained[role], variables)
        for network, variables in zip(theirs.frozen, ours.frozen.values(), strict=True):
            torch_networks.load(network, variables)
        total, recipe = 0.0, case.recipe
        rates = torch_training.drops(recipe, recipe.epochs * (case.size // case.batch))
        for number in range(steps):
            if number in rates:
                theirs.set_learning_rate(rates[number])
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
    """Prints a row for every case and program; '*' marks the fastest of PyTorch."""
    rows = []
    for case in found:
        for i, (name, seconds) in enumerate(case["seconds"].items()):
            ratio = ""
            for ours, ratios in case["ratio"].items():
                if name in ratios:
                    mark = " *" if case["fastest"][ours] == name else ""
                    ratio = measure.figure(ratios[name]) + mark
            rows.append(
                (
                    "" if i else case["method"],
                    name,
                    measure.figure(seconds, ".2f", 1e3),
                    ratio,
                    "" if i else str(case["discarded"]),
                )
            )
    measure.show(
        "One training step: median [quartiles]; the ratio to kdjax is that of the same "
        "precision, * of the fastest",
        ("case", "program", "ms", "/ kdjax", "discarded"),
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
    parser.add_argument(
        "--profile", action="store_true", help="tell where kdjax's time goes instead"
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
        if options.profile:
            found.append(profile_case(case))
            measure.save(options.out, {"batch": case.batch, "cases": found})
            continue
        try:
            figures = measure_case(case, options.rounds, options.calls, options.busy)
        except UserError as error:
            console.print(f"{name}: {error}", markup=False)
            break
        found.append(figures)
        # After every case: a long run that is stopped leaves what it has.
        sizes = {"batch": case.batch, "calls": options.calls, "cases": found}
        measure.save(options.out, sizes)
    if found and not options.profile:
        show(found)
    return int(len(found) < len(options.cases))


if __name__ == "__main__":
    sys.exit(main())
