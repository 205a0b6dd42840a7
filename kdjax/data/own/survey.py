"""Reads every file once for its hash, size and colours; no pixel is decoded."""

import dataclasses
import hashlib
import io
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from PIL import Image

from kdjax.data import pixels
from kdjax.data.own import cache
from kdjax.data.streaming.encoded import Example, Records
from kdjax.runtime import console

_VERSION = 1  # raised when the results for the same files change
_CHUNK = 64  # records per task of a thread
_DIGEST = 16  # bytes

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, eq=False)
class Survey:
    """Properties of records that are known without decoding them.

    Attributes:
        labels: int32 `[N]`; -1 where an image cannot be read.
        digests: hashes of the encoded images, uint8 `[N, 16]`.
        sizes: height and width as viewers show them, int32 `[N, 2]`.
        grey: whether a record is stored without colours, bool `[N]`.
        broken: why an image cannot be read, by number.
    """

    labels: np.ndarray
    digests: np.ndarray
    sizes: np.ndarray
    grey: np.ndarray
    broken: dict[int, str]


def survey(records: Records, stamp: str, label: str) -> Survey:
    """Returns the properties of records, from the cache if the files are unchanged.

    Args:
        records: all records.
        stamp: the files'; see `EncodedData`.
        label: the data set's name in messages.
    """
    path = cache.path_of("survey", _VERSION, stamp, records.split, len(records))
    arrays = cache.load(path)
    if arrays is None:
        arrays = _look(records, f"{label}: looking at {records.split}")
        cache.keep(path, arrays)
    reasons = zip(arrays["broken"], arrays["reasons"], strict=True)
    return Survey(
        arrays["labels"],
        arrays["digests"],
        arrays["sizes"],
        arrays["grey"],
        {int(number): str(reason) for number, reason in reasons},
    )


def _look(records: Records, label: str) -> cache.Arrays:
    count = len(records)
    labels = np.full(count, -1, np.int32)
    digests = np.zeros((count, _DIGEST), np.uint8)
    sizes = np.zeros((count, 2), np.int32)
    grey = np.zeros(count, bool)

    def look(numbers: np.ndarray) -> dict[int, str]:
        broken = {}
        for number, example in zip(numbers, records.read(numbers), strict=True):
            try:
                if isinstance(example, Exception):
                    raise example
                digest = hashlib.blake2b(example.content, digest_size=_DIGEST).digest()
                digests[number] = np.frombuffer(digest, np.uint8)
                with Image.open(io.BytesIO(example.content)) as image:
                    pixels.check_size(image)
                    sizes[number] = pixels.upright_size(image)
                    grey[number] = pixels.is_grey(image)
                labels[number] = example.label
            except (
                Exception
            ) as error:  # PIL raises many kinds of errors for damaged files
                broken[int(number)] = describe(records, int(number), example, error)
        return broken

    broken: dict[int, str] = {}
    for found in in_threads(look, np.arange(count), label):
        broken.update(found)
    return {
        "labels": labels,
        "digests": digests,
        "sizes": sizes,
        "grey": grey,
        "broken": np.array(sorted(broken), np.int64),
        "reasons": np.array([broken[number] for number in sorted(broken)], np.str_),
    }


def describe(
    records: Records, number: int, example: Example | Exception, error: Exception
) -> str:
    """Returns the line for a record that cannot be read."""
    name = example.name if isinstance(example, Example) else ""
    # TFDS keeps the names of files only for some data sets.
    if name in ("", "?"):
        name = f"{records.split} record {number}"
    return f"{name}: {pixels.reason(error)}"


def in_threads(
    function: Callable[[np.ndarray], T], numbers: np.ndarray, label: str
) -> Iterator[T]:
    """Calls a function for chunks of records on all cores, and shows the progress.

    Yields:
        Its results, in order.
    """
    chunks = [numbers[i : i + _CHUNK] for i in range(0, len(numbers), _CHUNK)]
    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        console.progress(label, len(numbers)) as advance,
    ):
        for chunk, result in zip(chunks, pool.map(function, chunks), strict=True):
            yield result
            advance(len(chunk))
