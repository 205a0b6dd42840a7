"""How XLA's options change the time of kdjax's train step.

    python -m benchmarks.options

compiles a case's program with kdjax's own options, and with further ones beside them,
for every set of a list (`benchmarks.option_sets`), which `--set` replaces. All are
timed in one process, interleaved. A set that the compiler refuses, or that fails when
it is run, is told and left out; so are, with `--seconds`, those for which no time is
left.

`--ahead` runs nothing: it compiles for an H100 as `benchmarks.kernels` does, and tells
kernels, bytes and memory, and whether the program's text differs from that of kdjax's
own options. Options of command buffers (CUDA graphs) change no text: graphs are made
of the finished program.
"""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax

from benchmarks import _kdjax, measure
from benchmarks.cases import CASES, Case, tiny
from benchmarks.option_sets import OWN, chosen
from benchmarks.steps import turn
from kdjax.preflight import target
from kdjax.preflight.hlo import traffic
from kdjax.runtime import backend
from kdjax.runtime.backend import Options
from kdjax.runtime.console import console
from kdjax.runtime.errors import UserError


class Sets:
    """What has become of the sets of one case.

    Attributes:
        refused: why, by name.
        left_out: those for which there was no time.
    """

    def __init__(self, sets: Mapping[str, Options], deadline: float):
        """Begins with none of them tried.

        Args:
            sets: by name.
            deadline: until when another one is taken, by `time.perf_counter`.
        """
        self._sets, self._deadline = sets, deadline
        self.refused: dict[str, str] = {}
        self.left_out: list[str] = []

    def take(self, reserve: Callable[[], float] = lambda: 0.0) -> Iterator[str]:
        """Yields the names of sets while there is time for one like the longest so far.

        kdjax's own is always taken.

        Args:
            reserve: returns the seconds that those taken still need.
        """
        longest, names = 0.0, list(self._sets)
        for number, name in enumerate(names):
            begin = time.perf_counter()
            if number and begin + longest + reserve() > self._deadline:
                self.left_out = names[number:]
                say(f"no time left for {', '.join(self.left_out)}")
                return
            yield name
            longest = max(longest, time.perf_counter() - begin)

    @contextlib.contextmanager
    def attempt(self, name: str) -> Iterator[None]:
        """Notes the compiler's or the device's error as a refusal of the set."""
        try:
            yield
        except jax.errors.JaxRuntimeError as error:
            reason = str(error).partition("\n")[0][:300]
            if name == OWN:
                raise UserError(f"kdjax's own options fail: {reason}") from error
            self.refused[name] = reason
            say(f"left out: {name} ({reason})")

    def told(self) -> dict[str, Any]:
        """Returns what was left out, for the figures."""
        return {"refused": self.refused, "left_out": self.left_out}


def say(line: str) -> None:
    """Prints a line."""
    console.print(line, markup=False)


def passed(options: Options) -> Options:
    """Returns all options that the compiler is given for a set."""
    return {**backend.compiler_options(), **options}


def measure_case(
    case: Case,
    sets: Mapping[str, Options],
    deadline: float,
    *,
    precision: str,
    rounds: int,
    calls: int,
    busy: float,
) -> dict[str, Any]:
    """Returns seconds per step, ratio to kdjax's own and memory of every set."""
    program = _kdjax.program(case, compute=_kdjax.COMPUTE[precision])
    start, lowered = _kdjax.Start(program), program.lower_train()
    state = Sets(sets, deadline)
    figures: dict[str, dict[str, Any]] = {}
    turns: dict[str, Callable[[], float]] = {}
    seconds: dict[str, float] = {}

    def guarded(name: str, timed: Callable[[], float]) -> Callable[[], float]:
        def measured() -> float:
            if name not in state.refused:
                with state.attempt(name):
                    return timed()
            return float("nan")

        return measured

    for name in state.take(lambda: rounds * sum(seconds.values())):
        with state.attempt(name):
            begin = time.perf_counter()
            compiled = lowered.compile(passed(sets[name]))
            compiling = time.perf_counter() - begin
            variant = _kdjax.Variant(start, compiled)
            variant()
            memory: Any = compiled.memory_analysis()
            figures[name] = {
                "options": passed(sets[name]),
                "compile_seconds": compiling,
                "temp_bytes": memory.temp_size_in_bytes,
                "loss": variant.loss,
            }
            turns[name] = guarded(name, turn(variant, calls, variant.steps))
            begin = time.perf_counter()
            turns[name]()
            seconds[name] = time.perf_counter() - begin
    turns = {name: timed for name, timed in turns.items() if name not in state.refused}
    found = measure.interleave(turns, rounds, busy)
    values = found.pop("values")
    own = figures[OWN]["loss"]
    for name in turns:
        figures[name]["loss_apart"] = abs(figures[name].pop("loss") / own - 1)
        if name not in state.refused:
            figures[name]["seconds"] = measure.spread(values[name])
            figures[name]["ratio"] = measure.quotient(values[name], values[OWN])
    return {
        **described(case),
        "steps": program.steps_per_dispatch,
        "sets": {name: figures[name] for name in turns if name not in state.refused},
        **state.told(),
        **found,
    }


