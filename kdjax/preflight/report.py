"""The report on a compiled program: a table to print, and figures for JSON."""

from collections import Counter
from typing import Any

from rich.table import Table

from kdjax.experiment.run import rounds
from kdjax.preflight.compiling import Compiled, in_units
from kdjax.runtime.console import console


def figures(compiled: Compiled) -> dict[str, Any]:
    """Returns all figures, for JSON; those of memory, FLOPs and bytes by device."""
    chip, bound = compiled.target.chip, compiled.seconds_at_peak
    least = max(bound.values(), default=None)
    images = compiled.batch * compiled.replicas
    return {
        "topology": compiled.target.name,
        "devices": len(compiled.target.devices),
        "stage": compiled.stage,
        "replicas": compiled.replicas,
        "seeds": compiled.seeds,
        "rounds": _rounds(compiled),
        "precision": compiled.precision,
        "batch_size": compiled.batch,
        "accumulate": compiled.micro_batches,
        "from_the_bank": list(compiled.banked),
        "fits": True if chip.limit else None,  # else compiling has raised an error
        "memory": {**compiled.memory, "needed": compiled.needed, "usable": chip.limit},
        "flops_per_step": compiled.flops,
        "bytes_per_step": compiled.traffic,
        "kernels_per_step": dict(compiled.kernels),
        "seconds_at_published_peaks": bound,
        "images_per_second_at_most": least and images / least,
        "collectives": [
            {"kind": kind, "count": count, "bytes": size}
            for kind, (count, size) in by_kind(compiled).items()
        ],
        "collectives_between_replicas": compiled.crossing,
        "compile_seconds": round(compiled.seconds, 1),
        "source_of_peaks": chip.source,
    }


def _rounds(compiled: Compiled) -> list[int]:
    """Returns how many of the stage's seeds a run trains at a time on these devices."""
    devices = len(compiled.target.devices)
    return [len(seeds) for seeds in rounds(compiled.seeds, devices)]


def by_kind(compiled: Compiled) -> dict[str, tuple[int, int]]:
    """Returns number and bytes of a step's collectives."""
    counts, sizes = Counter[str](), Counter[str]()
    for one in compiled.collectives:
        counts[one.kind] += one.times
        sizes[one.kind] += one.times * one.bytes
    return {kind: (counts[kind], sizes[kind]) for kind in counts if counts[kind]}


def show(compiled: Compiled) -> None:
    """Prints the report."""
    chip, count = compiled.target.chip, len(compiled.target.devices)
    share = compiled.batch * compiled.replicas // count
    table = Table(
        "per device",
        "",
        title=f"{compiled.stage} on {compiled.target.name}: {count} devices, "
        f"{compiled.replicas} replicas side by side, batch {compiled.batch} ({share} a "
        f"device), {compiled.precision}",
    )
    limit = f" of {in_units(chip.limit)} usable: fits" if chip.limit else ""
    table.add_row("memory needed", f"{in_units(compiled.needed)}{limit}")
    for kind, size in compiled.memory.items():
        table.add_row(f"  {kind}", in_units(size))
    if compiled.banked:
        table.add_row("teachers from the bank", ", ".join(compiled.banked))
    table.add_row("products in a step", f"{compiled.flops / 1e9:,.3g} GFLOP")
    table.add_row("memory traffic of a step", in_units(compiled.traffic))
    table.add_row("kernels of a step", f"{sum(compiled.kernels.values()):,}")
    bound = compiled.seconds_at_peak
    for what, seconds in bound.items():
        table.add_row(f"  {what} at the published peak", f"{1e3 * seconds:,.3g} ms")
    if bound:
        most = compiled.batch * compiled.replicas / max(bound.values())
        table.add_row(
            "  so, all devices together", f"at most {most:,.0f} images/s, caches aside"
        )
    for kind, (number, size) in by_kind(compiled).items():
        table.add_row(f"{kind} in a step", f"{number}: {in_units(size)}")
    if compiled.replicas > 1:
        table.add_row("collectives between replicas", str(compiled.crossing))
    table.add_row("compiled in", f"{compiled.seconds:,.0f} s")
    console.print(table)
    widths = _rounds(compiled)
    if widths != [compiled.replicas]:
        console.print(
            f"a run on {compiled.target.name} trains the stage's {compiled.seeds} "
            f"seeds in rounds of {' + '.join(map(str, widths))} side by side",
            markup=False,
        )
    if chip.platform in ("tpu", "gpu"):
        console.print(
            "times are lower bounds (caches aside), not predictions; in a run one call "
            "of the program makes several steps like this one",
            markup=False,
        )
