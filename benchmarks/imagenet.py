"""The host's part of ImageNet: images per second that are read, decoded and cropped.

    python -m benchmarks.imagenet [--data-dir DIR]

measures training batches of the streamed data set as it is made ready for a device, in
one thread and by numbers of worker processes (0: threads of one process). The start of
the workers is given apart. Images per second of processor time hold on a busy machine
too. Without DIR it writes its own photographs, cut from the two that come with
scikit-learn: about the size of ImageNet's, but neither its content nor its disk.
"""

import argparse
import importlib.metadata
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from benchmarks import photos
from kdjax.data.streaming.dataset import Streamed
from kdjax.data.streaming.opening import open_streamed
from kdjax.data.streaming.prefetch import THREADS
from kdjax.runtime.console import console
from kdjax.runtime.errors import UserError
from kdjax.runtime.files import write_json

SEED = 0


def cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def one_thread(data: Streamed, order: np.ndarray, batch_size: int) -> dict[str, Any]:
    """Returns the speed of one core, without Grain.

    Args:
        data: opened with one worker, which is one thread here.
        order: positions in the training set.
        batch_size: images decoded together.
    """
    batches = order.reshape(-1, batch_size)
    data.examples(batches[0], SEED, 0)
    start, used = time.perf_counter(), time.process_time()
    for index in batches[1:]:
        data.examples(index, SEED, 0)
    count = batches[1:].size
    speed = count / (time.perf_counter() - start)
    return {
        "by": "one thread",
        "speed": speed,
        "per_core": speed,
        "per_cpu_second": count / (time.process_time() - used),
        "first_batch": None,
    }


def stream(
    data: Streamed, order: np.ndarray, batch_size: int, workers: int
) -> dict[str, Any]:
    """Returns the speed of a stream whose consumer never waits.

    Args:
        data: opened with these workers.
        order: positions in the training set.
        batch_size: images per batch.
        workers: the number of worker processes; 0 for threads.
    """
    at_once = workers or THREADS
    begun = time.perf_counter()
    times = []
    with data.train(order, SEED, 0, batch_size) as batches:
        for _ in batches:
            times.append(time.perf_counter())
    # The first batch of every worker was made while the others started.
    measured = len(times) - at_once
    if measured < 1:
        raise UserError(f"--images: {len(order)} are too few for {at_once} workers")
    speed = measured * batch_size / (times[-1] - times[at_once - 1])
    return {
        "by": f"{at_once} {'worker(s)' if workers else 'threads'}",
        "speed": speed,
        "per_core": speed / min(at_once, cores()),
        "per_cpu_second": None,
        "first_batch": times[0] - begun,
    }


def measure(data_dir: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns what each way of working gave."""
    batch_size = options.batch_size

    def opened(workers: int) -> Streamed:
        return open_streamed(
            "imagenet",
            str(data_dir),
            image_size=options.image_size,
            workers=workers,
        )

    rows = []
    with opened(1) as data:
        count = min(options.images, data.train_size) // batch_size * batch_size
        if count < 2 * batch_size:
            raise UserError(
                f"{min(options.images, data.train_size)} images are fewer than two "
                f"batches of {batch_size}"
            )
        order = np.random.default_rng(SEED).permutation(data.train_size)[:count]
        rows.append(one_thread(data, order, batch_size))
    for workers in options.workers:
        with opened(workers) as data:
            rows.append(stream(data, order, batch_size, workers))
    return rows


def show(rows: Sequence[dict[str, Any]], title: str) -> None:
    """Prints a row for every way of working."""
    table = Table(title=title)
    columns = {
        "images/s": "speed",
        "and core": "per_core",
        "images per CPU second": "per_cpu_second",
        "first batch (s)": "first_batch",
    }
    for name in ("made by", *columns):
        table.add_column(name, justify="right")
    for row in rows:
        found = [row[key] for key in columns.values()]
        table.add_row(
            row["by"], *("-" if value is None else f"{value:.3g}" for value in found)
        )
    console.print(table)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the measurements and returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.imagenet",
        description=(__doc__ or "").split("\n\n")[0],
    )
    parser.add_argument("--data-dir", type=Path, help="of the TFDS data sets")
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        if options.data_dir:
            data_dir, what = options.data_dir, "imagenet2012"
        else:
            data_dir = Path(folder)
            what = "JPEGs of about 500x375 made from scikit-learn's two photographs"
            few = photos.photographs(min(options.images, 2), seed=1)
            photos.write(
                data_dir,
                {"train": photos.photographs(options.images), "validation": few},
            )
        try:
            rows = measure(data_dir, options)
        except UserError as error:
            console.print(error, markup=False)
            return 2
    show(rows, f"{what}, to {options.image_size}x{options.image_size}; {cores()} cores")
    if options.out:
        found = {
            "data": what,
            "images": options.images,
            "batch_size": options.batch_size,
            "image_size": options.image_size,
            "cores": cores(),
            "rows": rows,
            "versions": {
                name: importlib.metadata.version(name)
                for name in ("grain", "array_record", "numpy", "pillow")
            },
        }
        write_json(options.out, found)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
