"""Where a step's time goes: kernels, gaps between them, and the bytes they move.

`python -m benchmarks.steps --profile` shows it for each case, from the profiler of JAX.
On a GPU a kernel is what its streams ran; on CPU it is an operation of the compiled
program, and operations of several threads overlap.
"""

import re
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from benchmarks import _kdjax, measure
from kdjax.preflight.chips import CHIPS
from kdjax.preflight.hlo.traffic import traffic

_DEAREST = 20
_NUMBER = re.compile(r"([._]\d+)*$")


class Kernel(NamedTuple):
    """One run of a kernel: its name, start and duration in nanoseconds."""

    name: str
    start: float
    duration: float


def kernels(trace: Path) -> list[Kernel]:
    """Returns what a trace has of the first device, by start.

    Args:
        trace: the folder that `jax.profiler.trace` wrote to.
    """
    (file,) = trace.glob("**/*.xplane.pb")
    planes = list(jax.profiler.ProfileData.from_file(str(file)).planes)
    devices = sorted(plane.name for plane in planes if "/device:GPU" in plane.name)
    found = []
    for plane in planes:
        for line in plane.lines:
            if devices and (plane.name != devices[0] or "Stream" not in line.name):
                continue
            for event in line.events:
                if devices or any(name == "hlo_op" for name, _ in event.stats):
                    found.append(Kernel(event.name, event.start_ns, event.duration_ns))
    return sorted(found, key=lambda kernel: kernel.start)


def summary(found: Sequence[Kernel], steps: int) -> dict[str, Any]:
    """Returns figures of a step, in seconds: kernels, span, busy time, gaps, dearest.

    Args:
        found: of all steps.
        steps: how many these are.
    """
    busy, end, gaps = 0.0, None, 0
    for kernel in sorted(found, key=lambda kernel: kernel.start):
        stop = kernel.start + kernel.duration
        if end is None or kernel.start > end:
            gaps += end is not None
            busy += kernel.duration
            end = stop
        elif stop > end:
            busy += stop - end
            end = stop
    span = (end or 0.0) - min((kernel.start for kernel in found), default=0.0)
    kinds: dict[str, list[float]] = {}
    for kernel in found:
        kinds.setdefault(_NUMBER.sub("", kernel.name), []).append(kernel.duration)
    dearest = sorted(kinds.items(), key=lambda kind: -sum(kind[1]))[:_DEAREST]
    scale = 1e-9 / steps
    return {
        "kernels": len(found) / steps,
        "span": span * scale,
        "busy": busy * scale,
        "gaps": gaps / steps,
        "idle": (span - busy) * scale,
        "dearest": [
            {
                "name": name,
                "count": len(durations) / steps,
                "seconds": sum(durations) * scale,
            }
            for name, durations in dearest
        ],
    }


def bandwidth(device_kind: str) -> float | None:
    """Returns a device's published bytes per second, if preflight knows it."""
    words = device_kind.lower().replace("-", " ").split()
    for chip in CHIPS.values():
        if chip.name in words and chip.bandwidth:
            return chip.bandwidth
    return None


def profile(runner: _kdjax.Runner, calls: int = 2) -> dict[str, Any]:
    """Returns `summary` of a program, and how its bytes compare with the device's.

    Args:
        runner: a program that has run before.
        calls: how many dispatches are traced.
    """
    runner()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(calls):
                runner()
        found = summary(kernels(Path(folder)), calls * runner.steps)
    found["bytes"] = traffic(runner.compiled_text) // runner.steps
    found["bytes_per_second"] = found["bytes"] / found["span"]
    device = jax.devices()[0].device_kind
    peak = bandwidth(device)
    found["device"] = device
    found["share_of_byte_bound"] = peak and found["bytes_per_second"] / peak
    return found


def show(name: str, found: dict[str, Any]) -> None:
    """Prints a program's figures and its dearest kernels."""
    share = found["share_of_byte_bound"]
    rows = [
        ("kernels", f"{found['kernels']:,.0f}"),
        ("time (ms)", f"{1e3 * found['span']:.3f}"),
        ("busy (ms)", f"{1e3 * found['busy']:.3f}"),
        ("gaps", f"{found['gaps']:,.0f}"),
        ("gaps (ms)", f"{1e3 * found['idle']:.3f}"),
        ("bytes moved (MB), by preflight", f"{found['bytes'] / 1e6:,.1f}"),
        ("bytes per second (GB/s)", f"{found['bytes_per_second'] / 1e9:,.1f}"),
        (
            f"share of the published bandwidth of {found['device']}",
            f"{share:.1%}" if share else "not known",
        ),
    ]
    measure.show(f"{name}: a step", ("", "a step"), rows)
    measure.show(
        f"{name}: the dearest kernels of a step",
        ("kernel", "runs", "ms", "share of busy"),
        _dearest(found["dearest"], found["busy"]),
    )


def _dearest(
    kinds: Iterable[dict[str, Any]], busy: float
) -> list[tuple[str, str, str, str]]:
    return [
        (
            kind["name"],
            f"{kind['count']:,.1f}",
            f"{1e3 * kind['seconds']:.3f}",
            f"{kind['seconds'] / busy:.1%}",
        )
        for kind in kinds
    ]
