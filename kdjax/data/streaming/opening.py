"""Opens a data set of TFDS that is streamed."""

import dataclasses

import numpy as np

from kdjax.data import sources, tfds_files
from kdjax.data.streaming.crop import Crop
from kdjax.data.streaming.dataset import Streamed
from kdjax.data.streaming.encoded import Encoded, content_of
from kdjax.data.subsets import stratified
from kdjax.runtime.errors import UserError, unknown

BROKEN = ("skip", "stop")


def open_streamed(
    name: str,
    dir: str | None = None,
    *,
    train_size: int | None = None,
    test_size: int | None = None,
    normalise: bool = True,
    image_size: int = 224,
    crop: Crop = Crop(),  # noqa: B008 (it cannot change)
    workers: int = 2,
    broken: str = "skip",
) -> Streamed:
    """Opens a data set that does not fit into memory.

    Args:
        name: a key of `sources.SOURCES` with `in_memory=False`.
        dir: the folder of TFDS data sets; by default TFDS's own.
        train_size: the number of training images; None: all. A subset is fixed
            as in `sources.load`; the first time, all labels are read.
        test_size: the number of test images; None: all.
        normalise: whether mean and deviation are the data set's, or 0 and 1.
        image_size: height and width of the images.
        crop: the augmentation of training images.
        workers: the number of processes that make batches; 0: threads of this process.
        broken: 'skip' replaces a training example that cannot be read by the next one,
            marks such a test image as not valid, and reports both; 'stop' raises.

    Raises:
        UserError: there is no such data set, it is not prepared or damaged, or a size
            is not between 1 and that of the split.
    """
    if name not in sources.SOURCES:
        raise unknown("data set", name, sources.SOURCES)
    source = sources.SOURCES[name]
    if source.in_memory:
        raise UserError(f"data set {name!r} is not streamed: it is read into memory")
    if broken not in BROKEN:
        raise unknown("treatment of broken images", broken, BROKEN)
    for what, value, least in (
        ("image_size", image_size, 8),
        ("workers", workers, 0),
    ):
        if value < least:
            raise UserError(f"{what}={value} must be at least {least}")
    prepared = tfds_files.locate(name, source.tfds_name or name, dir)
    source = dataclasses.replace(
        source,
        image_shape=(image_size, image_size, 3),
        mean=source.mean if normalise else (0.0,) * 3,
        std=source.std if normalise else (1.0,) * 3,
    )
    train = _part(Encoded(prepared, "train"), train_size, f"train_size of {name}")
    test = _part(
        Encoded(prepared, source.test_split), test_size, f"test_size of {name}"
    )
    return Streamed(
        source,
        train,
        test,
        crop,
        workers,
        broken,
        name=prepared.name,
        version=prepared.version,
        content=content_of(prepared, ("train", source.test_split)),
    )


def _part(examples: Encoded, size: int | None, what: str) -> tuple[Encoded, np.ndarray]:
    """Returns examples and the records that belong to a subset, in their order."""
    total = len(examples)
    if size is None or size == total:
        return examples, np.arange(total, dtype=np.int32)
    if not 1 <= size <= total:
        raise UserError(f"{what} must be from 1 to {total}, not {size}")
    chosen = stratified(examples.labels(), size)
    return examples, np.sort(chosen).astype(np.int32)
