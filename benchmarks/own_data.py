"""One's own images beside CIFAR's: reading them, and training on them.

    python -m benchmarks.own_data --data-dir DIR

Writes CIFAR-10's first images as a folder of JPEGs, and measures

- the first start, which decodes all of them, and the second, which reads the cache;
- images per second of a supervised WRN-16-1 (batch 128, crops and flips, float32) on
  them and on CIFAR-10 itself, an epoch of each in turn, without evaluation.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

import kdjax
from benchmarks import measure
from configs import kd
from kdjax.data import sources
from kdjax.experiment import own
from kdjax.runtime import command
from kdjax.runtime.console import console

BATCH = 128
_OPEN = "import sys, kdjax; print(kdjax.open_data(sys.argv[1]).train_size)"


def write(folder: Path, data: sources.Dataset, images: int) -> None:
    """Writes a folder of JPEGs, a folder for every class."""
    for split, part in (("train", data.train), ("test", data.test)):
        for i, (pixels, label) in enumerate(zip(part.images, part.labels, strict=True)):
            place = folder / split / f"class{label}"
            place.mkdir(parents=True, exist_ok=True)
            if split == "test" or i < images:
                Image.fromarray(pixels).save(place / f"{i:05d}.jpg", quality=95)


def starts(folder: Path, cache: Path) -> dict[str, float]:
    """Returns the seconds of two starts that only open the data set."""
    found = {}
    for name in ("first", "second"):
        begin = time.perf_counter()
        subprocess.run(
            [sys.executable, "-c", _OPEN, str(folder)],
            env={**os.environ, "KDJAX_CACHE": str(cache)},
            check=True,
            stdout=subprocess.DEVNULL,
        )
        found[name] = time.perf_counter() - begin
    return found


def trainer(config: dict[str, Any]) -> Callable[[], float]:
    """Returns a function that trains an epoch in a new folder: images per second."""
    config["saving"] = {"every_s": 1e6, "best": False, "evaluate_every": 1000}

    def epoch() -> float:
        with tempfile.TemporaryDirectory() as workdir:
            result = kdjax.run(config, workdir)
        return result.summary["stages"]["student"]["images_per_second"][0]

    return epoch


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and returns the exit status."""
    return command.run(lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> None:
    parser = measure.parser("own_data", __doc__, rounds=5)
    parser.add_argument("--data-dir", help="the folder of TFDS data sets")
    parser.add_argument("--size", type=int, default=10_000, help="images that are read")
    parser.add_argument("--train", type=int, default=20 * BATCH, help="of an epoch")
    options = parser.parse_args(argv)
    data = sources.load(
        "cifar10", options.data_dir, train_size=options.size, test_size=BATCH
    )
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder) / "photos"
        write(photos, data, options.size)
        opened = starts(photos, Path(folder) / "cache")
        arg = "supervised,dataset=cifar10,student=wrn-16-1,epochs=1,seeds=1"
        arg += f",batch_size={BATCH},train_size={options.train},test_size={BATCH}"
        theirs = kd.get_config(arg).to_dict()
        theirs["data"]["dir"] = options.data_dir
        request = own.Request(
            data=str(photos),
            student="wrn-16-1",
            method="supervised",
            epochs=1,
            batch_size=BATCH,
            data_options={"train_size": options.train},
        )
        ours = own.config(request).to_dict()
        ours["recipe"] = theirs["recipe"]
        turns = {"own": trainer(ours), "cifar10": trainer(theirs)}
        console.quiet = True
        for turn in turns.values():
            turn()
        found = measure.interleave(turns, options.rounds, options.busy)
        console.quiet = False
    values = found.pop("values")
    ratio = measure.quotient(values["own"], values["cifar10"])
    rows = [
        (f"{name}: images/s", measure.figure(measure.spread(rates), ".0f"))
        for name, rates in values.items()
    ]
    rows.append(("own / cifar10", measure.figure(ratio, ".3f")))
    rows += [(f"{name} start (s)", f"{took:.2f}") for name, took in opened.items()]
    measure.show(f"{options.size:,} JPEGs of 32x32", ("", ""), rows)
    figures = {name: measure.spread(rates) for name, rates in values.items()}
    measure.save(
        options.out,
        {"images_per_second": figures, "ratio": ratio, "starts": opened, **found},
    )


if __name__ == "__main__":
    sys.exit(main())