def compile_case(
    case: Case, sets: Mapping[str, Options], deadline: float, *, precision: str
) -> dict[str, Any]:
    """Returns what is known of every set without running it, for one H100."""
    (device,) = target.find("h100:1x1").devices
    state = Sets(sets, deadline)
    figures: dict[str, dict[str, Any]] = {}
    own = None
    with backend.compiling_for("gpu"):
        program = _kdjax.program(case, compute=_kdjax.COMPUTE[precision], ahead=device)
        lowered, steps = program.lower_train(), program.steps_per_dispatch
        for name in state.take():
            with state.attempt(name):
                compiled = lowered.compile(passed(sets[name]))
                memory: Any = compiled.memory_analysis()
                text = compiled.as_text() or ""
                own = own or text
                kernels = [(runs, size) for _, runs, size in traffic.kernels(text)]
                figures[name] = {
                    "options": passed(sets[name]),
                    "kernels": sum(runs for runs, _ in kernels) / steps,
                    "bytes": sum(runs * size for runs, size in kernels) / steps,
                    "temp_bytes": memory.temp_size_in_bytes,
                    "same_text": text == own,
                }
    return {**described(case), "steps": steps, "sets": figures, **state.told()}


def described(case: Case) -> dict[str, Any]:
    """Returns what a case trains."""
    networks = [*case.roles().values(), *case.teachers.values()]
    return {"method": case.method, "networks": networks, "batch": case.batch}


def show_times(name: str, found: Mapping[str, Any]) -> None:
    """Prints a table of the sets that were timed."""
    measure.show(
        f"{name}: a step, median [quartiles], and its time over that with kdjax's own "
        "options; loss: how far that of the first dispatch is apart",
        ("options", "ms", f"/ {OWN}", "temporaries, MB", "loss"),
        [
            (
                options,
                measure.figure(figures["seconds"], ".2f", 1e3),
                measure.figure(figures["ratio"], ".3f"),
                f"{figures['temp_bytes'] / 1e6:,.1f}",
                f"{figures['loss_apart']:.0e}",
            )
            for options, figures in found["sets"].items()
        ],
    )


def show_compiled(name: str, found: Mapping[str, Any]) -> None:
    """Prints a table of the sets that were compiled."""
    measure.show(
        f"{name}: a step compiled for an H100, of a dispatch of {found['steps']}",
        ("options", "kernels", "MB", "temporaries, MB", f"text as {OWN}'s"),
        [
            (
                options,
                f"{figures['kernels']:.1f}",
                f"{figures['bytes'] / 1e6:,.1f}",
                f"{figures['temp_bytes'] / 1e6:,.1f}",
                "yes" if figures["same_text"] else "no",
            )
            for options, figures in found["sets"].items()
        ],
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measures the cases and returns the exit status."""
    parser = measure.parser("options", __doc__, rounds=5)
    parser.add_argument(
        "--cases", nargs="+", choices=tuple(CASES), default=["supervised", "ctkd"]
    )
    parser.add_argument("--calls", type=int, default=3, help="measured in a turn")
    parser.add_argument(
        "--precision",
        choices=tuple(_kdjax.COMPUTE),
        help="bf16 by default, on CPU float32",
    )
    parser.add_argument(
        "--set",
        action="append",
        dest="sets",
        metavar="NAME=VALUE[,NAME=VALUE]",
        help="a set of XLA's options instead of the list; may be repeated",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=float("inf"),
        help="when no further set is taken: each case gets its share",
    )
    parser.add_argument("--ahead", action="store_true", help="compile for an H100 only")
    parser.add_argument(
        "--tiny", action="store_true", help="the smallest networks and images"
    )
    options = parser.parse_args(argv)
    end = time.perf_counter() + options.seconds
    if options.ahead:
        jax.config.update("jax_platforms", "cpu")
    platform = "gpu" if options.ahead else jax.default_backend()
    precision = options.precision or ("float32" if platform == "cpu" else "bf16")
    cases: dict[str, Any] = {}
    try:
        sets = chosen(options.sets, platform)
        for number, name in enumerate(options.cases):
            case = tiny(CASES[name]) if options.tiny else CASES[name]
            now = time.perf_counter()
            deadline = now + (end - now) / (len(options.cases) - number)
            if options.ahead:
                found = compile_case(case, sets, deadline, precision=precision)
                show_compiled(f"{name}, {precision}", found)
            else:
                found = measure_case(
                    case,
                    sets,
                    deadline,
                    precision=precision,
                    rounds=options.rounds,
                    calls=options.calls,
                    busy=options.busy,
                )
                show_times(f"{name}, {precision}", found)
            cases[name] = found
            # After every case: a long run that is stopped leaves what it has.
            flags = os.environ.get("XLA_FLAGS", "")
            about = {"precision": precision, "ahead": options.ahead, "xla_flags": flags}
            measure.save(options.out, {**about, "cases": cases})
    except UserError as error:
        say(f"options: {error}")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
