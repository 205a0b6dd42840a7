"""CRD's step over KD's: the price of 16,384 negatives from a memory bank.

    python -m benchmarks.crd

ResNet56 teaches ResNet20 on images of CIFAR-100's size and number, batch 64. Both
steps are the library's own programs, run in turn.
"""

import sys
from collections.abc import Sequence

from benchmarks import measure
from benchmarks.cases import Case, tiny
from benchmarks.steps import turn
from kdjax.runtime import backend
from kdjax.runtime.console import console
from kdjax.runtime.errors import UserError

LIMIT = 1.5


def cases(negatives: int) -> dict[str, Case]:
    """Returns what is compared, by method."""
    options = {"kd": {}, "crd": {"negatives": negatives}}
    return {
        method: Case(
            method,
            student="resnet-20",
            teachers={"expert": "resnet-56"},
            options=chosen,
            batch=64,
            classes=100,
        )
        for method, chosen in options.items()
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measures both steps; returns 1 if CRD's costs more than it should."""
    from benchmarks import _kdjax

    parser = measure.parser("crd", __doc__, rounds=9)
    parser.add_argument("--negatives", type=int, default=16384)
    parser.add_argument("--calls", type=int, default=3, help="measured in a turn")
    parser.add_argument(
        "--tiny", action="store_true", help="the smallest networks and images"
    )
    options = parser.parse_args(argv)
    backend.use_compilation_cache()
    turns = {}
    for method, case in cases(options.negatives).items():
        runner = _kdjax.Runner(_kdjax.program(tiny(case) if options.tiny else case))
        turns[method] = turn(runner, options.calls, runner.steps)
    try:
        found = measure.interleave(turns, options.rounds, options.busy)
    except UserError as error:
        console.print(str(error), markup=False)
        return 2
    values = found.pop("values")
    ratio = measure.quotient(values["crd"], values["kd"])
    seconds = {name: measure.spread(times) for name, times in values.items()}
    measure.show(
        f"One step with {options.negatives:,} negatives: median [quartiles]",
        ("step", "ms", "/ kd"),
        [
            (name, measure.figure(times, ".0f", 1e3), "")
            if name == "kd"
            else (name, measure.figure(times, ".0f", 1e3), measure.figure(ratio))
            for name, times in seconds.items()
        ],
    )
    measure.save(options.out, {"seconds": seconds, "ratio": ratio, **found})
    return int(not options.tiny and ratio["median"] > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
