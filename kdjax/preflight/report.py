"""What is printed and kept of a compiled program."""

from collections import Counter
from typing import Any

from rich.table import Table

from kdjax.experiment.run import rounds
from kdjax.preflight.compiling import Compiled, in_units
from kdjax.runtime.console import console


def figures(found: Compiled) -> dict[str, Any]:
    """Returns all figures, for JSON; those of memory, FLOPs and bytes by device."""
    chip, bound = found.target.chip, found.seconds_at_peak
    least = max(bound.values(), default=None)
    images = found.batch * found.replicas
    return {
        "topology": found.target.name,
        "devices": len(found.target.devices),
        "stage": found.stage,
        "replicas": found.replicas,
        "seeds": found.seeds,
        "rounds": _rounds(found),
        "precision": found.precision,
        "batch_size": found.batch,
        "accumulate": found.micro_batches,
        "from_the_bank": list(found.banked),
        "fits": True if chip.limit else None,  # what does not ends with an error
        "memory": {**found.memory, "needed": found.needed, "usable": chip.limit},
        "flops_per_step": found.flops,
        "bytes_per_step": found.traffic,
        "seconds_at_published_peaks": bound,
        "images_per_second_at_most": least and images / least,
        "collectives": [
            {"kind": kind, "count": count, "bytes": size}
            for kind, (count, size) in by_kind(found).items()
        ],
        "collectives_between_replicas": found.crossing,
        "compile_seconds": round(found.seconds, 1),
        "source_of_peaks": chip.source,
    }


def _rounds(found: Compiled) -> list[int]:
    """Returns how many of the stage's seeds a run trains at a time on these devices."""
    devices = len(found.target.devices)
    return [len(seeds) for seeds in rounds(found.seeds, devices)]


def by_kind(found: Compiled) -> dict[str, tuple[int, int]]:
    """Returns number and bytes of a step's collectives."""
    counts, sizes = Counter[str](), Counter[str]()
    for one in found.collectives:
        counts[one.kind] += one.times
        sizes[one.kind] += one.times * one.bytes
    return {kind: (counts[kind], sizes[kind]) for kind in counts if counts[kind]}


def show(found: Compiled) -> None:
    """Prints the report."""
    chip, count = found.target.chip, len(found.target.devices)
    share = found.batch * found.replicas // count
    table = Table(
        "per device",
        "",
        title=f"{found.stage} on {found.target.name}: {count} devices, "
        f"{found.replicas} replicas side by side, batch {found.batch} ({share} a "
        f"device), {found.precision}",
    )
    limit = f" of {in_units(chip.limit)} usable: fits" if chip.limit else ""
    table.add_row("memory needed", f"{in_units(found.needed)}{limit}")
    for kind, size in found.memory.items():
        table.add_row(f"  {kind}", in_units(size))
    if found.banked:
        table.add_row("teachers from the bank", ", ".join(found.banked))
    table.add_row("products in a step", f"{found.flops / 1e9:,.3g} GFLOP")
    table.add_row("memory traffic of a step", in_units(found.traffic))
    bound = found.seconds_at_peak
    for what, seconds in bound.items():
        table.add_row(f"  {what} at the published peak", f"{1e3 * seconds:,.3g} ms")
    if bound:
        most = found.batch * found.replicas / max(bound.values())
        table.add_row(
            "  so, all devices together", f"at most {most:,.0f} images/s, caches aside"
        )
    for kind, (number, size) in by_kind(found).items():
        table.add_row(f"{kind} in a step", f"{number}: {in_units(size)}")
    if found.replicas > 1:
        table.add_row("collectives between replicas", str(found.crossing))
    table.add_row("compiled in", f"{found.seconds:,.0f} s")
    console.print(table)
    widths = _rounds(found)
    if widths != [found.replicas]:
        console.print(
            f"a run on {found.target.name} trains the stage's {found.seeds} seeds in "
            f"rounds of {' + '.join(map(str, widths))} side by side",
            markup=False,
        )
    if chip.platform in ("tpu", "gpu"):
        console.print(
            "times are lower bounds (caches aside), not predictions; a call of the "
            "program makes up to 32 steps",
            markup=False,
        )
