"""A table of teachers, student and quantised student: size, accuracy and speed."""

import dataclasses
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnxruntime
from rich.table import Table as RichTable

from kdjax.export.images import Part
from kdjax.export.preprocessing import Preprocessing
from kdjax.export.sessions import Session, measure
from kdjax.runtime.console import console, progress

_CHUNK = 256


@dataclasses.dataclass(frozen=True)
class Entry:
    """A file to be measured.

    Attributes:
        stage: the network's stage.
        role: 'teacher' or 'student'.
        model: the network's name.
        precision: 'float32' or 'int8'.
        parameters: their number.
        path: of the ONNX file.
        prepare: makes its input.
    """

    stage: str
    role: str
    model: str
    precision: str
    parameters: int
    path: Path
    prepare: Preprocessing


def make(
    entries: Sequence[Entry], test: Part, notes: Sequence[str], threads: int
) -> dict[str, Any]:
    """Returns the content of `table.json`: the measurements on this CPU.

    Args:
        entries: the files.
        test: test images.
        notes: lines about networks that cannot be measured.
        threads: of onnxruntime.
    """
    sessions = {
        str(number): Session(entry.path, entry.prepare, threads)
        for number, entry in enumerate(entries)
    }
    speeds = measure(sessions, test.images[:64])
    rows = []
    for number, entry in enumerate(entries):
        speed = speeds[str(number)]
        rows.append(
            {
                "stage": entry.stage,
                "role": entry.role,
                "model": entry.model,
                "precision": entry.precision,
                "parameters": entry.parameters,
                "megabytes": entry.path.stat().st_size / 1e6,
                "test_accuracy": _accuracy(sessions[str(number)], entry, test),
                "latency_ms": speed.latency,
                "images_per_second": speed.images_per_second,
            }
        )
    return {
        "rows": rows,
        "notes": list(notes),
        "test_images": len(test.labels),
        "all_test_images": test.total,
        "threads": threads,
        "cpu": _cpu(),
        "onnxruntime": onnxruntime.__version__,
    }


def _accuracy(session: Session, entry: Entry, test: Part) -> float:
    right = 0
    label = f"{entry.stage} {entry.precision} on test images"
    with progress(label, len(test.labels)) as advance:
        for start in range(0, len(test.labels), _CHUNK):
            labels = test.labels[start : start + _CHUNK]
            logits = session.logits(test.images[start : start + _CHUNK])
            right += int((logits.argmax(axis=1) == labels).sum())
            advance(len(labels))
    return right / len(test.labels)


def columns() -> tuple[str, ...]:
    """Returns the headings, of which the first three are words."""
    return (
        "network",
        "model",
        "precision",
        "parameters",
        "MB",
        "accuracy (%)",
        "latency (ms)",
        "images/s",
    )


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """Returns a row of the table in words."""
    role = "" if row["role"] == row["stage"] else f" ({row['role']})"
    return (
        row["stage"] + role,
        row["model"],
        row["precision"],
        f"{row['parameters']:,}",
        f"{row['megabytes']:.3f}",
        f"{100 * row['test_accuracy']:.2f}",
        f"{row['latency_ms']:.3f}",
        f"{row['images_per_second']:,.0f}",
    )


def caption(table: dict[str, Any]) -> str:
    """Returns the line on how the figures were measured."""
    count, total = table["test_images"], table["all_test_images"]
    images = f"all {total:,}" if count == total else f"{count:,} of {total:,}"
    spread = "" if count == total else ", evenly spread"
    threads = table["threads"]
    return (
        f"Accuracy on {images} test images{spread}. Latency of one image and images/s "
        f"in batches of 64: medians, onnxruntime {table['onnxruntime']}, {threads} "
        f"thread{'s' if threads > 1 else ''}, {table['cpu']}."
    )


def show(table: dict[str, Any]) -> None:
    """Prints the table."""
    printed = RichTable(title="As deployed")
    for number, name in enumerate(columns()):
        printed.add_column(name, justify="left" if number < 3 else "right")
    for row in table["rows"]:
        printed.add_row(*cells(row))
    console.print(printed)
    for line in (caption(table), *table["notes"]):
        console.print(line, markup=False)


def threads_here() -> int:
    """Returns the number of threads that this process may use at once."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


def _cpu() -> str:
    """Returns the CPU's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    return next(iter(names), platform.processor() or platform.machine())
