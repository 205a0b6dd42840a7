"""Mean and deviation of streamed images, from a fixed sample that is decoded once."""

import numpy as np

from kdjax.data import pixels
from kdjax.data.own import cache
from kdjax.data.own.resident import count_values, statistics
from kdjax.data.own.survey import in_threads
from kdjax.data.streaming.encoded import Example, Records
from kdjax.data.subsets import stratified

MOST = 10_000
"""Images in the sample: the mean's standard error is then 1 % of the deviation."""


def streamed_statistics(
    records: Records,
    numbers: np.ndarray,
    labels: np.ndarray,
    shape: tuple[int, int, int],
    stamp: str,
    label: str,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and standard deviation of each channel, on the scale 0 to 1.

    Args:
        records: the training images.
        numbers: those that are used; of more than `MOST` a stratified sample is taken.
        labels: of all records.
        shape: height, width and channels.
        stamp: the files'; see `EncodedData`.
        label: the data set's name in messages.
    """
    chosen = np.sort(numbers[stratified(labels[numbers], min(MOST, len(numbers)))])
    path = cache.path_of("mean", pixels.VERSION, stamp, records.split, shape, chosen)
    arrays = cache.load(path)
    if arrays is None:
        counts = np.zeros((shape[2], 256), np.int64)

        def count(part: np.ndarray) -> np.ndarray:
            total = np.zeros((shape[2], 256), np.int64)
            for example in records.read(part):
                try:
                    if isinstance(example, Example):
                        total += count_values(pixels.view(example.content, shape))
                except Exception:  # reported when it is trained on
                    continue
            return total

        text = f"{label}: mean and deviation of {len(chosen):,} training images"
        for part in in_threads(count, chosen, text):
            counts += part
        arrays = {"counts": counts}
        cache.keep(path, arrays)
    return statistics(arrays["counts"])
