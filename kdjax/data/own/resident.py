"""Decoded images in memory, and the mean and deviation of training images."""

import dataclasses

import numpy as np

from kdjax.data import pixels
from kdjax.data.own import cache
from kdjax.data.own.survey import describe, in_threads
from kdjax.data.sources import Split
from kdjax.data.streaming.encoded import Records

_CHUNK = 1 << 22  # pixels that are counted at once


@dataclasses.dataclass(frozen=True, eq=False)
class Decoded:
    """Images of some records.

    Attributes:
        numbers: the records' numbers, ascending; only those that can be read.
        images: uint8 `[N, H, W, C]`.
        labels: int32 `[N]`.
        broken: by number, a line on what cannot be read and why.
    """

    numbers: np.ndarray
    images: np.ndarray
    labels: np.ndarray
    broken: dict[int, str]


def decode(
    records: Records,
    numbers: np.ndarray,
    shape: tuple[int, int, int],
    stamp: str,
    label: str,
) -> Decoded:
    """Returns images decoded for evaluation, from the cache if the files are unchanged.

    Args:
        records: all records.
        numbers: of the records to read, ascending.
        shape: height, width and channels.
        stamp: the files'; see `EncodedData`.
        label: the data set's name in messages.
    """
    path = cache.path_of("images", pixels.VERSION, stamp, records.split, shape, numbers)
    arrays = cache.load(path)
    if arrays is None:
        arrays = _decode(records, numbers, shape, f"{label}: decoding {records.split}")
        cache.keep(path, arrays)
    reasons = zip(arrays["broken"], arrays["reasons"], strict=True)
    return Decoded(
        arrays["numbers"],
        arrays["images"],
        arrays["labels"],
        {int(number): str(reason) for number, reason in reasons},
    )


def choose(decoded: Decoded, numbers: np.ndarray) -> tuple[Split, list[str]]:
    """Returns the images of some of the decoded records.

    Args:
        decoded: these records and possibly others.
        numbers: of the records to return, ascending.
    """
    lines = [decoded.broken[n] for n in map(int, numbers) if n in decoded.broken]
    if np.array_equal(decoded.numbers, numbers):
        return Split(decoded.images, decoded.labels), lines
    rows = np.isin(decoded.numbers, numbers)
    return Split(decoded.images[rows], decoded.labels[rows]), lines


def _decode(
    records: Records, numbers: np.ndarray, shape: tuple[int, int, int], label: str
) -> cache.Arrays:
    images = np.empty((len(numbers), *shape), np.uint8)
    labels = np.full(len(numbers), -1, np.int32)

    def fill(rows: np.ndarray) -> dict[int, str]:
        broken = {}
        for row, example in zip(rows, records.read(numbers[rows]), strict=True):
            try:
                if isinstance(example, Exception):
                    raise example
                images[row] = pixels.view(example.content, shape)
                labels[row] = example.label
            except (
                Exception
            ) as error:  # PIL raises many kinds of errors for damaged files
                number = int(numbers[row])
                broken[number] = describe(records, number, example, error)
        return broken

    broken: dict[int, str] = {}
    for found in in_threads(fill, np.arange(len(numbers)), label):
        broken.update(found)
    if broken:
        whole = labels >= 0
        numbers, images, labels = numbers[whole], images[whole], labels[whole]
    return {
        "numbers": numbers,
        "images": images,
        "labels": labels,
        "broken": np.array(sorted(broken), np.int64),
        "reasons": np.array([broken[number] for number in sorted(broken)], np.str_),
    }


def count_values(images: np.ndarray) -> np.ndarray:
    """Counts how often each channel has each value; integers `[C, 256]`.

    Args:
        images: uint8 `[..., C]`.
    """
    channels = images.shape[-1]
    flat = images.reshape(-1, channels)
    counts = np.zeros((channels, 256), np.int64)
    # In parts: NumPy counts 8 bytes for each of these.
    for start in range(0, len(flat), _CHUNK):
        for channel in range(channels):
            values = flat[start : start + _CHUNK, channel]
            counts[channel] += np.bincount(values, minlength=256)
    return counts


def statistics(
    counts: np.ndarray,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and standard deviation of each channel, on the scale 0 to 1.

    Pixels are counted by value, so that the sums are exact for any number of pixels.
    The deviation of a constant channel is returned as 1, so that one can divide by it.

    Args:
        counts: how often each channel has each value, integers `[C, 256]`.
    """
    values = np.arange(256)
    means, deviations = [], []
    for count in counts:
        total = int(count.sum())
        first, second = int(count @ values), int(count @ values**2)
        # In integers of any size, up to the last division.
        variance = (total * second - first**2) / total**2
        means.append(first / total / 255)
        deviations.append(variance**0.5 / 255 or 1.0)
    return tuple(means), tuple(deviations)
