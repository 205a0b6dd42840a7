"""From the start of a process to its first training step, cold and from the cache.

    python -m benchmarks.start

A process imports kdjax, starts the networks, compiles and makes one step, with an empty
folder for compiled programs; a second one does the same with what the first has left.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from benchmarks import measure
from kdjax.runtime.console import console
from kdjax.runtime.errors import UserError

LIMIT = 0.5
KINDS = ("cold", "cached")
_CASES = ("supervised", "kd", "at", "ctkd", "dgkd")
_KEYS = {
    "compile": "compiling the train and test programs",
    "first_step": "to the first step",
}


def child(options: argparse.Namespace) -> None:
    """Makes one step and prints seconds of compilation and the time of its end."""
    from benchmarks import _kdjax
    from benchmarks.cases import CASES, tiny
    from kdjax.runtime import backend

    backend.use_compilation_cache()
    case = CASES[options.child]
    if options.tiny:
        case = tiny(case)
    program = _kdjax.program(dataclasses.replace(case, size=3 * case.batch))
    _kdjax.Runner(program)()
    print(json.dumps({"compile": program.compile_seconds, "end": time.time()}))


def start(name: str, cache: str, tiny: bool) -> dict[str, float]:
    """Returns seconds of compilation and to the first step of a new process."""
    command = [sys.executable, "-m", "benchmarks.start", "--child", name]
    env = {**os.environ, "KDJAX_CACHE": cache}
    env.pop("JAX_COMPILATION_CACHE_DIR", None)  # would win over ours
    begin = time.time()
    made = subprocess.run(
        command + ["--tiny"] * tiny, env=env, check=True, capture_output=True
    )
    found = json.loads(made.stdout.splitlines()[-1])
    return {"compile": found["compile"], "first_step": found["end"] - begin}


def run(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Returns what a case's starts took, in rounds of a cold and a cached one."""
    runs: list[dict[str, dict[str, float]]] = []

    def pair() -> float:
        with tempfile.TemporaryDirectory() as cache:
            runs.append({kind: start(name, cache, options.tiny) for kind in KINDS})
        return runs[-1]["cold"]["first_step"]

    found = measure.interleave({"pair": pair}, options.rounds, options.busy)
    kept = [runs[i] for i in found["kept"]]
    figures: dict[str, Any] = {"discarded": found["discarded"]}
    for key in _KEYS:
        times = {kind: [pair[kind][key] for pair in kept] for kind in KINDS}
        figures[key] = {kind: measure.spread(values) for kind, values in times.items()}
        figures[key]["ratio"] = measure.quotient(times["cached"], times["cold"])
    return figures


def main(argv: Sequence[str] | None = None) -> int:
    """Measures; returns 1 if a cached start takes more than `LIMIT` of a cold one."""
    parser = measure.parser("start", __doc__, rounds=3)
    parser.add_argument("--cases", nargs="+", choices=_CASES, default=["ctkd"])
    parser.add_argument(
        "--tiny", action="store_true", help="the smallest networks and images"
    )
    parser.add_argument("--child", choices=_CASES, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.child:
        child(options)
        return 0
    try:
        found = {name: run(name, options) for name in options.cases}
    except UserError as error:
        console.print(f"start: {error}", markup=False)
        return 1
    except subprocess.CalledProcessError as error:
        sys.stderr.buffer.write(error.stderr)
        return error.returncode
    measure.show(
        "Starting: seconds, median [quartiles]",
        ("case", *KINDS, "cached / cold"),
        [
            (
                f"{name}, {words}",
                *(measure.figure(figures[key][kind], ".1f") for kind in KINDS),
                measure.figure(figures[key]["ratio"]),
            )
            for name, figures in found.items()
            for key, words in _KEYS.items()
        ],
    )
    measure.save(options.out, {"cases": found})
    slow = [
        figures[key]["ratio"]["median"] > LIMIT
        for figures in found.values()
        for key in _KEYS
    ]
    return int(any(slow))


if __name__ == "__main__":
    sys.exit(main())
