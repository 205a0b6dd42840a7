"""Names the classes of images: python -m kdjax.predict MODEL IMAGE ...

    python -m kdjax.predict student/ image.png more/*.png
    python -m kdjax.predict student/ photos/ --json > classes.jsonl

MODEL is a folder that `python -m kdjax.export` wrote, as ONNX or StableHLO. An IMAGE is
a file, or a folder, which means all images in it and its subfolders. For every image
one line lists its best classes with their probabilities. An image that cannot be read
is reported on stderr, and the command continues with the others.
"""

import argparse
import contextlib
import dataclasses
import io
import json
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from kdjax.predict.files import find
from kdjax.predict.model import BATCH, ClassScore, Model
from kdjax.runtime import command
from kdjax.runtime.errors import UserError

_PREFIX = "kdjax: "


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command.Parser(
        prog="python -m kdjax.predict",
        description="Names the classes of images with an exported model.",
    )
    parser.add_argument(
        "model",
        type=Path,
        help="a folder that python -m kdjax.export wrote, as onnx or stablehlo",
    )
    parser.add_argument(
        "images",
        nargs="+",
        metavar="image",
        help="an image file, or a folder with images in it or below it",
    )
    parser.add_argument(
        "--int8", action="store_true", help="run the quantised network of the model"
    )
    parser.add_argument(
        "--top",
        type=int,
        default=5,
        metavar="N",
        help="classes to name for every image (default: %(default)s)",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object for every image"
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        default=BATCH,
        metavar="N",
        help="images per batch (default: %(default)s)",
    )
    parser.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help="threads that decode images and run the network (default: the cores)",
    )
    options = parser.parse_args(argv)
    for name in ("top", "batch_size", "threads"):
        value = getattr(options, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')}={value} must be 1 or more")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    try:
        return command.run(lambda: _main(argv))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of the output has closed it. Python flushes once more at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


@contextlib.contextmanager
def _output() -> Iterator[None]:
    """Tells of an output that cannot be written, such as a file on a full disk."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(f"the output cannot be written: {error.strerror}") from error


def _main(argv: Sequence[str] | None) -> None:
    options = _parse(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # File names need not be valid text, nor class names in the output's encoding.
        sys.stdout.reconfigure(errors="backslashreplace")
    model = Model(
        options.model,
        options.int8,
        threads=options.threads,
        batch_size=options.batch_size,
    )

    def report(line: object) -> None:
        print(f"{_PREFIX}{line}", file=sys.stderr)

    readable = 0
    with warnings.catch_warnings():
        # PIL warns about images that it can read all the same, in several lines.
        warnings.filterwarnings("ignore", module="PIL")
        for path, answer in model.stream(find(options.images, report)):
            if isinstance(answer, UserError):
                report(answer)
                continue
            readable += 1
            with _output():
                print(_line(path, model.best(answer, options.top), options.json))
    with _output():
        sys.stdout.flush()
    if not readable:
        raise UserError("no image could be read")


def _line(path: str, best: Sequence[ClassScore], as_json: bool) -> str:
    if as_json:
        classes = [dataclasses.asdict(one) for one in best]
        return json.dumps({"image": path, "classes": classes})
    return f"{path}: " + ", ".join(f"{one.name} {one.probability:.2%}" for one in best)


def _end(code: int) -> NoReturn:
    """Ends the process at once: unloading the libraries takes as long as 50 images."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # the command has told it
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    _end(main())
